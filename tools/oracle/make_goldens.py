"""Writes the goldens that Rust tests read: tiny models, inputs, and every layer's float64 result.

    PYTHONPATH=tools python -m oracle.make_goldens [DEST]

DEST is ``testdata/goldens`` unless given. The layout is described in ``testdata/README.md``.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from oracle.cases import GOLDENS, REPOSITORY, Batch, Model
from oracle.make_models import write_model
from oracle.run_reference import Expected, Reference

DEST = REPOSITORY / "testdata" / "goldens"
LIMIT_BYTES = 1_500_000


def split(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A float64 array as the sum of two float32 arrays: the nearest, and what it leaves."""
    high = values.astype(np.float32)
    return high, (values - high).astype(np.float32)


def _largest(theirs: list[np.ndarray], truth: list[np.ndarray], where: np.ndarray) -> np.ndarray:
    distances = [np.abs(a[where] - b[where]).max(initial=0.0) for a, b in zip(theirs, truth, strict=True)]
    return np.array(distances, dtype=np.float32)


def golden(batch: Batch, expected: Expected) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of one batch."""
    yield from batch.tensors().items()
    for index, state in enumerate(expected.f64):
        high, low = split(state)
        yield f"hidden_states.{index}.hi", high
        yield f"hidden_states.{index}.lo", low
    yield "f32_error.compute", _largest(expected.f32, expected.f64, np.ones_like(batch.real()))
    yield "f32_error.zero", _largest(expected.f32, expected.f64, batch.real())


def write_golden(model: Model, dest: Path) -> None:
    """One folder: the model and its cases."""
    folder = write_model(model, dest / model.name)
    reference = Reference(folder, model.oracle)
    tensors: dict[str, np.ndarray] = {}
    for name in model.batches:
        batch = model.batch(name)
        for key, value in golden(batch, reference.run(batch)):
            tensors[f"{name.removeprefix('g_')}.{key}"] = np.ascontiguousarray(value)
    save_file(tensors, folder / "cases.safetensors")


def main() -> None:
    """Writes all goldens, in place of those that are there, and says how large they are."""
    parser = argparse.ArgumentParser(description="Write the goldens that Rust tests read.")
    parser.add_argument("dest", type=Path, nargs="?", default=DEST)
    dest: Path = parser.parse_args().dest
    torch.set_num_threads(1)
    shutil.rmtree(dest, ignore_errors=True)
    for model in GOLDENS:
        write_golden(model, dest)
    files = [path for path in dest.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in files)
    print(f"{len(GOLDENS)} models, {total} bytes in {dest}")
    if total > LIMIT_BYTES:
        raise SystemExit(f"error: more than {LIMIT_BYTES} bytes; make the golden models smaller")


if __name__ == "__main__":
    main()
