"""quintic against transformers: every model of the case table, every layer, every mask contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oracle.cases import MODELS, Batch, Model, cases
from oracle.compare import Row, assert_accepted, assert_zero, layer_errors, worst
from oracle.engines import Engine, Outputs, PadRows
from oracle.run_reference import Reference

CASES = list(cases())
BATCHED = ("published-google-t5__t5-small", "published-t5-v1_1-xxl", "published-wan2.1_text_encoder_umt5-xxl",
           "shape-d_model-37", "shape-outliers")

FolderOf = Callable[[Model], Path]


@pytest.mark.parametrize(("model", "batch_name"), CASES, ids=[f"{model.name}-{batch}" for model, batch in CASES])
def test_every_layer_is_within_twice_the_float32_error(
    model: Model,
    batch_name: str,
    engine: Engine,
    folder_of: FolderOf,
    reference_of: Callable[[str], Reference],
    summary: list[Row],
) -> None:
    """Compares all positions with ``compute``, and real ones with ``zero``, where the others must be 0."""
    batch = model.batch(batch_name)
    folder = folder_of(model)
    expected = reference_of(model.name).run(batch)
    everywhere = np.ones(batch.input_ids.shape, dtype=bool)
    positions: dict[PadRows, np.ndarray] = {"compute": everywhere, "zero": batch.real()}
    verdicts = []
    for pad_rows, where in positions.items():
        outputs = engine.encode(folder, batch, pad_rows)
        errors = layer_errors(outputs, expected, where)
        summary.append(Row(model.family, model.name, batch_name, batch.contract, pad_rows, worst(errors)))
        assert_zero(outputs, ~where)
        verdicts.append(errors)
    for errors in verdicts:
        assert_accepted(errors)


def _ragged(model: Model, seed: int = 0) -> tuple[list[np.ndarray], Batch]:
    """Rows of different length, and the batch that pads them on the right."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(2, model.config["vocab_size"], size=length) for length in (23, 1, 64, 5, 37, 16, 23)]
    rows[-1] = rows[0].copy()
    width = max(map(len, rows))
    ids = np.full((len(rows), width), model.config.get("pad_token_id", 0), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return rows, Batch("ragged", "2-D", ids, attention_mask=mask)


def _assert_same_bits(ours: Outputs, other: Outputs, row: int, other_row: int, length: int, what: str) -> None:
    assert ours.keys() == other.keys()
    for name in ours:
        left, right = ours[name][row, :length], other[name][other_row, :length]
        same = left.tobytes() == right.tobytes()
        assert same, f"`{name}`, row {row}: {what} changes bits"


@pytest.mark.parametrize("name", BATCHED)
def test_a_row_has_the_same_bits_in_any_company(name: str, engine: Engine, folder_of: FolderOf) -> None:
    """Alone, padded in a batch, in another order, and twice in one batch."""
    model = next(model for model in MODELS if model.name == name)
    folder = folder_of(model)
    rows, batch = _ragged(model)
    assert batch.attention_mask is not None
    together = engine.encode(folder, batch, "zero")
    order = np.array([4, 2, 6, 0, 5, 1, 3])
    reordered = engine.encode(
        folder, Batch("reordered", "2-D", batch.input_ids[order], attention_mask=batch.attention_mask[order]), "zero"
    )
    for index, row in enumerate(rows):
        alone = engine.encode(folder, Batch("alone", "none", row[None].astype(np.int64)), "zero")
        _assert_same_bits(together, alone, index, 0, len(row), "company")
        _assert_same_bits(together, reordered, index, int(np.flatnonzero(order == index)[0]), len(row), "order")
    _assert_same_bits(together, together, 0, len(rows) - 1, len(rows[0]), "the place in the batch")


@pytest.mark.parametrize("pad_rows", ["zero", "compute"])
def test_asking_for_hidden_states_changes_nothing(pad_rows: PadRows, engine: Engine, folder_of: FolderOf) -> None:
    """The last hidden state has the same bits with and without them, and is alone without."""
    model = MODELS[0]
    _, batch = _ragged(model)
    outputs = engine.encode(folder_of(model), batch, pad_rows)
    short = engine.encode(folder_of(model), batch, pad_rows, hidden_states=False)
    assert list(short) == ["last_hidden_state"]
    same = short["last_hidden_state"].tobytes() == outputs["last_hidden_state"].tobytes()
    assert same


@pytest.mark.parametrize("batch_name", ["padded_far", "left", "holes", "empty_row"])
def test_ids_at_padding_do_not_matter(batch_name: str, engine: Engine, folder_of: FolderOf) -> None:
    """Whatever stands where the mask is 0, real positions keep their bits."""
    model = MODELS[0]
    batch = model.batch(batch_name)
    ids = np.where(batch.real(), batch.input_ids, (batch.input_ids + 50) % model.config["vocab_size"])
    other = Batch(batch.name, batch.contract, ids, attention_mask=batch.attention_mask)
    assert not np.array_equal(ids, batch.input_ids)
    modes: tuple[PadRows, ...] = ("zero", "compute")
    for pad_rows in modes:
        ours, theirs = (engine.encode(folder_of(model), one, pad_rows) for one in (batch, other))
        for name in ours:
            for row, real in enumerate(batch.real()):
                same = ours[name][row, real].tobytes() == theirs[name][row, real].tobytes()
                assert same, f"`{name}`, row {row}, {pad_rows}"


def test_a_mask_of_ones_is_no_mask(engine: Engine, folder_of: FolderOf) -> None:
    """And so is one document a row: the same bits."""
    model = MODELS[0]
    ids = np.random.default_rng(1).integers(2, model.config["vocab_size"], size=(3, 29))
    ones = np.ones_like(ids)
    plain = engine.encode(folder_of(model), Batch("none", "none", ids), "zero")
    for other in (
        Batch("ones", "2-D", ids, attention_mask=ones),
        Batch("one document", "documents", ids, document_ids=ones),
    ):
        outputs = engine.encode(folder_of(model), other, "zero")
        for row in range(len(ids)):
            _assert_same_bits(plain, outputs, row, row, ids.shape[1], f"`{other.name}`")


def test_documents_equal_the_mask_that_they_mean(engine: Engine, folder_of: FolderOf) -> None:
    """Document ids and the 3-D mask of equal documents give the same bits, positions unchanged."""
    model = MODELS[0]
    documents = model.batch("documents")
    allowed = documents.allowed()
    assert allowed is not None
    masked = Batch("mask", "3-D", documents.input_ids, attention_mask=allowed.astype(np.int64))
    ours = engine.encode(folder_of(model), documents, "compute")
    other = engine.encode(folder_of(model), masked, "compute")
    for row in range(len(documents.input_ids)):
        _assert_same_bits(ours, other, row, row, documents.input_ids.shape[1], "the form of the mask")
