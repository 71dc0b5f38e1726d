"""Fetches a real FLAN-T5-small and writes it as a Hugging Face style model folder.

    python tools/fetch_flan_t5_small.py DEST

Source: the package ``traceforge-title-model`` 0.2.0 on PyPI, fetched through pip (68 MB). It holds
google/flan-t5-small (Apache-2.0), fine-tuned to give titles to the steps of coding agents and
exported to ONNX with int8 weights; its metadata states the licence MIT and names
https://github.com/dfinson/traceforge as its home.

Every matrix there is 8 bits a weight with one scale and one zero point for the whole tensor, so
float32 weights are ``(q - zero_point) * scale``, rounded once, and nothing else is lost. What
onnxruntime makes of that package also quantises activations and is *not* what these weights give
in float32.

DEST receives config.json, model.safetensors (190 tensors, float32, 308 MB) and tokenizer.json as
shipped, which has truncation to 48 tokens and padding switched on: a reader must switch both off.
Only the Python packages of requirements-demo.txt are needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

PACKAGE = "traceforge-title-model==0.2.0"
INSIDE = "traceforge_title_model/data/span"
GRAPHS = ("encoder.onnx", "decoder.onnx")
TOKENIZER = "tokenizer.json"
FILES = ("config.json", "model.safetensors", TOKENIZER)
N_TENSORS = 190
CONTENTS_SHA256 = "56538fdbf1d458551be2733450506e134bf0accf83d072ca59f7ec46ca59b93f"
TOKENIZER_SHA256 = "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6"

CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}


class FetchError(Exception):
    """Something about the download or its content is not as expected."""


def download(folder: Path) -> Path:
    """Lets pip fetch the wheel and returns its path.

    The package states which Pythons its own code supports; only its data is read here.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--ignore-requires-python", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FetchError(f"pip could not download {PACKAGE}:\n{done.stderr.strip()}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"expected one wheel of {PACKAGE}, pip left {[wheel.name for wheel in wheels]}")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> None:
    """Takes the two graphs and the tokenizer out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in (*GRAPHS, TOKENIZER):
            try:
                content = archive.open(f"{INSIDE}/{name}")
            except KeyError:
                raise FetchError(f"{wheel.name} has no {INSIDE}/{name}") from None
            with content, (folder / name).open("wb") as target:
                shutil.copyfileobj(content, target)


def _checkpoint_name(module: str) -> str:
    """``enc.`` is the encoder's prefix in the export and ``m.`` the whole model's."""
    if module.startswith("enc."):
        return "encoder." + module.removeprefix("enc.")
    return module.removeprefix("m.")


def _dequantised(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    quantised = stored[f"{name}_quantized"].astype(np.int32)
    centred = quantised - stored[f"{name}_zero_point"].astype(np.int32)
    return centred.astype(np.float32) * stored[f"{name}_scale"].astype(np.float32)


def _matrices(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """For each integer product: the module that its node's name spells, and its weight's base name."""
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            yield module, node.input[1].removesuffix("_quantized")


def read_graph(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of one graph under their checkpoint names."""
    graph = onnx.load(str(path)).graph
    stored = {initializer.name: numpy_helper.to_array(initializer) for initializer in graph.initializer}
    tensors: dict[str, np.ndarray] = {}
    for name, values in stored.items():
        if name.endswith("norm.weight"):
            tensors[_checkpoint_name(name)] = values.astype(np.float32)
        elif name.endswith(".weight_quantized"):
            base = name.removesuffix("_quantized")
            tensors[_checkpoint_name(base)] = _dequantised(stored, base)
    for module, base in _matrices(graph):
        tensors[f"{_checkpoint_name(module)}.weight"] = np.ascontiguousarray(_dequantised(stored, base).T)
    return tensors


def convert(folder: Path) -> dict[str, np.ndarray]:
    """Both graphs as one checkpoint; the encoder's own copy of the embedding must equal the shared one."""
    tensors: dict[str, np.ndarray] = {}
    for name in GRAPHS:
        tensors |= read_graph(folder / name)
    copy = tensors.pop("encoder.embed_tokens.weight")
    if not np.array_equal(copy, tensors["shared.weight"]):
        raise FetchError("the encoder's embedding differs from the shared one")
    return tensors


def sha256(path: Path) -> str:
    """Of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """Of all names, shapes and values, in the order of the names: independent of how a file is laid out."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape}\n".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def check(folder: Path) -> None:
    """Raises unless the written weights, read back, and the tokenizer are the expected ones."""
    tensors = load_file(folder / "model.safetensors")
    if len(tensors) != N_TENSORS:
        raise FetchError(f"model.safetensors has {len(tensors)} tensors, expected {N_TENSORS}")
    for what, found, expected in (
        ("the tensors of model.safetensors", contents_sha256(tensors), CONTENTS_SHA256),
        (TOKENIZER, sha256(folder / TOKENIZER), TOKENIZER_SHA256),
    ):
        if found != expected:
            raise FetchError(f"{what}: sha256 is {found}, expected {expected}")


def is_complete(folder: Path) -> bool:
    """Whether an earlier run finished there: it renames the folder as its last act."""
    return all((folder / name).is_file() for name in FILES)


def fetch(dest: Path) -> str:
    """Fetches, converts, checks, and only then gives the folder its name.

    Returns the sha256 of model.safetensors; with safetensors 0.8.0 it is 3768d549f0ab5161e7a0...46d7244b34.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}-", dir=dest.parent) as scratch:
        source, result = Path(scratch) / "source", Path(scratch) / "result"
        source.mkdir()
        result.mkdir()
        unpack(download(source), source)
        weights = result / "model.safetensors"
        save_file(convert(source), weights, metadata={"format": "pt"})
        weights.chmod(0o644)
        (result / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
        shutil.move(source / TOKENIZER, result / TOKENIZER)
        check(result)
        digest = sha256(weights)
        os.replace(result, dest)
    return digest


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fetch FLAN-T5-small as a model folder.")
    parser.add_argument("dest", type=Path)
    dest: Path = parser.parse_args().dest
    if is_complete(dest):
        print(f"{dest} is complete already")
        return
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        sys.exit(f"error: {dest} exists and is not a complete model folder; move it away first")
    try:
        digest = fetch(dest)
    except (FetchError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{dest}: {', '.join(FILES)}; model.safetensors has sha256 {digest}")


if __name__ == "__main__":
    main()
