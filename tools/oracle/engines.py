"""What is tested: the quintic binary, or a stand-in where the harness itself is tested."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from safetensors.numpy import load_file, save_file

from oracle.cases import REPOSITORY, Batch
from oracle.plain import PlainEncoder

PadRows = Literal["zero", "compute"]
Outputs = dict[str, np.ndarray]


class Engine(Protocol):
    """Encodes a batch and returns every tensor of the output file."""

    name: str

    def encode(self, model: Path, batch: Batch, pad_rows: PadRows, *, hidden_states: bool = True) -> Outputs:
        """Runs one batch."""
        ...


class Quintic:
    """The command line program, one process a batch; its files lie below a scratch folder."""

    name = "quintic"

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.binary = Path(os.environ.get("QUINTIC_BIN", REPOSITORY / "target" / "release" / "quintic"))
        self.extra = os.environ.get("QUINTIC_ENCODE_ARGS", "").split()
        if not self.binary.is_file():
            raise FileNotFoundError(
                f"{self.binary} is not there: build it with `cargo build --release`, or set QUINTIC_BIN"
            )

    def run(self, *arguments: str | Path) -> str:
        """Runs the program and returns what it printed; fails with its own message."""
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stderr.strip()}")
        return done.stdout

    def _encode(self, *arguments: str | Path) -> Outputs:
        output = self.scratch / "out.safetensors"
        output.unlink(missing_ok=True)
        self.run("encode", *arguments, "-o", output, *self.extra)
        return load_file(output)

    def encode(self, model: Path, batch: Batch, pad_rows: PadRows, *, hidden_states: bool = True) -> Outputs:
        """Runs ``quintic encode --input-ids``."""
        source = self.scratch / "in.safetensors"
        save_file(batch.tensors(), source)
        flags = ["--hidden-states"] if hidden_states else []
        return self._encode("--model", model, "--input-ids", source, "--pad-rows", pad_rows, *flags)

    def encode_text(self, model: Path, texts: list[str]) -> Outputs:
        """Runs ``quintic encode --input`` on a text a line: rows packed end to end."""
        source = self.scratch / "in.txt"
        source.write_text("".join(f"{text}\n" for text in texts))
        return self._encode("--model", model, "--input", source)

    def embed_column(self, model: Path, texts: list[str]) -> Outputs:
        """Runs ``quintic encode --input --pool mean`` on the second column of a .tsv file."""
        source = self.scratch / "in.tsv"
        source.write_text("Number\tPrompt\n" + "".join(f"{row}\t{text}\n" for row, text in enumerate(texts)))
        return self._encode("--model", model, "--input", source, "--column", "Prompt", "--pool", "mean")

    def tokenize(self, model: Path, texts: list[str]) -> list[dict[str, Any]]:
        """Runs ``quintic tokenize --json``."""
        lines = self.run("tokenize", "--model", model, "--json", *texts).splitlines()
        return [json.loads(line) for line in lines if line.strip()]


class StandIn:
    """The NumPy encoder in float32, behaving as quintic promises: padding costs nothing and changes nothing."""

    name = "the stand-in"

    def __init__(self) -> None:
        self._loaded: tuple[Path, PlainEncoder] | None = None

    def _encoder(self, model: Path) -> PlainEncoder:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = (model, PlainEncoder(model, np.float32))
        return self._loaded[1]

    def encode(self, model: Path, batch: Batch, pad_rows: PadRows, *, hidden_states: bool = True) -> Outputs:
        """Computes the batch row by row."""
        encoder, real = self._encoder(model), batch.real()
        rows = []
        for row in range(len(real)):
            one = _row(batch, row)
            length = _unpadded_length(one) if pad_rows == "zero" else real.shape[1]
            states = encoder.hidden_states(_cut(one, length))
            rows.append([np.pad(state[0], ((0, real.shape[1] - length), (0, 0))) for state in states])
        outputs = [np.stack(states) for states in zip(*rows, strict=True)]
        if pad_rows == "zero":
            outputs = [np.where(real[:, :, None], state, np.float32(0)) for state in outputs]
        named = {f"hidden_states.{index}": state for index, state in enumerate(outputs)} if hidden_states else {}
        return {**named, "last_hidden_state": outputs[-1]}


def _row(batch: Batch, row: int) -> Batch:
    one = {name: value[row : row + 1] for name, value in batch.tensors().items()}
    return Batch(batch.name, batch.contract, **one)


def _unpadded_length(batch: Batch) -> int:
    """Up to where a single row with a 2-D mask must be computed; at least one position."""
    if batch.attention_mask is None or batch.attention_mask.ndim == 3:
        return batch.input_ids.shape[1]
    return max(1, int(np.max(np.flatnonzero(batch.attention_mask[0]), initial=0)) + 1)


def _cut(batch: Batch, length: int) -> Batch:
    if length == batch.input_ids.shape[1]:
        return batch
    mask = None if batch.attention_mask is None else batch.attention_mask[:, :length]
    return Batch(batch.name, batch.contract, batch.input_ids[:, :length], attention_mask=mask)
