"""Runs transformers' encoder over a model folder, in float64 and in float32, with eager attention.

What had to be known to make it a reference:

- transformers computes the mean square of a norm in float32 even in a float64 model. The float64
  run here replaces that one function, so that the truth is true to 1e-15 and not to 1e-7.
- 3-D masks are refused (expand() fails). A 4-D mask is taken as it is and, with eager attention,
  *added* to the scores: a bool or integer mask then adds 1 to the allowed scores and masks
  nothing. So 3-D masks and document ids go in as 4-D additive masks of the run's own type.
- A query that may read nothing has the same huge negative number added to every score, which
  swallows the scores: its attention is uniform over all positions, padding included.
- Weights are assigned tensor by tensor and compared afterwards instead of trusting
  ``from_pretrained``, which can leave the embedding of a checkpoint without ``shared.weight`` random.

    PYTHONPATH=tools python -m oracle.run_reference MODEL_DIR IN.safetensors OUT.safetensors [--float64]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from oracle.cases import Batch, Model
from oracle.make_models import Tensors, read_tensors

EMBEDDING_NAMES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@dataclass(frozen=True)
class Expected:
    """``hidden_states`` of one batch, embeddings first and the final norm's output last."""

    f64: list[np.ndarray]
    f32: list[np.ndarray]


def _exact_norm(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """The norm with its statistics in the type of its input."""
    mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
    return norm.weight * (hidden_states * torch.rsqrt(mean_square + norm.variance_epsilon))


def make_norms_exact(encoder: torch.nn.Module) -> None:
    """Gives every norm statistics in the type of its input."""
    for module in encoder.modules():
        if type(module).__name__.endswith("LayerNorm"):
            module.forward = MethodType(_exact_norm, module)


def stored_tensor(tensors: Tensors, parameter: str) -> torch.Tensor:
    """The stored tensor that a parameter stands for; an embedding may have any of three names."""
    names = EMBEDDING_NAMES if parameter in EMBEDDING_NAMES else (parameter,)
    for name in names:
        if name in tensors:
            return tensors[name]
    raise KeyError(f"nothing is stored for {parameter}, under any of {names}")


def check_weights(encoder: torch.nn.Module, tensors: Tensors) -> None:
    """Raises unless every parameter equals the tensor stored for it."""
    for name, parameter in encoder.named_parameters(remove_duplicate=False):
        if not torch.equal(parameter, stored_tensor(tensors, name).to(parameter.dtype)):
            raise AssertionError(f"{name} differs from the stored tensor")


def load_encoder(folder: Path, oracle: str, dtype: torch.dtype) -> torch.nn.Module:
    """An encoder of transformers, on the folder's own config.json and exactly its stored weights."""
    model_class = getattr(transformers, oracle)
    config = model_class.config_class.from_pretrained(folder)
    config._attn_implementation = "eager"
    encoder = model_class(config).to(dtype).eval().requires_grad_(False)
    tensors = read_tensors(folder)
    for name, parameter in encoder.named_parameters(remove_duplicate=False):
        stored = stored_tensor(tensors, name)
        if stored.shape != parameter.shape:
            raise ValueError(f"{name}: stored as {tuple(stored.shape)}, expected {tuple(parameter.shape)}")
        parameter.data.copy_(stored)
    check_weights(encoder, tensors)
    if dtype == torch.float64:
        make_norms_exact(encoder)
    return encoder


def mask_argument(batch: Batch, dtype: torch.dtype) -> torch.Tensor | None:
    """The batch's mask in the one form that transformers with eager attention takes for it."""
    if batch.attention_mask is not None and batch.attention_mask.ndim == 2:
        return torch.from_numpy(batch.attention_mask)
    allowed = batch.allowed()
    if allowed is None:
        return None
    zero = torch.zeros((), dtype=dtype)
    return torch.where(torch.from_numpy(allowed), zero, torch.finfo(dtype).min)[:, None]


def hidden_states(encoder: torch.nn.Module, batch: Batch) -> list[np.ndarray]:
    """All hidden states of one batch, in the encoder's own type."""
    with torch.no_grad():
        output = encoder(
            input_ids=torch.from_numpy(batch.input_ids),
            attention_mask=mask_argument(batch, next(encoder.parameters()).dtype),
            output_hidden_states=True,
        )
    if not torch.equal(output.hidden_states[-1], output.last_hidden_state):
        raise AssertionError("the last hidden state is not the final norm's output")
    return [state.numpy() for state in output.hidden_states]


class Reference:
    """One model, loaded in both types."""

    def __init__(self, folder: Path, oracle: str) -> None:
        self.f64 = load_encoder(folder, oracle, torch.float64)
        self.f32 = load_encoder(folder, oracle, torch.float32)

    def run(self, batch: Batch) -> Expected:
        """Both runs of one batch."""
        return Expected(hidden_states(self.f64, batch), hidden_states(self.f32, batch))


def main() -> None:
    """Writes what ``quintic encode --input-ids --hidden-states`` should, from transformers."""
    parser = argparse.ArgumentParser(description="Run transformers' encoder over a model folder.")
    parser.add_argument("model", type=Path)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--float64", action="store_true", help="compute and store float64")
    options = parser.parse_args()
    config = json.loads((options.model / "config.json").read_text())
    oracle = Model(options.model.name, "", config).oracle
    encoder = load_encoder(options.model, oracle, torch.float64 if options.float64 else torch.float32)
    states = hidden_states(encoder, Batch(options.input.name, "", **load_file(options.input)))
    named = {f"hidden_states.{index}": state for index, state in enumerate(states)}
    save_file({**named, "last_hidden_state": states[-1]}, options.output)


if __name__ == "__main__":
    main()
