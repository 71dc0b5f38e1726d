"""Distances beside peers: classes, ratios and the verdict, on rows whose answer is known."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import checkpoints
import contestants
import precision
import precision_report as report
import quantise
import setup_env
from engines import Engine
from verify import BOUNDS, QUANTILES
from workloads import SHAPES


def row(engine: str, *values: float, kind: str = "bf16", case: str = "base", **more: Any) -> report.Row:
    """A measured row; one value stands for all measures, two for the quantiles and the relative RMS."""
    quantiles = [values[0]] * len(QUANTILES)
    made = {
        "case": case,
        "title": f"case {case}",
        "sizes": [1.0] * (len(QUANTILES) + 1),
        "engine": engine,
        "class": next(name for name, kinds in contestants.CLASSES.items() if kind in kinds),
        "kind": kind,
        "bits": 16,
        "is_ours": engine.startswith("quintic"),
        "quantiles": quantiles,
        "largest": 9.0,
        "relative_rms": values[-1],
    }
    return {**made, **more}


def failed(engine: str, kind: str = "bf16") -> report.Row:
    made = row(engine, 0.0, kind=kind)
    return {key: value for key, value in made.items() if key not in ("quantiles", "largest", "relative_rms")} | {
        "error": "ended with 1: a | b"
    }


def test_ours_is_below_only_if_it_is_everywhere() -> None:
    peer = row("peer:bf16", 1.0)
    assert report.not_below(row("quintic:bf16", 0.5), peer) == []
    assert report.not_below(row("quintic:bf16", 0.5, 1.5), peer) == ["rel. RMS (1.500)"]
    quantiles = [0.5] * len(QUANTILES)
    quantiles[QUANTILES.index(0.999)] = 1.25
    assert report.not_below(row("quintic:bf16", 0.5, quantiles=quantiles), peer) == ["0.999 (1.250)"]
    # Equal is not below.
    assert len(report.not_below(peer, peer)) == len(report.MEASURES)


@pytest.mark.parametrize(
    ("ours", "peer", "expected"),
    [(1.0, 4.0, 0.25), (0.0, 0.0, 1.0), (1.0, 0.0, math.inf), (1.0, math.inf, 0.0), (math.inf, math.inf, math.inf)],
)
def test_ratio(ours: float, peer: float, expected: float) -> None:
    assert report.ratio(ours, peer) == expected


def test_nan_is_never_below() -> None:
    peer = row("peer:bf16", 1.0)
    assert len(report.not_below(row("quintic:bf16", math.nan), peer)) == len(report.MEASURES)
    assert len(report.not_below(row("quintic:bf16", 0.5), row("peer:bf16", math.nan))) == len(report.MEASURES)


def test_an_output_of_ours_that_is_off_wins_nothing() -> None:
    rows = [row("quintic:bf16", 0.5, is_off=True), row("peer:bf16", 1.0)]
    assert report.losses(rows, same_kind=True) == ["quintic:bf16 beside peer:bf16: its output is off"]
    assert not report.is_passed(rows)


def test_verdict_fails_on_a_loss_within_a_kind_only() -> None:
    ours = row("quintic:bf16", 1.0)
    finer = row("peer:f16", 0.1, kind="f16")
    assert report.is_passed([ours, finer])
    assert report.losses([ours, finer], same_kind=False) == [
        "quintic:bf16 beside peer:f16: not below at every measure (rel. RMS 10.000)"
    ]
    assert not report.is_passed([ours, row("peer:bf16", 2.0, 0.9)])
    # Another class or another case is no contest.
    assert report.is_passed([ours, row("peer:int8", 0.1, kind=contestants.WEIGHTS_8)])
    assert report.is_passed([ours, row("peer:bf16", 0.1, case="flan")])


def test_a_peer_that_is_off_is_not_beaten() -> None:
    rows = [row("quintic:bf16", 0.5), row("off:bf16", math.inf, is_off=True), row("peer:bf16", 1.0)]
    assert [peer["engine"] for _, peer in report.pairs(rows)] == ["peer:bf16"]
    assert report.failures(rows) == ["off:bf16: off, relative RMS inf"]


def test_a_loss_says_what_the_peer_spends() -> None:
    rows = [row("quintic:int4", 1.0, bits=4.25), row("peer:int4", 0.5, bits=4.625)]
    assert report.losses(rows, same_kind=True) == [
        "quintic:int4 beside peer:int4 (4.25 and 4.625 bits a weight): not below at every measure (rel. RMS 2.000)"
    ]


def test_bits_a_weight() -> None:
    bits = {each.engine.label: each.bits for each in contestants.CONTESTANTS}
    # By hand: 4 + 16 / 32, 4 + (16 + 4) / 32, 4 + 16 / 128, 8 + (32 + 8) / 32.
    assert bits["openvino-sym-32:int4"] == 4.5
    assert bits["openvino-asym-32:int4"] == 4.625
    assert bits["openvino-sym-128:int4"] == 4.125
    assert bits["onnxruntime-asym-32:int8"] == 9.25
    assert bits["openvino-sym:int8"] == bits["quintic-int8:int8"] == 8


def test_verdict_fails_without_an_output_of_ours() -> None:
    assert report.is_passed([row("quintic:bf16", 1.0), failed("peer:bf16")])
    assert not report.is_passed([failed("quintic:bf16"), row("peer:bf16", 1.0)])


ROWS = [
    row("quintic:bf16", 0.5),
    row("quintic:f16", 0.05, kind="f16"),
    row("lost:bf16", 1.0),
    row("won:bf16", 0.7, 0.4),
    row("fine:f16", 0.1, kind="f16"),
    failed("gone:bf16"),
]


def test_report() -> None:
    lines = report.report(ROWS, ["# Heading"]).splitlines()
    # Of one kind: bf16 with `lost` (below) and `won` (not), f16 with `fine` (below). The other three cross.
    assert "| case base | half types | 2 of 3 | 2 of 3 |" in lines
    assert "- base, half types: quintic:bf16 beside won:bf16: not below at rel. RMS (1.250)" in lines
    assert "- base, half types: quintic:bf16 beside fine:f16: not below at every measure (rel. RMS 5.000)" in lines
    assert "- base, half types: gone:bf16: ended with 1: a \\| b" in lines
    same = " | ".join(["0.5"] * len(report.MEASURES))
    assert f"| **quintic:bf16** / lost:bf16 | {same} | everywhere |" in lines
    assert any(line.startswith("| **quintic:bf16** / won:bf16 |") and line.endswith("| **not everywhere** |") for line in lines)
    assert any(line.startswith("| **quintic:bf16** / fine:f16 (bf16 / f16) |") and line.endswith("| **nowhere** |") for line in lines)
    assert any(line.startswith("| gone | bf16 | bf16 | 16 | failed: ended with 1: a \\| b |") for line in lines)


def test_every_row_of_a_table_has_its_columns() -> None:
    for table in (report.distances(ROWS), report.beside(ROWS)):
        columns = table[0].count("|")
        assert all(line.replace("\\|", "").count("|") == columns for line in table)


def test_the_last_measurement_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [row("quintic:bf16", 2.0), row("peer:bf16", 1.0), row("quintic:bf16", 0.5), row("quintic:bf16", 3.0, case="flan")]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = report.read_rows(file)
    assert [(line["case"], line["engine"], line["relative_rms"]) for line in found] == [
        ("base", "quintic:bf16", 0.5),
        ("base", "peer:bf16", 1.0),
        ("flan", "quintic:bf16", 3.0),
    ]


def test_every_kind_has_one_of_ours_and_a_peer() -> None:
    for kinds in contestants.CLASSES.values():
        for kind in kinds:
            of_kind = [each for each in contestants.CONTESTANTS if each.kind == kind]
            assert {each.engine.is_ours for each in of_kind} == {True, False}, kind


def test_contestants_are_distinct_and_can_be_made() -> None:
    labels = [each.engine.label for each in contestants.CONTESTANTS]
    assert len(labels) == len(set(labels))
    for each in contestants.CONTESTANTS:
        assert each.engine.form is None or each.engine.form in checkpoints.FORMS
        assert (each.engine.accuracy or each.engine.dtype) in BOUNDS


def test_choice() -> None:
    assert [each.engine.label for each in contestants.select(["nai:bf16", "ctranslate2"])] == [
        *("nai:bf16", "ctranslate2:f32", "ctranslate2:int8")
    ]
    assert all(each.engine.is_ours for each in contestants.select(["quintic"]))
    assert len(contestants.select([])) == len(contestants.CONTESTANTS)
    with pytest.raises(ValueError, match="no engine is called `nay`"):
        contestants.select(["nay"])
    with pytest.raises(ValueError, match="no case is called nothing"):
        precision.cases(["nothing"])


def test_an_engine_reads_the_cases_own_files() -> None:
    case = precision.Case("x", "x", Path("/models/flan"), [[5, 1]], "flan-forms", Path("/models/flan"))
    engine = next(each.engine for each in contestants.CONTESTANTS if each.engine.label == "openvino:int8")
    words = precision.command(engine, case, Path("ids"), Path("out"), Path("quintic"))
    assert words[words.index("--model") + 1] == "/models/flan"
    assert words[words.index("--form") + 1] == str(setup_env.MODELS / "flan-forms" / "openvino-int8")
    ours = next(each.engine for each in contestants.CONTESTANTS if each.engine.label == "quintic-w8a8-f32:int8")
    words = precision.command(ours, case, Path("ids"), Path("out"), Path("quintic"))
    assert words[words.index("--shape") + 1] == "/models/flan"
    assert words[words.index("--dtype") + 1 : words.index("--dtype") + 2] == ["f32"]
    assert words[words.index("--weights") + 1] == "w8a8"


class Fake(Engine):
    """The fake engine in a contestant's place; its program is the mode."""

    def command(self, workload: Any, models: Path, ids: Path, output: Path, quintic: Path) -> list[str]:
        return [sys.executable, str(HERE / "fake_engine.py"), self.program, str(output), str(models / "truth.npy")]


def test_every_kind_of_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails does not stop the others, and what is wrong is seen."""
    truth = np.random.default_rng(0).standard_normal((2, 8))
    np.save(tmp_path / "truth.npy", truth)
    case = precision.Case("x", "x", tmp_path / "model", [[5, 1]], "x", None)
    options = argparse.Namespace(threads=1, quintic=Path("quintic"))
    monkeypatch.setattr(precision, "command", lambda engine, case, ids, output, quintic: engine.command(None, tmp_path, ids, output, quintic))

    def outcome(mode: str, **more: Any) -> dict[str, Any]:
        return precision.measure(contestants.Contestant(Fake(mode, "f32", mode), "f32", 32, **more), case, tmp_path / "truth.npy", options)

    good = outcome("good")
    # The fake engine saves the truth rounded to f32.
    assert not good["is_off"] and 0 < good["relative_rms"] < 1e-7
    assert outcome("wrong-output")["is_off"]
    assert outcome("no-output") == {"error": "no output was written"}
    assert outcome("dies-at-load")["error"].startswith("ended with 1: no weights here")
    assert outcome("good", needs_flag="no_such_flag") == {"error": "the processor has no no_such_flag"}


def test_shape_of_a_checkpoint(tmp_path: Path) -> None:
    shape = SHAPES["tiny"]
    settings = checkpoints.config(shape, "f32")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert checkpoints.shape_of(tmp_path) == shape
    (tmp_path / "config.json").write_text(json.dumps({**settings, "feed_forward_proj": "relu"}))
    with pytest.raises(ValueError, match="`feed_forward_proj` is 'relu', expected 'gated-gelu'"):
        checkpoints.shape_of(tmp_path)


def test_the_command_names_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUINTIC_BENCH_ARGS", "--keep wo")
    options = argparse.Namespace(cases="flan", engines="", threads=2, quintic=Path("/a/b"), results=Path("/c"))
    assert precision.invocation(options) == "QUINTIC_BENCH_ARGS='--keep wo' python3 bench/peers/precision.py --cases flan --threads 2"


def test_calibration_without_a_tokenizer(tmp_path: Path) -> None:
    """Random ids of the model's own vocabulary, the same each time."""
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 40}))
    rows = quantise.calibration_rows(tmp_path)
    assert [len(row) for row in rows] == [128] * quantise.RANDOM_ROWS
    # 1,024 draws of 38 ids: each is missed with a probability of 2e-12, and the seed is fixed.
    assert {token for row in rows for token in row} == set(range(2, 40))
    assert rows == quantise.calibration_rows(tmp_path)
