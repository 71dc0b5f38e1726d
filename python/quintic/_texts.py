"""Texts to vectors and states, in the manner of sentence-transformers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from quintic import _arrays, _quintic
from quintic.errors import InputError

# A batch's activations take some tens of MB; more tokens make it no faster.
BATCH_TOKENS = 4096


class TextMethods:
    """What a model does with texts."""

    _engine: _quintic.Encoder
    _tokenizers: dict[str | None, _quintic.Tokenizer]

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        batch_tokens: int = BATCH_TOKENS,
        pool: str = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        prompt: str = "",
        tokenizer: str | None = None,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = False,
    ) -> Any:
        """One vector a text, ``[texts, width]`` in float32; one text gives one vector.

        Texts of any number and length: they are sorted by length, computed in batches of at
        most ``batch_tokens`` tokens without padding, and come back in order.

        pool : ``mean``, ``first``, ``last``; ``sentence`` for the model's own modules (pooling,
            dense layer, normalisation of a sentence-transformers folder); ``none`` for a list
            of hidden states ``[tokens, d_model]``.
        normalize : scales vectors to length 1; without effect on ``none``.
        max_length : longest text in tokens, its end token included; by default that of the
            model's own modules with pool ``sentence``, else none.
        prompt : put before every text.
        tokenizer : path of a tokenizer, if not the one beside the model or inside its weight file
            (GGUF, and safetensors with a tensor ``spiece_model``).
        show_progress_bar : by default if standard error is a terminal and there are many texts.
        convert_to_tensor : PyTorch tensors in place of arrays.
        """
        is_one = isinstance(texts, str)
        rows = self._ids([texts] if isinstance(texts, str) else list(texts), prompt, pool, max_length, tokenizer)
        if batch_tokens < 1:
            raise InputError(f"`batch_tokens` is {batch_tokens}, expected at least 1")
        with _Progress(len(rows), show_progress_bar) as progress:
            arrays, width = _quintic.encode_rows(
                self._engine,
                rows,
                batch_tokens=batch_tokens,
                pool=pool,
                normalize=normalize and pool != "none",
                progress=progress.update,
            )
        if pool == "none":
            states = [_as(array.reshape(-1, width), convert_to_tensor) for array in arrays]
            return states[0] if is_one else states
        vectors = _as(arrays[0].reshape(-1, width), convert_to_tensor)
        return vectors[0] if is_one else vectors

    def _ids(
        self, texts: list[str], prompt: str, pool: str, max_length: int | None, tokenizer: str | None
    ) -> list[list[int]]:
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {row} is of type {type(text).__name__}, expected str")
        if max_length is None and pool == "sentence":
            max_length = _quintic.sentence_max_length(self._engine)
        return self._tokenizer(tokenizer).encode([prompt + text for text in texts], max_length)

    def _tokenizer(self, path: str | None) -> _quintic.Tokenizer:
        known = self.__dict__.setdefault("_tokenizers", {})
        if path not in known:
            known[path] = self._open_tokenizer(path)
        tokenizer: _quintic.Tokenizer = known[path]
        return tokenizer

    def _open_tokenizer(self, path: str | None) -> _quintic.Tokenizer:
        """The tokenizer at ``path``, else that beside the model, else that inside its weight file."""
        folder = path or self._engine.tokenizer_folder
        if folder is not None:
            return _quintic.Tokenizer.open(str(folder), "auto")
        inside = _quintic.Tokenizer.inside(self._engine)
        if inside is None:
            raise InputError(
                f"{self._engine.path}: the model has no tokenizer beside it, and its weights have none inside\n\n"
                "hint: name one by `tokenizer`"
            )
        return inside

    def encode_for(
        self,
        preset: str,
        prompts: str | Sequence[str],
        *,
        max_length: int | None = None,
        tokenizer: str | None = None,
        output_dtype: Any = "float32",
        convert_to_tensor: bool = False,
    ) -> tuple[Any, Any]:
        """What a diffusion pipeline hands to its image model: ``(states, mask)``.

        ``states`` is ``[prompts, length, d_model]``; ``mask`` ``[prompts, length]`` booleans, or
        ``None`` where the pipeline hands none on. Text cleaning, length, mask and padding are
        those of the ``preset``, such as ``flux``, ``sd3`` or ``wan``: see
        :func:`quintic.preset_names`.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        flat, (rows, length), keys, pad_rows, _, kept, image_mask = _quintic.prepare(
            self._engine, preset, texts, max_length, tokenizer
        )
        dtype = _arrays.dtype_name(output_dtype)
        if dtype == "bfloat16" and not convert_to_tensor:
            raise InputError("NumPy has no bfloat16: ask for float32, or set `convert_to_tensor`")
        states, _, _ = self._engine.forward(
            ids=flat.reshape(rows, length),
            embeddings=None,
            mask=None if keys is None else keys.reshape(rows, length),
            pad_rows=pad_rows,
            head_gains=None,
            hidden_states=False,
            attentions=False,
            output=_arrays.DTYPES[dtype],
        )
        width = self._engine.config["d_model"]
        states = _arrays.from_flat(states, (rows, length, width), dtype, convert_to_tensor)[:, :kept]
        mask = None if image_mask is None else _as(image_mask.reshape(rows, kept), convert_to_tensor)
        return states, mask


def _as(array: np.ndarray[Any, Any], as_tensor: bool) -> Any:
    if not as_tensor:
        return array
    import torch

    return torch.from_numpy(array)


class _Progress:
    """A bar of tqdm where it is installed and wanted."""

    def __init__(self, rows: int, is_wanted: bool | None) -> None:
        self._bar: Any = None
        if is_wanted or (is_wanted is None and rows > 1000 and sys.stderr.isatty()):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                if is_wanted:
                    raise InputError("`show_progress_bar` needs the package tqdm") from None
                return
            self._bar = tqdm(total=rows, unit=" texts")

    def update(self, done: int) -> None:
        """Shows that ``done`` texts are ready."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


class TextEncoder(TextMethods):
    """An encoder for texts alone, without PyTorch."""

    def __init__(self, engine: _quintic.Encoder) -> None:
        self._engine = engine


def load(
    path: str, dtype: str, weights: str | None = None, keep: tuple[str, ...] | None = None
) -> TextEncoder:
    """Loads the encoder of a path or repository id for texts alone."""
    from quintic import _arguments

    arguments = {"dtype": dtype, "weights": weights, "keep": keep}
    engine = _quintic.Encoder.load(path, _arguments.files({}), _arguments.computing(arguments))
    return TextEncoder(engine)
