"""quintic on a real checkpoint: FLAN-T5-small, fetched by ``tools/fetch_flan_t5_small.py``.

Two references: figures kept in ``testdata/expected/flan-t5-small.json``, and transformers, run here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oracle.cases import REPOSITORY, Batch
from oracle.compare import FACTOR, Row, assert_accepted, assert_zero, layer_errors, worst
from oracle.engines import Engine, Quintic
from oracle.run_reference import Reference

EXPECTED = json.loads((REPOSITORY / "testdata" / "expected" / "flan-t5-small.json").read_text())
PROMPTS: list[dict[str, Any]] = EXPECTED["cases"]
TEXTS = [EXPECTED["prefix"] + prompt["text"] for prompt in PROMPTS]
SLICE_END = 8


@pytest.fixture(scope="module")
def flan() -> Path:
    """The model folder."""
    folder = Path(os.environ.get("QUINTIC_FLAN_T5_SMALL", REPOSITORY / ".cache" / "models" / "flan-t5-small"))
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"run `python tools/fetch_flan_t5_small.py {folder}` first, or set QUINTIC_FLAN_T5_SMALL")
    return folder


def _padded() -> Batch:
    width = max(len(prompt["input_ids"]) for prompt in PROMPTS)
    ids = np.zeros((len(PROMPTS), width), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(PROMPTS):
        length = len(prompt["input_ids"])
        ids[row, :length] = prompt["input_ids"]
        mask[row, :length] = 1
    return Batch(f"{len(PROMPTS)} prompts", "2-D", ids, attention_mask=mask)


def _assert_matches_file(encoded: np.ndarray, prompt: dict[str, Any]) -> None:
    """Slices and root mean square, within twice the float32 error that the file states."""
    bound = FACTOR * prompt["enc_max_abs_f32_vs_f64"]
    wide = encoded.astype(np.float64)
    for found, expected in (
        (wide[0, :SLICE_END], prompt["enc_first8"]),
        (wide[-1, -SLICE_END:], prompt["enc_last8"]),
        (np.sqrt(np.mean(wide**2)), prompt["enc_rms"]),
    ):
        assert np.abs(found - np.array(expected)).max() <= bound, prompt["text"]


def test_ids_give_the_encodings_in_the_file(engine: Engine, flan: Path) -> None:
    """All prompts in one padded batch."""
    batch = _padded()
    encoded = engine.encode(flan, batch, "zero", hidden_states=False)["last_hidden_state"]
    for row, prompt in enumerate(PROMPTS):
        _assert_matches_file(encoded[row, : len(prompt["input_ids"])], prompt)


@pytest.mark.parametrize("pad_rows", ["zero", "compute"])
def test_every_layer(pad_rows: str, engine: Engine, flan: Path, live: Callable[[], Any], summary: list[Row]) -> None:
    """The same rule as for the random models, on weights that mean something."""
    batch, expected = live()
    outputs = engine.encode(flan, batch, pad_rows)
    where = batch.real() if pad_rows == "zero" else np.ones_like(batch.real())
    errors = layer_errors(outputs, expected, where)
    summary.append(Row("FLAN-T5-small", "flan-t5-small", batch.name, batch.contract, pad_rows, worst(errors)))
    assert_zero(outputs, ~where)
    assert_accepted(errors)


@pytest.fixture(scope="module")
def live(flan: Path) -> Callable[[], Any]:
    """The padded batch and transformers' results for it, computed once."""
    batch = _padded()
    expected = Reference(flan, "T5EncoderModel").run(batch)
    return lambda: (batch, expected)


def test_the_file_agrees_with_transformers(live: Callable[[], Any]) -> None:
    """The kept figures are those of this reference, within the float32 error that they state."""
    _, expected = live()
    for row, prompt in enumerate(PROMPTS):
        _assert_matches_file(expected.f64[-1][row, : len(prompt["input_ids"])], prompt)


def test_texts_give_the_ids_and_encodings_in_the_file(quintic: Quintic, flan: Path) -> None:
    """From text to vectors, rows packed end to end."""
    outputs = quintic.encode_text(flan, TEXTS)
    starts = outputs["row_starts"].tolist()
    assert starts[0] == 0
    assert len(starts) == len(TEXTS) + 1
    assert starts[-1] == len(outputs["input_ids"]) == len(outputs["last_hidden_state"])
    for prompt, start, end in zip(PROMPTS, starts, starts[1:], strict=False):
        assert outputs["input_ids"][start:end].tolist() == prompt["input_ids"]
        _assert_matches_file(outputs["last_hidden_state"][start:end], prompt)


def test_texts_and_ids_give_the_same_bits(quintic: Quintic, flan: Path) -> None:
    """A text costs nothing but its tokenisation."""
    from_text = quintic.encode_text(flan, TEXTS)
    from_ids = quintic.encode(flan, _padded(), "zero", hidden_states=False)["last_hidden_state"]
    for row, (start, end) in enumerate(zip(from_text["row_starts"], from_text["row_starts"][1:], strict=False)):
        assert from_text["last_hidden_state"][start:end].tobytes() == from_ids[row, : end - start].tobytes()


def test_tokenize_prints_the_ids_in_the_file(quintic: Quintic, flan: Path) -> None:
    """One JSON object a text, a token for every id; the file's own truncation to 48 is not applied."""
    printed = quintic.tokenize(flan, TEXTS)
    assert [line["ids"] for line in printed] == [prompt["input_ids"] for prompt in PROMPTS]
    assert all(len(line["tokens"]) == len(line["ids"]) for line in printed)
    assert max(len(line["ids"]) for line in printed) > 48
