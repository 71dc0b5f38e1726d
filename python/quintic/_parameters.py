"""Weights as PyTorch parameters, read again from where they came."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from quintic import _arrays, _names
from quintic._quintic import Encoder
from quintic.errors import UnsupportedError


def tensors(engine: Encoder, dtype: str) -> Iterator[tuple[str, Any]]:
    """Name and value of every tensor but the tied copy of the embedding, in ``dtype``.

    Copies: writing to them changes no model.
    """
    if engine.is_packed:
        raise UnsupportedError(
            f"{engine.path}: the weights are packed for this engine and cannot be listed one by one\n\n"
            "hint: load the model that was packed"
        )
    for name, shape in shapes(engine):
        stored, found, values = engine.tensor(_stored_name(engine, name))
        assert tuple(found) == shape, (name, found, shape)
        yield name, _arrays.from_bytes(values, shape, stored).to(_arrays.torch_dtype(dtype))


def embedding(engine: Encoder, dtype: str) -> Any:
    """The embedding table, ``[vocab, d_model]``."""
    stored, shape, values = engine.tensor(_stored_name(engine, _names.EMBEDDING))
    return _arrays.from_bytes(values, shape, stored).to(_arrays.torch_dtype(dtype))


def shapes(engine: Encoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes, without reading a value."""
    return _names.shapes(engine.config, engine.is_gated, bias_per_layer(engine))


def bias_per_layer(engine: Encoder) -> bool:
    """Whether every layer has a table of position biases: UMT5."""
    return engine.has_tensor("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")


def _stored_name(engine: Encoder, name: str) -> str:
    if name != _names.EMBEDDING:
        return name
    return next((stored for stored in _names.STORED_EMBEDDINGS if engine.has_tensor(stored)), name)
