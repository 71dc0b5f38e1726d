"""What int8 makes of weights, in NumPy and for models of transformers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

# Last part of a weight's name to the product that `keep` names.
PRODUCTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "wi": "wi", "wi_0": "wi", "wi_1": "wi", "wo": "wo"}


# Shares of the step with which a column's largest weight is the code -128: of these the one with the least squared error is taken.
SHARES = (1.0, 0.985, 0.97, 0.955, 0.94, 0.925, 0.91, 0.89, 0.87, 0.84, 0.8, 0.75)


def int8(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[columns, depth]`` as codes of -128 to 127 times a factor a column: the nearest code each, half to even.

    In float32, operation by operation, so that no weight in the middle between two codes becomes another one here. Only the
    squares are summed in float64: they choose between shares, whose errors differ by more than a rounding.
    """
    at = np.abs(weight).argmax(axis=1)[:, None]
    signed = np.take_along_axis(weight, at, axis=1)
    largest, sign = np.abs(signed), -np.copysign(np.float32(1), signed)
    most = np.float32(128)
    factor, inverse = largest / most, most / largest
    codes = [np.clip(np.rint(weight * (sign * inverse / np.float32(share))), -128, 127) for share in SHARES]
    errors = [
        share**2 * np.square(weight * (sign * inverse / np.float32(share)) - code, dtype=np.float64).sum(axis=1)
        for share, code in zip(SHARES, codes, strict=True)
    ]
    best = np.argmin(errors, axis=0)
    chosen = np.take_along_axis(np.stack(codes), best[None, :, None], axis=0)[0]
    return chosen * (sign * factor * np.array(SHARES, np.float32)[best][:, None])


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
