"""The encoder's output in float64, by transformers with its weights brought in layer by layer.

    python truth.py MODEL_FOLDER IDS.json OUT.npy

Rows are encoded one by one, so padding plays no part. Two things differ from calling transformers
in double precision: a norm's mean square, which transformers computes in float32 whatever the
model's type, is float64 here; and a block's weights are read when it runs and dropped after it, so
that XL needs a gigabyte and not ten.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

EMBEDDING = "shared.weight"


def _norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    mean_square = states.pow(2).mean(-1, keepdim=True)
    return norm.weight * (states * torch.rsqrt(mean_square + norm.variance_epsilon))


class Float64Encoder:
    """One checkpoint folder, ``config.json`` and ``model.safetensors``."""

    def __init__(self, folder: Path) -> None:
        from transformers import T5Config, T5EncoderModel

        self.file = safe_open(folder / "model.safetensors", framework="pt")
        settings = T5Config.from_pretrained(folder)
        settings._attn_implementation = "eager"
        with torch.device("meta"):
            model = T5EncoderModel(settings)
        self.encoder = model.double().eval().requires_grad_(False).encoder
        for module in self.encoder.modules():
            if type(module).__name__.endswith("LayerNorm"):
                module.forward = MethodType(_norm, module)
        for index, block in enumerate(self.encoder.block):
            prefix = f"encoder.block.{index}."
            block.register_forward_pre_hook(lambda block, _, prefix=prefix: self._fill(block, prefix))
            block.register_forward_hook(lambda block, *_: (block.to("meta"), None)[1])
        self._fill(self.encoder.final_layer_norm, "encoder.final_layer_norm.")

    def _fill(self, module: torch.nn.Module, prefix: str) -> None:
        module.to_empty(device="cpu")
        for name, parameter in module.named_parameters():
            stored = self.file.get_tensor(prefix + name)
            if stored.shape != parameter.shape:
                raise ValueError(f"{prefix}{name}: stored as {tuple(stored.shape)}, expected {tuple(parameter.shape)}")
            parameter.copy_(stored)

    def encode(self, rows: list[list[int]]) -> np.ndarray:
        """``[tokens, d_model]``, the rows one after another."""
        table = self.file.get_tensor(EMBEDDING)
        with torch.no_grad():
            states = [self.encoder(inputs_embeds=table[row].double()[None]).last_hidden_state[0] for row in rows]
        return torch.cat(states).numpy()


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser(description="Encode in float64.")
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    truth = Float64Encoder(options.model).encode(json.loads(options.ids.read_text()))
    unfinished = options.output.with_suffix(".part.npy")
    np.save(unfinished, truth)
    unfinished.rename(options.output)


if __name__ == "__main__":
    main()
