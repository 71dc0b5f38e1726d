"""What int8 makes of weights, in NumPy and for models of transformers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

# Last part of a weight's name to the product that `keep` names.
PRODUCTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "wi": "wi", "wi_0": "wi", "wi_1": "wi", "wo": "wo"}


# Shares of the step with which a column's largest weight is the code -128: the one with the least squared error is taken.
SHARES = [np.float32(percent) / np.float32(100) for percent in range(100, 79, -1)]
LANES = 16


def total(values: np.ndarray) -> np.ndarray:
    """Sums of the rows of float32 in the engine's order: 16 sums, of each 16th value, then those from the first on."""
    lanes = np.zeros((len(values), -(-values.shape[1] // LANES) * LANES), np.float32)
    lanes[:, : values.shape[1]] = values
    sums = np.zeros((len(values), LANES), np.float32)
    for block in np.split(lanes, lanes.shape[1] // LANES, axis=1):
        sums += block
    return np.cumsum(sums, axis=1, dtype=np.float32)[:, -1:]


def int8(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[columns, depth]`` as codes of -128 to 127 times a factor a column: the nearest codes over the best step, and the
    factor that fits them best.

    In float32, operation by operation, so that no weight in the middle between two codes becomes another one here, and no step
    another one.
    """
    at = np.abs(weight).argmax(axis=1)[:, None]
    signed = np.take_along_axis(weight, at, axis=1)
    largest, sign = np.abs(signed), -np.copysign(np.float32(1), signed)
    most = np.float32(128)
    factor, inverse = largest / most, most / largest
    best, least = np.zeros_like(weight), np.full_like(largest, np.inf)
    for share in SHARES:
        value = weight * (sign * inverse / share)
        code = np.clip(np.rint(value), -128, 127)
        distance = value - code
        products = total(distance * code)
        fit = products / total(code * code)
        error = share * share * (total(distance * distance) - products * fit)
        made = code * (sign * factor * share * (np.float32(1) + fit))
        best, least = np.where(error < least, made, best), np.minimum(error, least)
    return best


def rounded(model: Any, keep: Collection[str] = ()) -> Any:
    """A copy of a model of transformers whose products have the values of int8.

    A tied head gets a table of its own: embeddings are not rounded.
    """
    made = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            product = PRODUCTS.get(name.split(".")[-2])
            if product is not None and product not in keep:
                weight.copy_(torch.from_numpy(int8(weight.numpy())))
        if hasattr(made, "lm_head") and "head" not in keep:
            table = made.lm_head.weight.detach().numpy()
            made.lm_head = torch.nn.Linear(table.shape[1], table.shape[0], bias=False)
            made.lm_head.weight.copy_(torch.from_numpy(int8(table)))
    return made
