"""Writes the random checkpoints of the case table as model folders.

    PYTHONPATH=tools python -m oracle.make_models DEST [NAME ...]

Weights are drawn so that a small model strains arithmetic as a trained one does: the residual
stream neither vanishes nor explodes, attention is neither uniform nor one-hot, norm gains differ
from 1, and the relative bias is as large as the scores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from oracle.cases import GOLDENS, MODELS, Model

Tensors = dict[str, torch.Tensor]

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DEAD_CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
SCORE_SPREAD = 1.5
BIAS_SPREAD = 1.5
BRANCH_GAIN = 1.5
OUTLIER_GAIN = 40.0


class _Draw:
    """Draws the tensors of one model in a fixed order."""

    def __init__(self, model: Model) -> None:
        self.config = model.config
        self.model = model
        self.rng = np.random.default_rng(model.seed)
        self.tensors: Tensors = {}

    def normal(self, name: str, shape: tuple[int, ...], spread: float) -> None:
        """A Gaussian tensor."""
        values = self.rng.standard_normal(shape, dtype=np.float32) * np.float32(spread)
        self.tensors[name] = torch.from_numpy(values)

    def gain(self, name: str) -> None:
        """A norm's gain, log-normal around 1."""
        values = np.exp(self.rng.standard_normal(self.config["d_model"], dtype=np.float32) * np.float32(0.3))
        self.tensors[name] = torch.from_numpy(values)

    def attention(self, prefix: str, bias: bool) -> None:
        """Four projections and, where the block has one, the bias table.

        Scores are not divided by sqrt(d_kv) in this family, so the queries are made smaller.
        """
        d_model, d_kv, heads = (self.config[key] for key in ("d_model", "d_kv", "num_heads"))
        inner = heads * d_kv
        self.normal(f"{prefix}.q.weight", (inner, d_model), SCORE_SPREAD * (d_model * d_kv) ** -0.5)
        self.normal(f"{prefix}.k.weight", (inner, d_model), d_model**-0.5)
        self.normal(f"{prefix}.v.weight", (inner, d_model), d_model**-0.5)
        self.normal(f"{prefix}.o.weight", (d_model, inner), BRANCH_GAIN * inner**-0.5)
        if bias:
            buckets = self.config.get("relative_attention_num_buckets", 32)
            self.normal(f"{prefix}.relative_attention_bias.weight", (buckets, heads), BIAS_SPREAD)

    def feed_forward(self, prefix: str) -> None:
        """One or two input matrices, as the config's activation is gated or not, and the output matrix."""
        d_model, d_ff = self.config["d_model"], self.config["d_ff"]
        for name in ("wi_0", "wi_1") if self.model.is_gated else ("wi",):
            self.normal(f"{prefix}.{name}.weight", (d_ff, d_model), 1.5 * d_model**-0.5)
        self.normal(f"{prefix}.wo.weight", (d_model, d_ff), BRANCH_GAIN * d_ff**-0.5)

    def stack(self, name: str, layers: int) -> None:
        """All blocks of the encoder or the decoder and the final norm."""
        decoder = name == "decoder"
        for index in range(layers):
            block = f"{name}.block.{index}.layer"
            self.attention(f"{block}.0.SelfAttention", bias=index == 0 or self.model.is_umt5)
            self.gain(f"{block}.0.layer_norm.weight")
            if decoder:
                self.attention(f"{block}.1.EncDecAttention", bias=False)
                self.gain(f"{block}.1.layer_norm.weight")
            last = 2 if decoder else 1
            self.feed_forward(f"{block}.{last}.DenseReluDense")
            self.gain(f"{block}.{last}.layer_norm.weight")
        self.gain(f"{name}.final_layer_norm.weight")

    def embeddings(self) -> None:
        """The token table, under every name that the checkpoint uses for it."""
        shape = (self.config["vocab_size"], self.config["d_model"])
        self.normal("token table", shape, 1.0)
        table = self.tensors.pop("token table")
        for name in self.model.embeddings:
            self.tensors[name] = table.clone()

    def outliers(self) -> None:
        """Makes a few channels of the residual stream as large as trained models have them."""
        channels = [0, self.config["d_model"] // 2]
        for name, tensor in self.tensors.items():
            if name.endswith("embed_tokens.weight") or name == "shared.weight":
                tensor[:, channels] *= OUTLIER_GAIN
            elif name.startswith("encoder.") and name.endswith("wo.weight"):
                tensor[channels] *= OUTLIER_GAIN


def draw(model: Model) -> Tensors:
    """The tensors of a model under their published names, in the type that they are stored in."""
    config, drawing = model.config, _Draw(model)
    drawing.embeddings()
    drawing.stack("encoder", config["num_layers"])
    if model.contents == "full":
        drawing.stack("decoder", config.get("num_decoder_layers") or config["num_layers"])
        if config.get("tie_word_embeddings", True) is False:
            drawing.normal("lm_head.weight", (config["vocab_size"], config["d_model"]), config["d_model"] ** -0.5)
    if model.dead_cross_bias:
        buckets = config.get("relative_attention_num_buckets", 32)
        drawing.normal(DEAD_CROSS_BIAS, (buckets, config["num_heads"]), BIAS_SPREAD)
    if model.outliers:
        drawing.outliers()
    dtype = DTYPES[model.stored]
    return {name: tensor.to(dtype).contiguous() for name, tensor in drawing.tensors.items()}


def _write_shards(tensors: Tensors, folder: Path, parts: int = 3) -> None:
    names = sorted(tensors)
    files = [f"model-{part + 1:05}-of-{parts:05}.safetensors" for part in range(parts)]
    for part, file in enumerate(files):
        save_file({name: tensors[name] for name in names[part::parts]}, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())},
        "weight_map": {name: files[position % parts] for position, name in enumerate(names)},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_model(model: Model, folder: Path) -> Path:
    """Writes one model folder, in place of whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=2) + "\n")
    tensors = draw(model)
    if model.layout == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif model.layout == "sharded":
        _write_shards(tensors, folder)
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read_tensors(folder: Path) -> Tensors:
    """Every stored tensor of a model folder, in its stored type."""
    pickled = folder / "pytorch_model.bin"
    if pickled.exists():
        return torch.load(pickled, weights_only=True)
    tensors: Tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    if not tensors:
        raise FileNotFoundError(f"{folder} holds neither pytorch_model.bin nor model*.safetensors")
    return tensors


def main() -> None:
    """Writes the named models, or all of them, below a folder."""
    parser = argparse.ArgumentParser(description="Write the random checkpoints of the case table.")
    parser.add_argument("dest", type=Path)
    parser.add_argument("names", nargs="*", help="all if none is named")
    options = parser.parse_args()
    table = {model.name: model for model in MODELS + GOLDENS}
    unknown = set(options.names) - set(table)
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(table)}")
    for name in options.names or table:
        write_model(table[name], options.dest / name)
        print(options.dest / name)


if __name__ == "__main__":
    main()
