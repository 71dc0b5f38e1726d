"""Measures quintic beside its peers: see README.md in this folder.

    python3 bench/peers/run.py [--workloads W1,W4] [--peers nai,openvino:f32] [--rounds 7] [--isa avx2]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import setup_env
from engines import HERE, LIMITS, REPOSITORY, Engine, environment, select, takes_part
from workloads import DEFAULT_WORKLOADS, VOCAB, WORKLOADS, Workload

READY_TIMEOUT_S = 1800
RUN_TIMEOUT_S = 600
# An engine whose run is shorter gets an untimed run first: the others have emptied its caches.
SHORT_MS = 2000


def groups(engines: list[Engine], budget_gib: float, sizes: dict[str, float]) -> list[list[Engine]]:
    """Engines that are held in memory together, our two main rows in every group.

    ``sizes`` are the checkpoint's sizes in GiB. An engine that fits nowhere gets a group of its own.
    """

    def fits(group: list[Engine]) -> bool:
        held = 0.0
        for engine in group:
            size = sizes[engine.files if not engine.form else "f32"]
            if held + engine.peak * size > budget_gib:
                return False
            held += engine.held * size
        return True

    def with_ours(engine: Engine) -> list[Engine]:
        return [*(mine for mine in main if engine.is_alone is False and mine.dtype == engine.dtype), engine]

    main = [engine for engine in engines if engine.name == "quintic"]
    made: list[list[Engine]] = []
    for engine in (engine for engine in engines if engine.name != "quintic"):
        for group in made:
            joined = group + [each for each in with_ours(engine) if each not in group]
            if fits(joined):
                group[:] = joined
                break
        else:
            made.append(with_ours(engine))
    placed = {engine.label for group in made for engine in group}
    rest = [engine for engine in main if engine.label not in placed]
    return ([rest] if rest else []) + made


class Turn:
    """One engine in one group: its process, its times, and what became of it."""

    def __init__(self, engine: Engine, process: Any, row: dict[str, Any]) -> None:
        self.engine, self.process, self.row = engine, process, row

    @property
    def is_running(self) -> bool:
        """Whether it can be timed."""
        return "error" not in self.row


class Session:
    """The measurement of one workload."""

    def __init__(self, workload: Workload, options: argparse.Namespace) -> None:
        self.workload, self.options = workload, options
        self.models = setup_env.MODELS / workload.shape_name
        self.scratch = REPOSITORY / ".cache" / "bench-runs" / workload.name
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.ids = self.scratch / "ids.json"
        self.ids.write_text(json.dumps(workload.ids()))
        self.processes: list[Any] = []

    def truth(self, engine: Engine) -> Any:
        """The float64 output that the engine is compared with."""
        import numpy as np

        place = self.models / "truth" / f"{self.workload.name}-{engine.truth}.npy"
        return np.load(setup_env.make_truth(self.models / engine.truth, self.workload.ids(), place))

    def prepare(self, engine: Engine) -> str | None:
        """Writes the files that it loads and its truth; says what failed."""
        forms = list(dict.fromkeys([engine.files, engine.truth, *([engine.form] if engine.form else [])]))
        reason = setup_env.make_forms(self.workload.shape_name, forms)
        if reason is None and not self.workload.new_tokens:
            self.truth(engine)
        return reason

    def start(self, engine: Engine, number: int) -> Turn:
        """Loads it, and compares its output before anything is timed."""
        from protocol import EngineError, EngineProcess

        row: dict[str, Any] = {
            "workload": self.workload.name,
            "engine": engine.label,
            "dtype": engine.dtype,
            "is_ours": engine.is_ours,
            "is_alone": engine.is_alone,
            "group": number,
            "invocation": self.options.invocation,
            "times_ms": [],
        }
        name = engine.label.replace(":", "-")
        output = self.scratch / f"{name}{engine.output_suffix(self.workload)}"
        output.unlink(missing_ok=True)
        process = None
        try:
            process = EngineProcess(
                engine.command(self.workload, self.models, self.ids, output, self.options.quintic),
                environment(engine, self.options.threads, self.options.isa),
                self.scratch / f"{name}.log",
            )
            self.processes.append(process)
            ready = process.wait_ready(READY_TIMEOUT_S)
            process.pause()
            row["load_s"], row["first_s"] = ready.get("load"), ready.get("first")
        except EngineError as error:
            row["error"] = str(error)
            return Turn(engine, process, row)
        try:
            row.update(self.verdict(engine, output))
        except (ValueError, OSError, EOFError) as error:
            row["off"], row["is_off"] = str(error), True
        output.unlink(missing_ok=True)
        return Turn(engine, process, row)

    def verdict(self, engine: Engine, output: Path) -> dict[str, Any]:
        """How far its output is from float64, and whether that is too far."""
        from verify import BOUNDS, REGRETS, check_tokens, distance_of_file

        if not self.workload.new_tokens:
            found = distance_of_file(output, self.truth(engine), self.workload.lengths)
            is_off = not found.relative_rms <= BOUNDS[engine.accuracy or engine.dtype]
            return {"relative_rms": found.relative_rms, "largest": found.largest, "is_off": is_off}
        if not output.is_file():
            raise ValueError("no output was written")
        rows = json.loads(output.read_text())
        check_tokens(rows, len(self.workload.lengths), self.workload.new_tokens, VOCAB)
        regret = setup_env.judge(self.models / engine.truth, self.ids, output, self.workload.beams)
        return {"regret": regret, "is_off": not regret <= REGRETS[engine.dtype]}

    def measure(self, group: list[Engine], number: int) -> list[dict[str, Any]]:
        """Round by round, every engine once, in turn."""
        turns: list[Turn] = []
        try:
            for engine in group:
                setup_env.step(f"{self.workload.name}: loading {engine.label}")
                turns.append(self.start(engine, number))
            for index in range(self.options.rounds):
                # The other way round every second time, so that nobody always runs behind the same one.
                for turn in turns[:: 1 if index % 2 == 0 else -1]:
                    self.take(turn)
            for turn in turns:
                self.finish(turn)
        finally:
            for process in self.processes:
                process.kill()
            self.processes.clear()
        return [turn.row for turn in turns]

    def take(self, turn: Turn) -> None:
        """One timed run, behind an untimed one if it is short."""
        from protocol import EngineError

        if not turn.is_running:
            return
        times = turn.row["times_ms"]
        last = times[-1] if times else (turn.row.get("first_s") or 0) * 1e3
        try:
            if last < SHORT_MS:
                turn.process.run(RUN_TIMEOUT_S)
            times.append(turn.process.run(RUN_TIMEOUT_S))
            turn.process.pause()
        except EngineError as error:
            turn.row["error"] = str(error)

    def finish(self, turn: Turn) -> None:
        """Asks for its memory; an engine that fails now keeps its times."""
        from protocol import EngineError

        if not turn.is_running:
            return
        try:
            last = turn.process.quit()
            turn.row.update({key: last[key] for key in ("rss_mb", "peak_mb") if key in last})
        except EngineError as error:
            turn.row["end"] = str(error)


def heading(options: argparse.Namespace, left_out: list[str], busy: float) -> list[str]:
    """What a reader has to know before the tables."""
    limit = f", limited to {options.isa}" if options.isa else ""
    lines = [
        f"# Peers on a CPU{limit}, {options.date}",
        "",
        f"{setup_env.machine()}; {options.threads} threads. {setup_env.versions()}.",
        "Random weights of real shapes, every engine in its own process, rounds interleaved, medians. \"ours takes\" is the time of",
        "quintic in the same type divided by the peer's, so below 1 quintic is faster. \"rel. RMS\" is the distance from float64 (for",
        "generated tokens: their regret, judged in float64); an output that is **off** is not compared. [How to read it](../peers/README.md).",
    ]
    if busy > 0.3:
        lines += ["", f"**Something else ran when this began: the load was {busy:.1f}. Do not trust the times.**"]
    if left_out:
        lines += ["", f"Left out: {'; '.join(dict.fromkeys(left_out))}."]
    return lines


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure quintic beside its peers.")
    parser.add_argument("--workloads", default="", help=f"of {', '.join(WORKLOADS)}; if empty {', '.join(DEFAULT_WORKLOADS)}")
    parser.add_argument("--peers", default="", help="names such as nai or openvino:f32, with wildcards; all if empty")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--isa", choices=LIMITS, help="limit every engine that can be limited")
    parser.add_argument("--memory", type=float, help="GiB to hold engines in; three quarters of what is free if not given")
    parser.add_argument("--quintic", type=Path, default=REPOSITORY / "target" / "release" / "quintic")
    parser.add_argument("--no-build", action="store_true", help="take the programs as they are")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    options.names = [name for name in options.workloads.replace(" ", ",").split(",") if name] or DEFAULT_WORKLOADS
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload is called `{unknown[0]}`; there are {', '.join(WORKLOADS)}")
    try:
        select(options.peers, is_ragged=True)
    except ValueError as error:
        parser.error(str(error))
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads take a number of at least 1")
    options.date = datetime.date.today().isoformat()
    options.invocation = datetime.datetime.now().isoformat(timespec="seconds")
    return options


def end(*_: Any) -> None:
    """Ends by an exception, so that no engine is left behind, stopped and large."""
    # `timeout` sends it twice; the second must not cut the cleaning up short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("ended by SIGTERM")


def main() -> None:
    """Prepares everything first, so that nothing is written or compiled while engines are timed."""
    options = arguments()
    setup_env.enter_venv()
    signal.signal(signal.SIGTERM, end)
    from report import read_rows, report

    chosen: dict[str, list[Engine]] = {}
    left_out: list[str] = []
    for name in options.names:
        chosen[name] = []
        for engine in select(options.peers, WORKLOADS[name].is_ragged):
            reason = takes_part(engine, WORKLOADS[name], options.isa, setup_env.has_amx())
            if reason:
                # Ours that encode are variants of one that generates; nobody misses them.
                if not (engine.is_ours and WORKLOADS[name].new_tokens):
                    left_out.append(f"{engine.name} ({reason})")
            else:
                chosen[name].append(engine)
    if not options.no_build:
        setup_env.build_quintic()
        if any(engine.program == "candle" for engines in chosen.values() for engine in engines):
            setup_env.build_candle()

    sessions = {name: Session(WORKLOADS[name], options) for name in options.names}
    failed: dict[tuple[str, str], str] = {}
    for name, session in sessions.items():
        for engine in chosen[name]:
            reason = session.prepare(engine)
            if reason:
                failed[name, engine.label] = reason

    busy = os.getloadavg()[0]
    for _ in range(8):
        if busy <= 0.3:
            break
        # What was just prepared counts too, and takes minutes to fade from the average.
        time.sleep(30)
        busy = os.getloadavg()[0]
    options.results.mkdir(parents=True, exist_ok=True)
    stem = f"cpu-{options.date}" + (f"-{options.isa}" if options.isa else "")
    lines_file = options.results / f"{stem}.jsonl"
    for name, session in sessions.items():
        able = [engine for engine in chosen[name] if (name, engine.label) not in failed]
        budget = options.memory or 0.75 * setup_env.memory_gib("MemAvailable")
        sizes = {files: setup_env.checkpoint_gib(session.workload.shape_name, files) for files in ("f32", "bf16")}
        rows = [
            {
                **{"workload": name, "engine": engine.label, "dtype": engine.dtype, "is_ours": engine.is_ours},
                **{"is_alone": engine.is_alone, "group": -1, "invocation": options.invocation, "times_ms": []},
                "error": failed[name, engine.label],
            }
            for engine in chosen[name]
            if (name, engine.label) in failed
        ]
        for number, group in enumerate(groups(able, budget, sizes)):
            rows += session.measure(group, number)
            for row in rows:
                what = row.get("error") or (f"{median(row['times_ms']):.1f} ms" if row["times_ms"] else "")
                setup_env.step(f"{row['workload']} {row['engine']}: {what}")
            with lines_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            rows = []
            text = report(read_rows(lines_file), heading(options, left_out, busy))
            (options.results / f"{stem}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
