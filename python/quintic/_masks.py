"""Attention masks of every shape that Hugging Face takes, as flags of the engine's two kinds.

==========================  ===============================================================
shape                       meaning of a value
==========================  ===============================================================
``[rows, len]``             1 or ``True``: the token is real, 0 or ``False``: it is padding
``[rows, len, len]``        the same for every pair (query, key)
``[rows, 1, len, len]``     booleans as above; floats are added to scores: 0 is visible, the
                            lowest number of the type or minus infinity is not
==========================  ===============================================================

A four-dimensional mask may have one row for all rows, one query for all queries, and as many
heads as the model if it says the same of each. Anything that would be a different amount of
attention per head, or neither seen nor unseen, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quintic import _arrays
from quintic.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What is added to a hidden score is at least so low: float16's lowest number is -65504, and
# programs write -1e4 too. No visible score is lowered so far.
HIDDEN = -1e4


def flags(mask: Any, rows: int, length: int) -> NDArray[np.bool_] | None:
    """``[rows, len]`` or ``[rows, len, len]`` flags, ``None`` if all is visible."""
    if mask is None:
        return None
    array = _arrays.to_numpy(mask, "attention_mask")
    if array.ndim == 4:
        return _four_dimensional(array, rows, length)
    expected: dict[int, tuple[int, ...]] = {2: (rows, length), 3: (rows, length, length)}
    if array.shape != expected.get(array.ndim):
        raise InputError(
            f"`attention_mask` has shape {list(array.shape)}, expected {list(expected[2])}, "
            f"{list(expected[3])} or [{rows}, 1, {length}, {length}]"
        )
    return _simplest(_zero_or_one(array))


def _four_dimensional(array: NDArray[Any], rows: int, length: int) -> NDArray[np.bool_] | None:
    found = array.shape
    if found[0] not in (1, rows) or found[2] not in (1, length) or found[3] != length or found[1] == 0:
        raise InputError(
            f"`attention_mask` has shape {list(found)}, expected [{rows}, 1, {length}, {length}]"
        )
    seen = array if array.dtype == np.bool_ else _additive(array)
    if not (seen == seen[:, :1]).all():
        raise UnsupportedError("`attention_mask` differs between heads, which has no kernel here")
    if found[2] == 1:
        return _simplest(np.broadcast_to(seen[:, 0, 0], (rows, length)))
    return _simplest(np.broadcast_to(seen[:, 0], (rows, length, length)))


def _additive(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype.kind != "f":
        raise InputError(
            f"`attention_mask` of four dimensions is of type {array.dtype}, expected booleans, or floats "
            "that are added to scores"
        )
    visible: NDArray[np.bool_] = array == 0
    hidden: NDArray[np.bool_] = array <= HIDDEN
    if not (visible | hidden).all():
        strange = array[~(visible | hidden)].flat[0]
        raise UnsupportedError(
            f"`attention_mask` of four dimensions holds {strange}, expected 0 for visible pairs and "
            "the lowest float for hidden ones"
        )
    return visible


def _zero_or_one(array: NDArray[Any]) -> NDArray[np.bool_]:
    if array.dtype == np.bool_:
        return array
    seen: NDArray[np.bool_] = array != 0
    if array.dtype.kind not in "iuf" or not (array[seen] == 1).all():
        strange = next((value for value in array[seen].flat if value != 1), array.dtype)
        raise InputError(f"`attention_mask` holds {strange}, expected 0 and 1")
    return seen


def _simplest(seen: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """``None`` for a mask that hides nothing, one flag a key where queries do not differ."""
    if seen.all():
        return None
    if seen.ndim == 3 and (seen == seen[:, :1]).all():
        seen = seen[:, 0]
    return np.ascontiguousarray(seen)
