"""What int8 makes of weights, in NumPy and for models of transformers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

# Last part of a weight's name to the product that `keep` names.
PRODUCTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "wi": "wi", "wi_0": "wi", "wi_1": "wi", "wo": "wo"}


def int8(weight: np.ndarray) -> np.ndarray:
    """``weight`` ``[columns, depth]`` as codes of -127 to 127 times a factor a column, which is the
    largest magnitude over 127: the nearest code each, half to even.

    In float32, operation by operation, so that no weight in the middle between two codes becomes another one here.
    """
    largest = np.abs(weight).max(axis=1, keepdims=True)
    most = np.float32(127)
    codes = np.rint(weight * (most / largest))
    return codes * (largest / most)


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
