"""Weights in integers: how they are asked for, shown and counted."""

from __future__ import annotations

import math
import os
import re
from typing import Any, Generic, TypeVar

from quintic import _names
from quintic._quintic import Encoder, Seq2Seq
from quintic.errors import InputError, UnsupportedError

TYPES = ("int8", "int4", "w8a8")
PRODUCTS = ("qkv", "o", "wi", "wo", "head")
# Those of one layer, or of some that follow each other.
OF_LAYERS = re.compile(r"(encoder|decoder)\.(\d+)(?:-(\d+))?\.(qkv|o|wi|wo)")
# The number of a tensor's layer.
BLOCK = re.compile(r"(?:(encoder|decoder)\.)?block\.(\d+)\.")

# Where other packages' ways to ask for them lead to.
HINT = 'weights in integers are asked for by `weights="int8"`, `"int4"` or `"w8a8"`, and are made when a model is loaded'

# Bytes of a factor, of which every output column has one.
FACTOR_BYTES = 4
# Bytes of a weight. A code of 4 bits shares a multiplier of a byte with 31 others.
CODE_BYTES = {"int8": 1.0, "w8a8": 1.0, "int4": 0.5 + 1 / 32}


def chosen(arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes out ``weights``, ``keep`` and ``plan``; what is not given is None, and left to the model.

    >>> chosen({"weights": "int8", "keep": "wo,head"})
    {'weights': 'int8', 'keep': ['wo', 'head'], 'plan': None}
    >>> chosen({"weights": "int3"})
    Traceback (most recent call last):
    quintic.errors.UnsupportedError: `weights` is 'int3', expected 'int8', 'int4' or 'w8a8'
    """
    weights, keep = arguments.pop("weights", None), arguments.pop("keep", None)
    plan = arguments.pop("plan", None)
    if weights is not None and not (isinstance(weights, str) and weights in TYPES):
        raise UnsupportedError(f"`weights` is {weights!r}, expected {_listed(TYPES)}")
    if keep is not None and weights is None:
        raise InputError(f"`keep` is {keep!r}, but it names products that `weights` leaves out, which is not given")
    return {
        "weights": weights,
        "keep": None if keep is None else _products(keep),
        "plan": None if plan is None else os.fspath(plan),
    }


def _products(keep: Any) -> list[str]:
    """Names of products, from any iterable of them or from a text as the command line takes it."""
    try:
        names = keep.split(",") if isinstance(keep, str) else list(keep)
    except TypeError:
        names = [keep]
    for name in names:
        if not (isinstance(name, str) and (name in PRODUCTS or OF_LAYERS.fullmatch(name))):
            raise UnsupportedError(
                f"`keep` holds {name!r}, expected {_listed(PRODUCTS)}, or those of layers such as 'encoder.0-3.wo'"
            )
    return names


def _listed(names: tuple[str, ...]) -> str:
    quoted = [repr(name) for name in names]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def type_of(engine: Encoder | Seq2Seq) -> str | None:
    """The integers that the engine keeps weights in, or None."""
    return engine.weights if engine.weights in TYPES else None


Engine = TypeVar("Engine", Encoder, Seq2Seq)


class WeightProperties(Generic[Engine]):
    """What a model says of its weights in integers."""

    _engine: Engine

    @property
    def weights(self) -> str | None:
        """``int8``, ``int4`` or ``w8a8`` where weights of products are integers, else None."""
        return type_of(self._engine)

    @property
    def keep(self) -> tuple[str, ...]:
        """Products whose weights :attr:`weights` leaves as they are."""
        return tuple(self._engine.keep)


def described(engine: Encoder | Seq2Seq) -> str:
    """For a ``repr``, behind the type that is computed in; empty where no weight is an integer."""
    weights = type_of(engine)
    if weights is None:
        return ""
    kept = f" without {' and '.join(engine.keep)}" if engine.keep else ""
    return f", {weights} weights{kept}"


def asked_for(engine: Encoder | Seq2Seq) -> dict[str, Any]:
    """The arguments that load the same weights in the same integers."""
    weights = type_of(engine)
    # A plan ends up in these, whose error it measured in the type that it was made for.
    return {"weights": weights, "keep": None if weights is None else engine.keep, "plan": None}


def stored_bytes(engine: Encoder, name: str, shape: tuple[int, ...], value_bytes: int) -> int:
    """Bytes of a tensor of the encoder as it is kept, without what fills panels up."""
    weights, product = type_of(engine), _names.product(name)
    n_values = math.prod(shape)
    if weights is None or product is None or _is_kept(engine.keep, name, product):
        return n_values * value_bytes
    return math.ceil(n_values * CODE_BYTES[weights]) + shape[0] * FACTOR_BYTES


def _is_kept(keep: list[str], name: str, product: str) -> bool:
    """Whether a product of the encoder, of which this tensor is a part, is left out of the integers.

    >>> name = "encoder.block.3.layer.1.DenseReluDense.wo.weight"
    >>> _is_kept(["encoder.0-3.wo"], name, "wo"), _is_kept(["encoder.4.wo", "qkv"], name, "wo")
    (True, False)
    """
    block = BLOCK.match(name)
    for entry in keep:
        layers = OF_LAYERS.fullmatch(entry)
        if layers is None:
            if entry == product:
                return True
        elif block is not None:
            half, first, last, kind = layers.groups()
            is_in = int(first) <= int(block[2]) <= int(last or first)
            if (half, kind) == (block[1] or "encoder", product) and is_in:
                return True
    return False
