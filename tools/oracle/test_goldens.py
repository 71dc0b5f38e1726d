"""The committed goldens are what the oracle makes, so that nobody edits them by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from oracle import make_decoder_goldens
from oracle.cases import DECODER_GOLDENS, GOLDENS, Model
from oracle.make_goldens import DEST, LIMIT_BYTES, split, write_golden


@pytest.mark.parametrize("model", GOLDENS, ids=lambda model: model.name)
def test_goldens_can_be_made_again(model: Model, tmp_path: Path) -> None:
    """Models and inputs to the byte; results as close as another processor's float64 may be."""
    write_golden(model, tmp_path)
    committed, made = DEST / model.name, tmp_path / model.name
    assert {path.name for path in committed.iterdir()} == {path.name for path in made.iterdir()}
    _assert_same(committed, made)


@pytest.mark.parametrize("model", DECODER_GOLDENS, ids=lambda model: model.name)
def test_decoder_goldens_can_be_made_again(model: Model, tmp_path: Path) -> None:
    """As those of encoders; what transformers generates stands in a file of its own."""
    make_decoder_goldens.write_golden(model, tmp_path)
    _assert_same(make_decoder_goldens.DEST / model.name, tmp_path / model.name)


def _assert_same(committed: Path, made: Path) -> None:
    for path in made.iterdir():
        if path.name != "cases.safetensors":
            assert path.read_bytes() == (committed / path.name).read_bytes(), path.name
    old, new = load_file(committed / "cases.safetensors"), load_file(made / "cases.safetensors")
    assert old.keys() == new.keys()
    for name, values in new.items():
        if name.endswith(".hi"):
            low = name.removesuffix("hi") + "lo"
            difference = (values.astype(np.float64) + new[low]) - (old[name].astype(np.float64) + old[low])
            assert np.abs(difference).max() <= 1e-12 * max(1.0, float(np.abs(values).max())), name
        elif name.endswith(".lo"):
            continue
        elif "f32_error" in name:
            assert (values <= 4 * old[name] + 1e-30).all(), name
        else:
            assert np.array_equal(values, old[name]), name


def test_no_golden_is_left_over() -> None:
    """Every folder belongs to a model of the table, and all of them stay small."""
    assert {path.name for path in DEST.iterdir()} == {model.name for model in GOLDENS}
    assert sum(path.stat().st_size for path in DEST.rglob("*") if path.is_file()) <= LIMIT_BYTES


def test_two_float32_keep_48_bits() -> None:
    """The sum of both parts is the float64 value, to 2^-48 of it."""
    values = np.random.default_rng(0).standard_normal(10_000) * 10.0 ** np.arange(-5, 5).repeat(1000)
    high, low = split(values)
    assert np.abs(high.astype(np.float64) + low - values).max() <= 2.0**-48 * np.abs(values).max()
    assert (np.abs(high.astype(np.float64) + low - values) <= 2.0**-48 * np.abs(values)).all()
