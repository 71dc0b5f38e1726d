"""The harness itself: counts by hand, the protocol with good and bad engines, distances, the report."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import engines
import report
import run
import verify
from protocol import EngineError, EngineProcess
from workloads import CAPTIONS, SHAPES, WORKLOADS, Shape, Workload


def test_flops_of_one_tiny_layer() -> None:
    """d_model 2, d_ff 3, one layer, one head of 64, one row of 5 tokens."""
    shape = Shape(d_model=2, d_ff=3, n_layers=1, n_heads=1)
    # 4 matrices of 2 x 64 and 3 of 2 x 3 are 530 weights, twice for each of 5 tokens.
    # Scores and sums: 2 products of 5 x 5 x 64, each multiply-add twice.
    assert shape.layer_parameters() == 530
    assert shape.flops([5]) == 5_300 + 6_400


def test_flops_know_rows_but_no_padding() -> None:
    shape = SHAPES["base"]
    assert shape.flops([3, 4]) == shape.flops([3]) + shape.flops([4])
    assert shape.flops([7]) > shape.flops([3, 4])


@pytest.mark.parametrize(
    ("name", "flops"),
    # Base: 12 x (4 x 768 x 768 + 3 x 768 x 2048) = 84,934,656 weights; 2 x 512 of them are
    # 86,973,087,744; attention is 12 x 4 x 768 x 512 x 512 = 9,663,676,416. The others alike.
    [
        ("W1", 86_973_087_744 + 9_663_676_416),
        ("W2", 315_680_096_256 + 25_769_803_776),
        ("W3", 1_185_410_973_696 + 51_539_607_552),
        ("W4", 74_088_185_856 + 201_326_592),
    ],
)
def test_flops_of_workloads(name: str, flops: int) -> None:
    assert WORKLOADS[name].flops == flops


def test_flops_of_two_tokens_behind_three() -> None:
    """d_model 2, d_ff 3, one layer, one head of 64; every number by hand."""
    shape = Shape(d_model=2, d_ff=3, n_layers=1, n_heads=1, has_decoder=True)
    # Cross keys and values: 2 matrices of 2 x 64 on 3 tokens. A step: 4 and 2 such matrices, 3 of
    # 2 x 3, a head of 2 x 32,128. Looked at: 1 and 2 tokens back, 3 across each time.
    steps = 2 * 2 * (4 * 128 + 2 * 128 + 18 + 2 * 32_128)
    assert shape.decoder_flops([3], 2) == 2 * 3 * 256 + steps + 4 * 64 * (1 + 2 + 6)
    assert shape.decoder_flops([3, 3], 2) == 2 * shape.decoder_flops([3], 2)


def test_parameters_are_those_of_the_published_models() -> None:
    """v1.1 XL's encoder: 24 layers, an embedding of 32,128 x 2,048, 49 norms, 32 x 32 biases."""
    assert SHAPES["xl"].parameters() == 24 * 48_234_496 + 65_798_144 + 49 * 2_048 + 1_024
    # v1.1 base with its decoder and a head of its own has 247,577,856.
    assert SHAPES["base-decoder"].parameters() == 247_577_856


def test_captions() -> None:
    assert (len(CAPTIONS), sum(CAPTIONS), max(CAPTIONS), min(CAPTIONS)) == (32, 1_298, 262, 5)


def test_ids_are_ordinary_and_the_same_each_time() -> None:
    ids = WORKLOADS["W5"].ids()
    assert [len(row) for row in ids] == CAPTIONS
    assert all(100 <= token < 31_100 for row in ids for token in row)
    assert ids == WORKLOADS["W5"].ids()


def start(tmp_path: Path, *words: str) -> EngineProcess:
    command = [sys.executable, str(HERE / "fake_engine.py"), *words]
    return EngineProcess(command, dict(os.environ), tmp_path / "log" / "engine.log")


def test_an_engine_that_obeys(tmp_path: Path) -> None:
    engine = start(tmp_path, "good")
    assert engine.wait_ready(60)["load"] == 0.5
    engine.pause()
    assert [engine.run(60), engine.run(60)] == [11.0, 12.0]
    assert engine.quit() == {"rss_mb": 1.0, "peak_mb": 2.0}
    assert "belongs in the log" in engine.log.read_text()
    engine.kill()


def test_a_paused_engine_stands_still(tmp_path: Path) -> None:
    engine = start(tmp_path, "good")
    engine.wait_ready(60)
    engine.pause()
    stat = Path(f"/proc/{engine._process.pid}/stat")
    for _ in range(100):
        if stat.read_text().rsplit(")", 1)[1].split()[0] == "T":
            break
        time.sleep(0.05)
    else:
        pytest.fail("still runs")
    engine.kill()
    assert engine._process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("dies-at-load", "ended with 1: no weights here"),
        ("garbage", "said `not json`, which is not JSON"),
    ],
)
def test_an_engine_that_does_not_load(tmp_path: Path, mode: str, cause: str) -> None:
    with pytest.raises(EngineError, match=cause):
        start(tmp_path, mode).wait_ready(60)


def test_an_engine_that_hangs(tmp_path: Path) -> None:
    engine = start(tmp_path, "hangs")
    with pytest.raises(EngineError, match="no answer within 0.5 s"):
        engine.wait_ready(0.5)
    assert engine._process.poll() is not None


def test_an_engine_that_dies_while_timed(tmp_path: Path) -> None:
    engine = start(tmp_path, "dies-at-run")
    engine.wait_ready(60)
    engine.run(60)
    with pytest.raises(EngineError, match="ended with 3"):
        engine.run(60)


def test_an_engine_that_gives_no_time(tmp_path: Path) -> None:
    engine = start(tmp_path, "no-time")
    engine.wait_ready(60)
    with pytest.raises(EngineError, match="took None ms"):
        engine.run(60)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="does not start"):
        EngineProcess([str(tmp_path / "nothing")], {}, tmp_path / "log")


def test_distance() -> None:
    truth = np.array([[3.0, 4.0], [0.0, 0.0]])
    found = verify.distance(truth + np.array([[0.0, 0.0], [0.0, 0.5]]), truth)
    assert found.largest == 0.5
    assert found.relative_rms == pytest.approx(0.1)
    assert found.quantiles[0] == 0.0
    assert verify.distance(np.full((2, 2), np.nan), truth).relative_rms == np.inf


def test_padding_is_cut_off() -> None:
    padded = np.arange(12.0).reshape(2, 3, 2)
    expected = [[0, 1], [6, 7], [8, 9]]
    assert verify.real_tokens(padded, [1, 2], 2).tolist() == expected
    assert verify.real_tokens(np.array(expected).ravel(), [1, 2], 2).tolist() == expected
    with pytest.raises(ValueError, match="expected 3 tokens of 2"):
        verify.real_tokens(np.zeros(7), [1, 2], 2)


class Fake(engines.Engine):
    """The fake engine in a peer's place; its program is the mode."""

    def command(self, workload: Workload, models: Path, ids: Path, output: Path, quintic: Path) -> list[str]:
        return [sys.executable, str(HERE / "fake_engine.py"), self.program, str(output), str(models / "truth.npy")]


def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> run.Session:
    truth = np.random.default_rng(0).standard_normal((WORKLOADS["W0"].tokens, 128))
    np.save(tmp_path / "truth.npy", truth)
    monkeypatch.setattr(run, "REPOSITORY", tmp_path)
    options = argparse.Namespace(invocation="now", rounds=3, threads=1, isa=None, quintic=Path("quintic"))
    made = run.Session(WORKLOADS["W0"], options)
    made.models = tmp_path
    monkeypatch.setattr(made, "truth", lambda engine: truth)
    return made


def test_a_group_with_every_kind_of_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails does not stop the others, and what is wrong is seen."""
    modes = ("good", "wrong-output", "no-output", "dies-at-load", "dies-at-run")
    rows = session(tmp_path, monkeypatch).measure([Fake(mode, "f32", mode) for mode in modes], 0)
    good, wrong, none, no_load, no_run = rows
    # A short run has an untimed one before it.
    assert good["times_ms"] == [12.0, 14.0, 16.0]
    assert not good["is_off"] and good["relative_rms"] < 1e-6 and good["peak_mb"] == 2.0
    assert wrong["is_off"] and wrong["relative_rms"] == pytest.approx(2.0)
    assert none["is_off"] and none["off"] == "no output was written"
    assert no_load["error"].startswith("ended with 1")
    assert no_run["error"].startswith("ended with 3")


def row(engine: str, *times: float, **more: Any) -> report.Row:
    dtype = engine.split(":")[1]
    made = {"workload": "W4", "engine": engine, "dtype": dtype, "is_ours": engine.startswith("quintic")}
    return {**made, "is_alone": False, "group": 0, "invocation": "a", "times_ms": list(times), "relative_rms": 1e-6, **more}


ROWS = [
    row("quintic:f32", 10.0, 30.0, 20.0),
    row("nai:f32", 50.0, 40.0, 30.0, peak_mb=512.4, load_s=1.25),
    row("fast:f32", 1.0, is_off=True, relative_rms=1.0),
    row("gone:f32", error="ended with 1: a | b"),
    row("nai:bf16", 5.0),
]


def test_table() -> None:
    lines = report.table(WORKLOADS["W4"], ROWS).splitlines()
    assert lines[0] == "## W4: xl, 1 x 32; 74 GFLOP of useful work"
    assert lines[2] == "- quintic:f32 takes 0.50 times as long as the fastest f32 peer, nai:f32."
    by_name = {line.split(" | ")[0]: line for line in lines if line.startswith("| ")}
    # 32 tokens in 40 ms are 800 a second; 74.29 GFLOP in 40 ms are 1,857 a second.
    assert "| nai | f32 | 40.0 | 30.0..50.0 | 3 | 800 | 1,857 | 0.50 x | 1.0e-06 | 512 | 1.25 |" in lines
    assert "1.0e+00 **off**" in by_name["| fast"]
    assert "failed: ended with 1: a \\| b" in lines[-1]
    columns = report.HEAD.count("|")
    assert all(line.replace("\\|", "").count("|") == columns for line in lines if line.startswith("|"))


def test_a_ratio_is_taken_within_a_group() -> None:
    """Ours was slower while the peer of group 1 ran; only that group's times count for it."""
    rows = [row("quintic:f32", 10.0), row("quintic:f32", 30.0, group=1), row("nai:f32", 20.0, group=1)]
    assert report.ratio(report.pool(rows[:2]), rows[2], rows) == 1.5
    assert report.pool(rows[:2])["times_ms"] == [10.0, 30.0]


def test_the_last_invocation_counts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [row("nai:f32", 1.0), row("nai:f32", 2.0, invocation="b"), row("quintic:f32", 3.0)]
    file.write_text("".join(report.json.dumps(line) + "\n" for line in lines))
    assert [line["times_ms"] for line in report.read_rows(file)] == [[2.0], [3.0]]


def test_groups_fit_and_hold_ours() -> None:
    chosen = engines.select("", is_ragged=False)
    made = run.groups(chosen, 14.0, {"f32": 4.55, "bf16": 2.27})
    assert len(made) > 1
    assert {engine.label for group in made for engine in group} == {engine.label for engine in chosen}
    for group in made:
        labels = [engine.label for engine in group]
        assert len(labels) == len(set(labels))
        # Ours stands beside everyone that it is compared with.
        for dtype in {engine.dtype for engine in group if not engine.is_alone} - {"int8"}:
            assert f"quintic:{dtype}" in labels


def test_choice_of_engines() -> None:
    labels = [engine.label for engine in engines.select("nai, open*:f32", is_ragged=True)]
    assert labels == [
        *("quintic:f32", "quintic:bf16", "nai:f32", "openvino:f32", "nai:bf16", "openvino-loop:f32")
    ]
    with pytest.raises(ValueError, match="no engine is called `nay`"):
        engines.select("nay", is_ragged=False)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit set outside does not leak in, one asked for reaches everyone that can keep it."""
    monkeypatch.setenv("QUINTIC_ISA", "portable")
    by_label = {engine.label: engine for engine in engines.OURS + engines.PEERS}
    nai, candle = by_label["nai:f32"], by_label["candle:f32"]
    assert "QUINTIC_ISA" not in engines.environment(nai, 2, None)
    limited = engines.environment(nai, 2, "avx2")
    assert (limited["ONEDNN_MAX_CPU_ISA"], limited["ATEN_CPU_CAPABILITY"]) == ("AVX2", "avx2")
    assert engines.environment(by_label["quintic-avx512:f32"], 2, None)["QUINTIC_ISA"] == "avx512"
    encoding = WORKLOADS["W1"]
    assert engines.takes_part(candle, encoding, "avx2", has_amx=True) == "cannot be limited to an instruction set"
    assert engines.takes_part(candle, encoding, None, has_amx=False) is None
    amx = by_label["quintic-amx:bf16"]
    assert engines.takes_part(amx, encoding, None, has_amx=False) == "the processor has no AMX"
    assert engines.takes_part(candle, WORKLOADS["G1"], None, has_amx=False) is None
    assert engines.takes_part(candle, WORKLOADS["G3"], None, has_amx=False) == "has no beam search here"
    assert engines.takes_part(by_label["openvino:f32"], WORKLOADS["G1"], None, False) == "does not generate here"


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([[1, 2]], "found 1 rows, expected 2"),
        ([[1, 2], [3]], "a row of 1 tokens, expected 2"),
        ([[1, 2], [3, 9]], "outside the vocabulary of 9"),
        ("text", "found text rows"),
    ],
)
def test_tokens_that_cannot_be_judged(rows: Any, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        verify.check_tokens(rows, 2, 2, 9)


@pytest.mark.parametrize(("regret", "is_off"), [(1e-9, False), (-0.5, False), (0.2, True), (float("nan"), True)])
def test_generated_tokens_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regret: float, is_off: bool
) -> None:
    made = session(tmp_path, monkeypatch)
    made.workload = WORKLOADS["G0"]
    output = tmp_path / "tokens.json"
    output.write_text(json.dumps([[5] * 8, [6] * 8]))
    monkeypatch.setattr(run.setup_env, "judge", lambda *_: regret)
    engine = engines.Engine("fake", "bf16", "fake")
    assert made.verdict(engine, output)["is_off"] == is_off
    output.write_text(json.dumps([[5] * 8]))
    with pytest.raises(ValueError, match="expected 2"):
        made.verdict(engine, output)
