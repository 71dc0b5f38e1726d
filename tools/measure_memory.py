"""Measures the memory that `quintic encode` needs for a model of a published shape.

    python tools/measure_memory.py testdata/configs/wan2.1_text_encoder_umt5-xxl.json [--dtype BF16] [--tokens 8] [--bin PATH]
        [--gguf q8_0]

The weights are a sparse file of zeros in the size and layout of the real one, so that a model of many gigabytes costs no disk
and can be made anywhere. What is measured does not depend on the values: the time until the encoder is loaded, the time for one
prompt, the largest resident set (mapped weights included, which the system may drop at any time) and the largest anonymous part
of it, which is what the program itself allocates. With ``--gguf`` the model is first converted to such blocks, which takes disk, and
computed from them in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

SIZES = {"F32": 4, "BF16": 2, "F16": 2}


def encoder_tensors(config: dict) -> dict[str, list[int]]:
    """Names and shapes of a T5 encoder with this config."""
    d_model, d_ff = config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    gated = config.get("is_gated_act", "gated" in config.get("feed_forward_proj", "relu"))
    tensors = {"shared.weight": [config["vocab_size"], d_model], "encoder.final_layer_norm.weight": [d_model]}
    for layer in range(config["num_layers"]):
        block = f"encoder.block.{layer}.layer"
        for part in "qkv":
            tensors[f"{block}.0.SelfAttention.{part}.weight"] = [inner, d_model]
        tensors[f"{block}.0.SelfAttention.o.weight"] = [d_model, inner]
        if layer == 0 or config["model_type"] == "umt5":
            buckets = [config["relative_attention_num_buckets"], config["num_heads"]]
            tensors[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = buckets
        for part in ["wi_0", "wi_1"] if gated else ["wi"]:
            tensors[f"{block}.1.DenseReluDense.{part}.weight"] = [d_ff, d_model]
        tensors[f"{block}.1.DenseReluDense.wo.weight"] = [d_model, d_ff]
        tensors[f"{block}.0.layer_norm.weight"] = [d_model]
        tensors[f"{block}.1.layer_norm.weight"] = [d_model]
    return tensors


def write_sparse(path: Path, tensors: dict[str, list[int]], dtype: str) -> int:
    """A safetensors file of zeros that takes no disk; returns the bytes of its tensors."""
    header, end = {}, 0
    for name, shape in tensors.items():
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end


def write_ids(path: Path, n_tokens: int) -> None:
    """`input_ids` [1, n_tokens]."""
    header = json.dumps({"input_ids": {"dtype": "I64", "shape": [1, n_tokens], "data_offsets": [0, 8 * n_tokens]}}).encode()
    ids = b"".join((5 + i).to_bytes(8, "little") for i in range(n_tokens))
    path.write_bytes(len(header).to_bytes(8, "little") + header + ids)


def anonymous_bytes(pid: int) -> int:
    """Resident anonymous memory of a process; 0 once it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--dtype", choices=SIZES, default="BF16")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--gguf", choices=["q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "q3_k", "q2_k"])
    parser.add_argument("--bin", default=os.environ.get("QUINTIC_BIN", "target/release/quintic"))
    args = parser.parse_args()
    config = json.loads(args.config.read_text())
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model = Path(folder)
        stored = write_sparse(model / "model.safetensors", encoder_tensors(config), args.dtype)
        (model / "config.json").write_text(json.dumps(config))
        write_ids(model / "ids.safetensors", args.tokens)
        source, options = folder, []
        if args.gguf:
            source, options = str(model / "model.gguf"), ["--dtype", "bf16"]
            convert = [args.bin, "convert", "--model", folder, "--to", "gguf", "--dtype", args.gguf, "-o", source, "--quiet"]
            subprocess.run(convert, check=True)
            stored = Path(source).stat().st_size
        command = [args.bin, "encode", "--model", source, "--input-ids", str(model / "ids.safetensors"), "--json", "--quiet", *options]
        process = subprocess.Popen([*command, "-o", str(model / "out.safetensors")], stdout=subprocess.PIPE, text=True)
        anonymous = 0
        while process.poll() is None:
            anonymous = max(anonymous, anonymous_bytes(process.pid))
            time.sleep(0.01)
        if process.returncode != 0 or process.stdout is None:
            raise SystemExit(f"{command[0]} ended with code {process.returncode}")
        summary = json.loads(process.stdout.read())
    if args.gguf:
        print(f"file {stored / 1e9:.2f} GB in {args.gguf}")
    else:
        print(f"weights {stored / 1e9:.2f} GB in {args.dtype}, {2 * stored / SIZES[args.dtype] * 2 / 1e9:.2f} GB in F32")
    print(f"loaded in {summary['load_s']:.2f} s, {args.tokens} tokens in {summary['encode_s']:.1f} s")
    print(f"peak resident {summary['peak_rss_bytes'] / 1e9:.2f} GB, of it allocated {anonymous / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
