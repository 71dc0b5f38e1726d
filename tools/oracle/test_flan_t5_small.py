"""quintic on a real checkpoint: FLAN-T5-small, fetched by ``tools/fetch_flan_t5_small.py``.

Two references: figures kept in ``testdata/expected/flan-t5-small.json``, and transformers, run here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from oracle.cases import REPOSITORY, Batch
from oracle.compare import FACTOR, Row, assert_accepted, assert_zero, layer_errors, worst
from oracle.engines import Engine, PadRows, Quintic
from oracle.run_reference import Expected, Reference

EXPECTED = json.loads((REPOSITORY / "testdata" / "expected" / "flan-t5-small.json").read_text())
PROMPTS: list[dict[str, Any]] = EXPECTED["cases"]
TEXTS = [EXPECTED["prefix"] + prompt["text"] for prompt in PROMPTS]
SLICE_END = 8
PARTI = REPOSITORY / "testdata" / "prompts" / "PartiPrompts.tsv"
CAPTIONS = [line.split("\t")[0] for line in PARTI.read_text().strip("\n").split("\n")[1:]]
SOME_CAPTIONS = sorted(CAPTIONS[::40], key=len)


@pytest.fixture(scope="module")
def flan() -> Path:
    """The model folder."""
    folder = Path(os.environ.get("QUINTIC_FLAN_T5_SMALL", REPOSITORY / ".cache" / "models" / "flan-t5-small"))
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"run `python tools/fetch_flan_t5_small.py {folder}` first, or set QUINTIC_FLAN_T5_SMALL")
    return folder


@pytest.fixture(scope="module")
def tokenizer(flan: Path) -> Tokenizer:
    """The folder's tokenizer, with the truncation and padding that it ships with switched off."""
    loaded = Tokenizer.from_file(str(flan / "tokenizer.json"))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


def _padded(name: str, rows: list[list[int]]) -> Batch:
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return Batch(name, "2-D", ids, attention_mask=mask)


def _prompts() -> Batch:
    return _padded(f"{len(PROMPTS)} prompts", [prompt["input_ids"] for prompt in PROMPTS])


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
    batch = _prompts()
    encoded = engine.encode(flan, batch, "zero", hidden_states=False)["last_hidden_state"]
    for row, prompt in enumerate(PROMPTS):
        _assert_matches_file(encoded[row, : len(prompt["input_ids"])], prompt)


@dataclass(frozen=True)
class Live:
    """A padded batch and transformers' results for it."""

    batch: Batch
    expected: Expected


@pytest.fixture(scope="module")
def live(flan: Path, tokenizer: Tokenizer) -> dict[str, Live]:
    """The prompts, and some captions of PartiPrompts."""
    reference = Reference(flan, "T5EncoderModel")
    captions = _padded("captions", [tokenizer.encode(text).ids for text in SOME_CAPTIONS])
    batches = {"prompts": _prompts(), "captions": captions}
    return {name: Live(batch, reference.run(batch)) for name, batch in batches.items()}


@pytest.mark.parametrize("pad_rows", ["zero", "compute"])
@pytest.mark.parametrize("name", ["prompts", "captions"])
def test_every_layer(
    name: str, pad_rows: PadRows, engine: Engine, flan: Path, live: dict[str, Live], summary: list[Row]
) -> None:
    """The same rule as for the random models, on weights that mean something."""
    batch = live[name].batch
    outputs = engine.encode(flan, batch, pad_rows)
    where = batch.real() if pad_rows == "zero" else np.ones_like(batch.real())
    errors = layer_errors(outputs, live[name].expected, where)
    summary.append(Row("FLAN-T5-small", "flan-t5-small", batch.name, batch.contract, pad_rows, worst(errors)))
    assert_zero(outputs, ~where)
    assert_accepted(errors)


def test_the_file_agrees_with_transformers(live: dict[str, Live]) -> None:
    """The kept figures are those of this reference, within the float32 error that they state."""
    for row, prompt in enumerate(PROMPTS):
        _assert_matches_file(live["prompts"].expected.f64[-1][row, : len(prompt["input_ids"])], prompt)


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
    from_ids = quintic.encode(flan, _prompts(), "zero", hidden_states=False)["last_hidden_state"]
    for row, (start, end) in enumerate(zip(from_text["row_starts"], from_text["row_starts"][1:], strict=False)):
        same = from_text["last_hidden_state"][start:end].tobytes() == from_ids[row, : end - start].tobytes()
        assert same, TEXTS[row]


def test_tokenize_prints_the_ids_in_the_file(quintic: Quintic, flan: Path) -> None:
    """One JSON object a text, a token for every id."""
    printed = quintic.tokenize(flan, TEXTS)
    for line, prompt in zip(printed, PROMPTS, strict=True):
        assert line["ids"] == prompt["input_ids"], prompt["text"]
    assert all(len(line["tokens"]) == len(line["ids"]) for line in printed)


def test_captions_have_the_ids_of_the_tokenizers_library(
    quintic: Quintic, flan: Path, tokenizer: Tokenizer
) -> None:
    """All of PartiPrompts; the tokenizer file's own truncation to 48 tokens is not applied."""
    printed = quintic.tokenize(flan, CAPTIONS)
    assert max(len(line["ids"]) for line in printed) > 48
    wrong = [
        (text, line["ids"], tokenizer.encode(text).ids)
        for text, line in zip(CAPTIONS, printed, strict=True)
        if line["ids"] != tokenizer.encode(text).ids
    ]
    n_wrong = len(wrong)
    assert n_wrong == 0, f"{n_wrong} of {len(CAPTIONS)} differ, the first: {wrong[0]}"


def test_pooled_captions_are_the_means_of_their_tokens(quintic: Quintic, flan: Path, live: dict[str, Live]) -> None:
    """``--pool mean`` over every token of a row, the end of sequence included, from a .tsv column."""
    embeddings = quintic.embed_column(flan, SOME_CAPTIONS)["embeddings"]
    batch, expected = live["captions"].batch, live["captions"].expected
    for row, real in enumerate(batch.real()):
        truth = expected.f64[-1][row, real].mean(axis=0)
        theirs = expected.f32[-1][row, real].mean(axis=0)
        bound = FACTOR * max(np.abs(theirs - truth).max(), np.spacing(np.float32(np.abs(truth).max())))
        distance = float(np.abs(embeddings[row] - truth).max())
        assert distance <= bound, SOME_CAPTIONS[row]


SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam4": {"num_beams": 4, "early_stopping": True},
    "beam5_pen": {"num_beams": 5, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "length_penalty": 0.8,
                  "early_stopping": True},
}


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("search", SEARCHES)
def test_generated_tokens_are_those_of_transformers(search: str, dtype: str, flan: Path, tmp_path: Path) -> None:
    """From texts to texts, all prompts at once, on the CPU's kernels; no margin is below 0.028."""
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(prompt["text"] + "\n" for prompt in PROMPTS))
    printed = Quintic(tmp_path).run(
        "generate", "--model", flan, "--text-prefix", EXPECTED["prefix"], "--input", texts, "--json", "--dtype", dtype,
        "--options", json.dumps({"max_new_tokens": 32, **SEARCHES[search]}),
    )
    lines = [json.loads(line) for line in printed.splitlines()]
    assert len(lines) == len(PROMPTS)
    for line, prompt in zip(lines, PROMPTS, strict=True):
        best = line["sequences"][0]
        assert [0, *best["tokens"]] == prompt[search], prompt["text"]
        assert best["text"] == prompt[f"{search}_text"]
        if search == "greedy" and dtype == "f32":
            assert np.abs(np.array(best["log_probs"]) - prompt["greedy_logprobs"]).max() <= 1e-4


def test_a_target_is_as_probable_as_transformers_says(flan: Path, tmp_path: Path) -> None:
    """The published way to check a T5: the sum of a target's log-probabilities, to f32's error of four logits."""
    printed = Quintic(tmp_path).run("score", "--model", flan, "Hello there", "--target", "Hi I am")
    assert abs(json.loads(printed)["score"] - EXPECTED["score_hello_there_hi_i_am_f64"]) <= 4 * 3.4e-5
