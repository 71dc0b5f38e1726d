"""How far an output is from the truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)

# Above these an output counts as off, by type of the products: relative root mean square
# distance from float64. They tell wrong from right and do not rank: a missing position bias or a
# wrong mask gives about 1, while one rounding of every input and weight to bf16 gives about 0.01 and
# of every weight to 4 bits about 0.15.
BOUNDS = {"f32": 5e-5, "f32-high": 5e-4, "f16": 2e-2, "bf16": 0.1, "int8": 0.25, "int4": 0.5}

# The same for generated tokens, in natural logarithms a token (see ``judge.py``). A token at
# random is some 4 worse than the best; rounding moves scores by a few hundredths in bf16.
REGRETS = {"f32": 1e-3, "bf16": 0.1, "int8": 0.25}


@dataclass(frozen=True)
class Distance:
    """|output - truth|: quantiles, largest, and root mean square relative to the truth's own."""

    quantiles: tuple[float, ...]
    largest: float
    relative_rms: float


def read_output(path: Path) -> np.ndarray:
    """A ``.npy``, or anything else as bare little-endian f32."""
    return np.load(path) if path.suffix == ".npy" else np.fromfile(path, dtype="<f4")


def real_tokens(output: np.ndarray, lengths: list[int], d_model: int) -> np.ndarray:
    """``[tokens, d_model]`` without padding, from that itself or from ``[rows, width, d_model]``."""
    tokens, rows = sum(lengths), len(lengths)
    if output.size == tokens * d_model:
        return output.reshape(tokens, d_model)
    width, rest = divmod(output.size, rows * d_model)
    if rest or width < max(lengths):
        raise ValueError(f"output of shape {output.shape}, expected {tokens} tokens of {d_model}")
    padded = output.reshape(rows, width, d_model)
    return np.concatenate([row[:length] for row, length in zip(padded, lengths, strict=True)])


def distance(output: np.ndarray, truth: np.ndarray) -> Distance:
    """Of two arrays of the same shape; values that are not finite give infinity."""
    if output.shape != truth.shape:
        raise ValueError(f"output of shape {output.shape}, expected {truth.shape}")
    wide = output.astype(np.float64)
    if not np.isfinite(wide).all():
        return Distance((np.inf,) * len(QUANTILES), np.inf, np.inf)
    error = np.abs(wide - truth)
    relative = float(np.sqrt(np.mean(error**2) / np.mean(truth**2)))
    return Distance(tuple(np.quantile(error, QUANTILES).tolist()), float(error.max()), relative)


def distance_of_file(path: Path, truth: np.ndarray, lengths: list[int]) -> Distance:
    """Of an engine's saved output; :class:`ValueError` says what is wrong with its form."""
    if not path.is_file():
        raise ValueError("no output was written")
    return distance(real_tokens(read_output(path), lengths, truth.shape[1]), truth)


def check_tokens(rows: object, n_rows: int, new_tokens: int, vocab: int) -> None:
    """:class:`ValueError` unless these are ``n_rows`` rows of ``new_tokens`` tokens."""
    if not isinstance(rows, list) or len(rows) != n_rows:
        raise ValueError(f"found {len(rows) if isinstance(rows, list) else rows} rows, expected {n_rows}")
    for row in rows:
        if not isinstance(row, list) or len(row) != new_tokens:
            raise ValueError(f"a row of {len(row) if isinstance(row, list) else row} tokens, expected {new_tokens}")
        if not all(isinstance(token, int) and 0 <= token < vocab for token in row):
            raise ValueError(f"a token outside the vocabulary of {vocab}")
