"""The encoder in plain NumPy, written from the definition: a second opinion on the oracle.

In float64 it must agree with the reference to the last few bits, which shows that transformers is
called rightly. With float32 results and float64 sums it stands in for quintic where the harness
itself is tested.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from oracle.cases import Batch, Model
from oracle.make_models import read_tensors
from oracle.run_reference import stored_tensor


def relative_buckets(length: int, n_buckets: int, max_distance: int) -> np.ndarray:
    """The bias bucket of every (query, key): half the buckets for each direction, then logarithmic."""
    half = n_buckets // 2
    exact = half // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    scale = math.log(max_distance / exact)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(scale)
    logarithmic = exact + (ratio * np.float32(half - exact)).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(logarithmic, half - 1))
    return bucket + half * (offset > 0)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_fast(x: np.ndarray) -> np.ndarray:
    """The tanh form with the constant written out to ten digits, as transformers has it."""
    return 0.5 * x * (1 + np.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    erf = np.array([math.erf(value) for value in (x.ravel() / math.sqrt(2)).tolist()], dtype=x.dtype)
    return 0.5 * x * (1 + erf.reshape(x.shape))


ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "linear": lambda x: x,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": _gelu_erf,
    "gelu_fast": _gelu_fast,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
}


class PlainEncoder:
    """One model folder; every result is rounded to ``dtype``, norms and products are summed in float64."""

    def __init__(self, folder: Path, dtype: type[np.floating[Any]]) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.model = Model(folder.name, "", self.config)
        stored = read_tensors(folder)
        names = [name for name in stored if name.startswith("encoder.")]
        self.weights = {name: stored[name].double().numpy() for name in names}
        self.embedding = stored_tensor(stored, "shared.weight").double().numpy().astype(dtype)
        self.dtype = dtype
        self.activation = ACTIVATIONS[self._activation_name()]

    def _activation_name(self) -> str:
        """``dense_act_fn``, if written, wins over what ``feed_forward_proj`` implies."""
        default = "relu" if self.model.oracle == "T5EncoderModel" else "gated-gelu"
        proj = self.config.get("feed_forward_proj", default)
        implied = "gelu_new" if proj == "gated-gelu" else proj.split("-")[-1]
        return self.config.get("dense_act_fn", implied)

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        wide = x.astype(np.float64)
        mean_square = np.mean(wide * wide, axis=-1, keepdims=True)
        root = np.sqrt(mean_square + self.config.get("layer_norm_epsilon", 1e-6))
        return (wide / root * self.weights[f"{name}.weight"]).astype(self.dtype)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return (x.astype(np.float64) @ self.weights[f"{name}.weight"].T).astype(self.dtype)

    def _bias(self, block: int, length: int) -> np.ndarray:
        """``[heads, len, len]``; T5's blocks all use the first block's table."""
        owner = block if self.model.is_umt5 else 0
        table = self.weights[f"encoder.block.{owner}.layer.0.SelfAttention.relative_attention_bias.weight"]
        distance = self.config.get("relative_attention_max_distance", 128)
        return table[relative_buckets(length, len(table), distance)].transpose(2, 0, 1).astype(self.dtype)

    def _attention(self, x: np.ndarray, name: str, bias: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
        """Scores are not scaled; a query that reads nothing reads everything alike."""
        rows, length, _ = x.shape
        heads = self.config["num_heads"]
        q, k, v = (
            self._linear(x, f"{name}.{part}").reshape(rows, length, heads, -1).transpose(0, 2, 1, 3) for part in "qkv"
        )
        scores = q @ k.transpose(0, 1, 3, 2) + bias
        if allowed is not None:
            scores = np.where(allowed[:, None], scores, np.finfo(self.dtype).min)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self._linear((weights @ v).transpose(0, 2, 1, 3).reshape(rows, length, -1), f"{name}.o")

    def _feed_forward(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.model.is_gated:
            inside = self.activation(self._linear(x, f"{name}.wi_0")) * self._linear(x, f"{name}.wi_1")
        else:
            inside = self.activation(self._linear(x, f"{name}.wi"))
        return self._linear(inside, f"{name}.wo")

    def hidden_states(self, batch: Batch) -> list[np.ndarray]:
        """Embeddings, the residual stream after each block but the last, the final norm's output."""
        allowed = batch.allowed()
        x = self.embedding[batch.input_ids]
        states = [x]
        for block in range(self.config["num_layers"]):
            layer = f"encoder.block.{block}.layer"
            bias = self._bias(block, x.shape[1])
            x = x + self._attention(
                self._norm(x, f"{layer}.0.layer_norm"), f"{layer}.0.SelfAttention", bias, allowed
            )
            x = x + self._feed_forward(self._norm(x, f"{layer}.1.layer_norm"), f"{layer}.1.DenseReluDense")
            states.append(x)
        states[-1] = self._norm(x, "encoder.final_layer_norm")
        return states
