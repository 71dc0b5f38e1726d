"""Memory and time of ``from_pretrained``, and what the Python call costs beyond the engine's own.

    .venv/bin/python tools/measure_python_load.py MODEL [--dtype bfloat16]
    .venv/bin/python tools/measure_python_load.py --overhead MODEL [--dtype bfloat16]

Memory is the largest resident set during the load beyond that before it, when PyTorch and
transformers are imported already; mapped pages of the files that are still resident count.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path


def resident_bytes(key: str) -> int:
    """``VmRSS`` now or ``VmHWM``, the largest since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def measure_load(folder: str, dtype: str) -> None:
    """Prints what loading takes."""
    import quintic

    # Makes the class, and with it imports what it is a subclass of.
    cls = quintic.AutoT5Encoder
    quintic.T5EncoderModel  # noqa: B018
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    model = cls.from_pretrained(folder, dtype=dtype)
    seconds = time.perf_counter() - start
    peak, after = resident_bytes("VmHWM") - before, resident_bytes("VmRSS") - before
    weights = model.get_memory_footprint()
    print(f"{model!r}")
    print(f"weights {weights / 1e9:.3f} GB; peak {peak / 1e9:.3f} GB, {peak / weights:.3f} of them; "
          f"afterwards {after / 1e9:.3f} GB; {seconds:.1f} s")


def measure_overhead(folder: str, dtype: str, rounds: int = 15) -> None:
    """Prints how much longer a call of the class takes than the engine's pass alone, runs
    interleaved."""
    import numpy as np
    import torch

    import quintic

    model = quintic.AutoT5Encoder.from_pretrained(folder, dtype=dtype)
    ids = torch.randint(5, 30_000, (1, 512))
    mask = torch.ones_like(ids)
    rows = ids.numpy()

    def engine() -> None:
        model._engine.forward(
            ids=np.ascontiguousarray(rows), embeddings=None, mask=None, pad_rows="zero", head_gains=None,
            hidden_states=False, attentions=False, output="f32",
        )

    def call() -> None:
        model(ids, attention_mask=mask)

    times: dict[str, list[float]] = {"engine": [], "call": []}
    for _ in range(rounds):
        for name, action in (("engine", engine), ("call", call)):
            start = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(times["call"], times["engine"], strict=True))
    print(f"{model!r}, 1 x 512 tokens, {rounds} rounds")
    for name, values in times.items():
        print(f"{name}: median {statistics.median(values) * 1e3:.1f} ms, min {min(values) * 1e3:.1f} ms")
    print(f"median ratio of a call to the pass before it: {ratio:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--overhead", action="store_true")
    arguments = parser.parse_args()
    (measure_overhead if arguments.overhead else measure_load)(arguments.model, arguments.dtype)


if __name__ == "__main__":
    main()
