"""Names of an encoder's tensors, in the order of Hugging Face's ``state_dict``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

EMBEDDING = "shared.weight"
TIED_EMBEDDING = "encoder.embed_tokens.weight"
# Where checkpoints keep the embedding; MADLAD has only the decoder's.
STORED_EMBEDDINGS = (EMBEDDING, TIED_EMBEDDING, "decoder.embed_tokens.weight")


# Parts of a layer that are products, under the names that `keep` has for them.
PRODUCTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "wi": "wi", "wi_0": "wi", "wi_1": "wi", "wo": "wo"}


def product(name: str) -> str | None:
    """The product that a tensor is the weights of, or part of them; None if it is none's.

    >>> product("encoder.block.0.layer.1.DenseReluDense.wi_0.weight"), product("shared.weight")
    ('wi', None)
    """
    parts = name.split(".")
    return PRODUCTS.get(parts[-2]) if len(parts) > 2 else None


def shapes(config: dict[str, Any], gated: bool, bias_per_layer: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor but the tied copy of the embedding."""
    d_model, d_ff = config["d_model"], config["d_ff"]
    inner = config["num_heads"] * config["d_kv"]
    yield EMBEDDING, (config["vocab_size"], d_model)
    for layer in range(config["num_layers"]):
        attention = f"encoder.block.{layer}.layer.0"
        feed_forward = f"encoder.block.{layer}.layer.1"
        for part in "qkv":
            yield f"{attention}.SelfAttention.{part}.weight", (inner, d_model)
        yield f"{attention}.SelfAttention.o.weight", (d_model, inner)
        if layer == 0 or bias_per_layer:
            buckets = config["relative_attention_num_buckets"]
            yield f"{attention}.SelfAttention.relative_attention_bias.weight", (buckets, config["num_heads"])
        yield f"{attention}.layer_norm.weight", (d_model,)
        for part in ("wi_0", "wi_1") if gated else ("wi",):
            yield f"{feed_forward}.DenseReluDense.{part}.weight", (d_ff, d_model)
        yield f"{feed_forward}.DenseReluDense.wo.weight", (d_model, d_ff)
        yield f"{feed_forward}.layer_norm.weight", (d_model,)
    yield "encoder.final_layer_norm.weight", (d_model,)


def count(config: dict[str, Any], gated: bool, bias_per_layer: bool, with_embeddings: bool = True) -> int:
    """Number of parameters, the tied embedding counted once. Position biases are embeddings to
    PyTorch, too."""
    return sum(
        math.prod(shape)
        for name, shape in shapes(config, gated, bias_per_layer)
        if with_embeddings or not (name == EMBEDDING or name.endswith("relative_attention_bias.weight"))
    )
