"""The T5 family, encoders and decoders: Hugging Face's classes and numbers, computed faster.

A program written for transformers changes its import line::

    from quintic import T5EncoderModel        # was: from transformers import T5EncoderModel

Nothing is imported before it is used: PyTorch and transformers only with the classes that
stand in for theirs, and neither is needed for :func:`encode`.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from quintic import errors
from quintic._quintic import __version__, preset_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quintic._classes import AutoT5Encoder
    from quintic._generation import (
        MT5ForConditionalGeneration,
        T5ForConditionalGeneration,
        UMT5ForConditionalGeneration,
    )
    from quintic._models import EncoderModel
    from quintic._outputs import EncoderOutput, NAIT5EncoderOutput
    from quintic._sentences import SentenceTransformerModule

    class T5EncoderModel(EncoderModel): ...

    class MT5EncoderModel(EncoderModel): ...

    class UMT5EncoderModel(EncoderModel): ...

    class NAIT5EncoderModel(EncoderModel): ...


__all__ = [
    "AutoT5Encoder",
    "EncoderOutput",
    "MT5EncoderModel",
    "MT5ForConditionalGeneration",
    "NAIT5EncoderModel",
    "NAIT5EncoderOutput",
    "SentenceTransformerModule",
    "T5EncoderModel",
    "T5ForConditionalGeneration",
    "UMT5EncoderModel",
    "UMT5ForConditionalGeneration",
    "__version__",
    "encode",
    "errors",
    "preset_names",
]

_BUILT = ("T5EncoderModel", "MT5EncoderModel", "UMT5EncoderModel", "NAIT5EncoderModel")
_LAZY = {
    "AutoT5Encoder": "_classes",
    "EncoderOutput": "_outputs",
    "NAIT5EncoderOutput": "_outputs",
    "SentenceTransformerModule": "_sentences",
    "MT5ForConditionalGeneration": "_generation",
    "T5ForConditionalGeneration": "_generation",
    "UMT5ForConditionalGeneration": "_generation",
}
# A class must be one object, however many threads ask for it first.
_building = threading.RLock()


def __getattr__(name: str) -> Any:
    from importlib import import_module

    with _building:
        if name in globals():
            return globals()[name]
        if name in _BUILT:
            found: Any = import_module("quintic._classes").build(name)
        elif name in _LAZY:
            found = getattr(import_module(f"quintic.{_LAZY[name]}"), name)
        else:
            raise AttributeError(f"module 'quintic' has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def encode(
    texts: str | Sequence[str],
    model: Any,
    *,
    preset: str | None = None,
    dtype: Any = "auto",
    weights: str | None = None,
    keep: str | Sequence[str] | None = None,
    **arguments: Any,
) -> Any:
    """Encodes texts with a model: a path or repository id, loaded once and kept, or a model.

    Without a ``preset``, one vector a text: arguments of ``model.encode``. With one, what that
    diffusion pipeline hands to its image model, ``(states, mask)``: arguments of
    ``model.encode_for``. ``dtype``, ``weights`` and ``keep`` are those of ``from_pretrained``, for a
    model that is loaded here.
    """
    if isinstance(model, str) or hasattr(model, "__fspath__"):
        model = _loaded(model, dtype, {"weights": weights, "keep": keep})
    else:
        for name, value, default in (("dtype", dtype, "auto"), ("weights", weights, None), ("keep", keep, None)):
            if value != default:
                raise errors.InputError(f"`{name}` is for models that are loaded by `encode`")
    if preset is None:
        return model.encode(texts, **arguments)
    return model.encode_for(preset, texts, **arguments)


_kept: dict[tuple[str, str, str | None, tuple[str, ...] | None], Any] = {}


def _loaded(path: Any, dtype: Any, integers: dict[str, Any]) -> Any:
    """The model last asked for stays loaded: one, since models are large."""
    import os

    from quintic._arrays import dtype_name
    from quintic._texts import load
    from quintic._weights import chosen

    integers = chosen(integers)
    keep = integers["keep"]
    key = (os.fspath(path), dtype_name(dtype), integers["weights"], None if keep is None else tuple(keep))
    with _building:
        if key not in _kept:
            _kept.clear()
            _kept[key] = load(*key)
        return _kept[key]
