"""Writes the goldens of decoders: tiny models, sources, decoder inputs, and their logits in float64.

    PYTHONPATH=tools python -m oracle.make_decoder_goldens [DEST]

DEST is ``testdata/decoder_goldens`` unless given. The layout is described in ``testdata/README.md``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from oracle.cases import DECODER_GOLDENS, REPOSITORY, Model
from oracle.decoder import load_model
from oracle.make_goldens import split
from oracle.make_models import write_model

DEST = REPOSITORY / "testdata" / "decoder_goldens"
LIMIT_BYTES = 1_500_000

SOURCES = (9, 1, 30)
"""Tokens of each source."""


def _run(model: Any, source: torch.Tensor, row: torch.Tensor) -> tuple[list[np.ndarray], np.ndarray]:
    with torch.no_grad():
        output = model(input_ids=source[None], decoder_input_ids=row[None], output_hidden_states=True)
    return [state[0].numpy() for state in output.decoder_hidden_states], output.logits[0].numpy()


def write_golden(model: Model, dest: Path) -> None:
    """One folder: the model and its rows, each run by itself."""
    folder = write_model(model, dest / model.name)
    exact, narrow = (load_model(folder, model, dtype) for dtype in (torch.float64, torch.float32))
    rng = np.random.default_rng(model.seed + 1)
    tensors: dict[str, np.ndarray] = {}
    longest = 150 if model.name == "far-buckets" else 21
    for index, length in enumerate(SOURCES):
        source = torch.from_numpy(rng.integers(2, model.config["vocab_size"], length))
        row = torch.from_numpy(rng.integers(2, model.config["vocab_size"], (longest, 4, 1)[index]))
        row[0] = model.config.get("decoder_start_token_id") or 0
        states, logits = _run(exact, source, row)
        states32, logits32 = _run(narrow, source, row)
        tensors[f"{index}.source"] = source.numpy()
        tensors[f"{index}.row"] = row.numpy()
        for name, value in [*((f"hidden_states.{i}", s) for i, s in enumerate(states)), ("logits", logits)]:
            high, low = split(value)
            tensors[f"{index}.{name}.hi"], tensors[f"{index}.{name}.lo"] = high, low
        errors = [np.abs(a - b).max() for a, b in zip([*states32, logits32], [*states, logits], strict=True)]
        tensors[f"{index}.f32_error"] = np.array(errors, dtype=np.float32)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "cases.safetensors")


def main() -> None:
    """Writes all goldens, in place of those that are there, and says how large they are."""
    parser = argparse.ArgumentParser(description="Write the goldens of decoders that Rust tests read.")
    parser.add_argument("dest", type=Path, nargs="?", default=DEST)
    dest: Path = parser.parse_args().dest
    torch.set_num_threads(1)
    shutil.rmtree(dest, ignore_errors=True)
    for model in DECODER_GOLDENS:
        write_golden(model, dest)
    files = [path for path in dest.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    total = sum(path.stat().st_size for path in files)
    print(f"{len(DECODER_GOLDENS)} models, {total} bytes in {dest}")
    if total > LIMIT_BYTES:
        raise SystemExit(f"error: more than {LIMIT_BYTES} bytes; make the golden models smaller")


if __name__ == "__main__":
    main()
