"""Arrays in and out: what users hand over becomes NumPy arrays of one type, and back.

PyTorch is looked for, never imported: whoever has a tensor has imported it already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from quintic.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The engine's names of float types.
DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
LONG_NAMES = {short: long for long, short in DTYPES.items()}
# And what their names are elsewhere.
ALIASES = {"float": "float32", "half": "float16", **LONG_NAMES}


def is_torch(value: Any) -> bool:
    """Whether it is a PyTorch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any, name: str) -> NDArray[Any]:
    """Shares memory where it can: a CPU tensor, an array, anything with DLPack or the buffer protocol."""
    if is_torch(value):
        if value.device.type != "cpu":
            raise UnsupportedError(
                f"`{name}` is on device `{value.device}`, the model is on the CPU\n\n"
                "hint: move it there by `.cpu()`, or the model to a CUDA device by `.to(...)`"
            )
        value = value.detach()
        if value.layout != sys.modules["torch"].strided:
            raise InputError(f"`{name}` has layout {value.layout}, expected a dense tensor")
        if value.is_conj() or value.is_neg():
            value = value.resolve_conj().resolve_neg()
        # NumPy has no bfloat16; widening loses nothing.
        value = value.float() if value.dtype == sys.modules["torch"].bfloat16 else value
        shared: NDArray[Any] = value.numpy()
        return shared
    try:
        array = np.from_dlpack(value) if _is_foreign(value) else np.asarray(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"`{name}` cannot be read as an array: {error}") from error
    if array.dtype == object:
        raise InputError(f"`{name}` is no array: its rows differ in length, or it holds other things than numbers")
    return array


def fetched(value: Any) -> Any:
    """On the CPU, if it is a tensor on a CUDA device: what a batch looks like is planned there."""
    return value.detach().cpu() if is_torch(value) and value.device.type == "cuda" else value


def _is_foreign(value: Any) -> bool:
    """An array of another library, not NumPy's."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)


def integers(value: Any, name: str) -> NDArray[np.int64]:
    """``[rows, len]`` integers of any type, contiguous."""
    array = to_numpy(value, name)
    if array.dtype.kind not in "iu":
        raise InputError(f"`{name}` is of type {array.dtype}, expected integers")
    if array.ndim != 2:
        raise InputError(f"`{name}` has shape {list(array.shape)}, expected [rows, len]")
    if array.dtype == np.uint64 and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"`{name}` holds {array.max()}, which is no token id")
    return np.ascontiguousarray(array, dtype=np.int64)


def floats(value: Any, name: str, shape: tuple[int | None, ...], meaning: str) -> NDArray[np.float32]:
    """Floats of this shape (``None``: any extent) as contiguous float32."""
    array = to_numpy(value, name)
    if array.dtype.kind not in "fiub":
        raise InputError(f"`{name}` is of type {array.dtype}, expected floats")
    fits = array.ndim == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=False)
    )
    if not fits:
        raise InputError(f"`{name}` has shape {list(array.shape)}, expected {meaning}")
    return np.ascontiguousarray(array, dtype=np.float32)


def dtype_name(dtype: Any) -> str:
    """``float32``, ``bfloat16``, ``float16`` or ``auto``, from a torch or NumPy type or a name."""
    text = str(dtype) if not isinstance(dtype, type) else np.dtype(dtype).name
    text = text.removeprefix("torch.")
    text = ALIASES.get(text, text)
    if text in DTYPES or text == "auto":
        return text
    raise UnsupportedError(f"dtype `{dtype}` cannot be computed in, expected float32, bfloat16 or float16")


def torch_dtype(name: str) -> Any:
    """PyTorch's type of a name of ours."""
    import torch

    return getattr(torch, name)


def from_flat(values: NDArray[Any], shape: Iterable[int], dtype: str, as_torch: bool) -> Any:
    """A flat array of the engine in the caller's kind of array, sharing its memory.

    16-bit types come as bits. NumPy has float16 but no bfloat16, so that without PyTorch the
    engine is asked for float32 in its place.
    """
    values = values.reshape(tuple(shape))
    if as_torch:
        import torch

        if values.dtype == np.uint16:
            # PyTorch before 2.3 has no uint16; the sign does not matter to bits.
            return torch.from_numpy(values.view(np.int16)).view(torch_dtype(dtype))
        return torch.from_numpy(values)
    return values.view(np.float16) if values.dtype == np.uint16 else values


def from_bytes(values: NDArray[np.uint8], shape: Iterable[int], stored: str) -> Any:
    """A stored tensor as a PyTorch tensor in its own type."""
    import torch

    long = LONG_NAMES.get(stored)
    if long is None:
        raise UnsupportedError(f"a weight of type `{stored}` has no tensor")
    return torch.from_numpy(values).view(torch_dtype(long)).reshape(tuple(shape))
