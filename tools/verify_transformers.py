"""Measures transformers against the states of ``quintic verify --save-states``.

    python tools/verify_transformers.py STATES.safetensors MODEL [--compute f32,bf16,f16] [-o OUT.json]

STATES holds ``last_hidden_state`` ``[tokens, d_model]``, ``input_ids`` ``[tokens]`` and
``row_starts`` ``[rows + 1]``. Each row goes through transformers' encoder by itself, so that there is
neither padding nor a mask. The same figures as ``quintic verify`` shows are printed, and written to
OUT.json, which ``quintic verify --others OUT.json`` puts into its table and plot. Differences are
taken in float64.

Needs NumPy, safetensors, torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class InputError(Exception):
    """The file of states is not one, or does not fit the model."""


def read_states(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States in float64, ids, and where rows begin."""
    try:
        tensors = load_file(path)
        states = tensors["last_hidden_state"].astype(np.float64)
        ids, starts = tensors["input_ids"], tensors["row_starts"]
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: {error}") from error
    except KeyError as error:
        raise InputError(f"{path}: there is no tensor {error}; write it by `quintic verify --save-states`") from error
    if states.ndim != 2 or ids.shape != states.shape[:1] or starts.size < 1:
        raise InputError(f"{path}: shapes {states.shape}, {ids.shape} and {starts.shape} do not belong together")
    if starts[0] != 0 or starts[-1] != ids.size or (np.diff(starts) < 1).any():
        raise InputError(f"{path}: `row_starts` does not rise from 0 to {ids.size}")
    return states, ids, starts


def quantile(ordered: np.ndarray, q: float) -> float:
    """The smallest value that at least a share ``q`` of all does not exceed, as quintic has it."""
    place = min(max(math.ceil(ordered.size * q), 1), ordered.size) - 1
    return float(ordered[place])


def cosines(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of each token; 1 where both vectors are equal, 0 where one alone is zero."""
    sizes = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        angles = np.clip((exact * found).sum(axis=1) / sizes, -1.0, 1.0)
    angles = np.where(sizes == 0.0, 0.0, angles)
    return np.where((exact == found).all(axis=1), 1.0, angles)


def measure(name: str, exact: np.ndarray, found: np.ndarray, ids: np.ndarray, starts: np.ndarray) -> dict[str, Any]:
    """A result as ``quintic verify --json`` lists it; what is not finite becomes null, as JSON has it."""
    with np.errstate(invalid="ignore"):
        difference = np.where(exact == found, 0.0, np.abs(exact - found))
    ordered = np.sort(difference, axis=None)
    by_token = cosines(exact, found)
    worst = int(np.argmin(by_token))  # of NaN, the first
    row = int(np.searchsorted(starts, worst, side="right")) - 1
    error, size = (float(np.square(values).sum()) for values in (difference, exact))

    def number(value: float) -> float | None:
        return float(value) if math.isfinite(value) else None

    return {
        "name": name,
        "quantiles": {str(q): number(quantile(ordered, q)) for q in QUANTILES},
        "max": number(quantile(ordered, 1.0)),
        "relative_rms": 0.0 if error == 0.0 else number(math.sqrt(error / size)) if size > 0.0 else None,
        "cosine": {
            "mean": number(float(by_token.mean())),
            "least": number(float(by_token[worst])),
            "row": row,
            "position": worst - int(starts[row]),
            "id": int(ids[worst]),
        },
    }


def run(model: str, dtype: str, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Last hidden states of all rows in float64, computed by transformers in ``dtype``."""
    import torch
    from transformers import AutoModelForTextEncoding

    encoder = AutoModelForTextEncoding.from_pretrained(model, dtype=getattr(torch, DTYPES[dtype])).eval()
    rows = []
    with torch.no_grad():
        for begin, end in zip(starts[:-1], starts[1:], strict=True):
            row = torch.from_numpy(ids[begin:end])[None]
            rows.append(encoder(input_ids=row).last_hidden_state[0].double().numpy())
    return np.concatenate(rows)


def table(results: list[dict[str, Any]]) -> str:
    """The columns of ``quintic verify``."""

    def text(value: float | None, form: str = ".2e") -> str:
        return "NaN" if value is None else format(value, form)

    lines = [["compute", *map(str, QUANTILES), "max", "rel. rms", "least cosine"]]
    for result in results:
        values = [*result["quantiles"].values(), result["max"], result["relative_rms"]]
        lines.append([result["name"], *map(text, values), text(result["cosine"]["least"], ".8f")])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join([line[0].strip().ljust(widths[0]), *padded[at][1:]]) for at, line in enumerate(lines))


def main() -> int:
    """Prints the table and writes the results."""
    parser = argparse.ArgumentParser(description="Measure transformers against quintic's reference.")
    parser.add_argument("states", type=Path, help="file of `quintic verify --save-states`")
    parser.add_argument("model", help="the same model, as transformers takes it")
    parser.add_argument("--compute", default="f32,bf16,f16", help="types, such as f32,bf16")
    parser.add_argument("-o", "--output", type=Path, help="JSON for `quintic verify --others`")
    options = parser.parse_args()
    dtypes = options.compute.split(",")
    unknown = [dtype for dtype in dtypes if dtype not in DTYPES]
    if unknown:
        parser.error(f"argument --compute: found {unknown[0]!r}, expected some of {', '.join(DTYPES)}")
    try:
        exact, ids, starts = read_states(options.states)
        results = []
        for dtype in dtypes:
            found = run(options.model, dtype, ids, starts)
            if found.shape != exact.shape:
                raise InputError(f"{options.states}: states are {exact.shape}, the model's are {found.shape}")
            results.append(measure(f"transformers {dtype}", exact, found, ids, starts))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if options.output is not None:
        body = {
            "rows": starts.size - 1,
            "tokens": ids.size,
            "d_model": exact.shape[1],
            "reference_rms": float(np.sqrt(np.square(exact).mean())),
            "results": results,
        }
        options.output.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
