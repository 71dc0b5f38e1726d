"""How far each engine's output is from float64, and ours beside each peer of its class: see README.md in this folder.

    python3 bench/peers/precision.py [--cases base,flan] [--engines transformers,quintic-int8,nai:bf16] [--check]

Every measurement is a line of ``results/precision-<date>.jsonl``, from which the report is made, so that a report
can be made in pieces. With ``--check`` the exit status is 1 if ours is not below a peer of its kind somewhere.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import precision_report
import setup_env
from contestants import Contestant, select
from engines import HERE, REPOSITORY, Engine, environment
from workloads import Workload, caption_ids, random_ids

TIMEOUT_S = 1800
FLAN = REPOSITORY / ".cache" / "models" / "flan-t5-small"
PROMPTS = [
    "A photo of a red apple on a wooden table.",
    "translate English to German: The house is wonderful.",
    "An old lighthouse on a cliff above a stormy sea at dusk, waves breaking on black rocks, a single light in the "
    "window, seagulls in the wind, oil on canvas, thick strokes, muted blues and greys with one warm accent.",
    "summarize: Studies have been shown that owning a dog is good for you. Answer the following question: is it?",
]


@dataclass(frozen=True)
class Case:
    """Rows of ids through one checkpoint."""

    name: str
    title: str
    model: Path
    rows: list[list[int]]
    # The folder of converted copies, and what they are made from if that is no random checkpoint in f32.
    forms: str
    source: Path | None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row) for row in self.rows]


def cases(names: list[str]) -> list[Case]:
    """The chosen ones, their checkpoints written."""
    found = []
    for shape, lengths in (("base", [512]), ("base", [77, 5, 33, 1, 150, 18]), ("xl", [128])):
        for stored in ("f32", "bf16"):
            title = f"{shape}, {_rows(lengths)}, random weights stored in {stored}"
            name = f"{shape}-{'ragged' if len(lengths) > 1 else lengths[0]}-{stored}"
            if wanted(name, names):
                reason = setup_env.make_forms(shape, [stored])
                if reason:
                    raise RuntimeError(reason)
                model = setup_env.MODELS / shape / stored
                forms = (shape, None) if stored == "f32" else (f"{shape}-of-bf16", model)
                found.append(Case(name, title, model, random_ids(lengths), *forms))
    for name, what in (("flan", "prompts"), ("flan-captions", "captions")):
        if wanted(name, names):
            rows = prompt_ids() if what == "prompts" else caption_ids(FLAN, offset=0)
            title = f"the real FLAN-T5-small, {what}, {_rows([len(row) for row in rows])}"
            found.append(Case(name, title, FLAN, rows, "flan-t5-small", FLAN))
    if not found:
        raise ValueError(f"no case is called {' or '.join(names)}")
    return found


def _rows(lengths: list[int]) -> str:
    if len(lengths) == 1:
        return f"1 x {lengths[0]}"
    return f"{len(lengths)} ragged rows of {min(lengths)} to {max(lengths)} tokens"


def prompt_ids() -> list[list[int]]:
    """Of the prompts above."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(FLAN / "tokenizer.json"))
    tokenizer.no_padding()
    return [tokenizer.encode(prompt).ids for prompt in PROMPTS]


def wanted(name: str, names: list[str]) -> bool:
    """All if none is named; ``base`` names all cases of that shape."""
    return not names or any(name == each or name.startswith(f"{each}-") for each in names)


def command(engine: Engine, case: Case, ids: Path, output: Path, quintic: Path) -> list[str]:
    """As for the benchmark, but on the case's own checkpoint."""
    # An engine's command takes a folder of several checkpoints and forms; a form's absolute path leaves it.
    form = str(setup_env.MODELS / case.forms / engine.form) if engine.form else None
    within = Engine(**{**vars(engine), "files": case.model.name, "form": form})
    encoding = Workload(case.name, case.forms, case.lengths)
    return within.command(encoding, case.model.parent, ids, output, quintic)


def measure(contestant: Contestant, case: Case, truth_file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One engine on one case: its distances, or why there are none."""
    import numpy as np
    from protocol import EngineError, EngineProcess
    from verify import BOUNDS, distance_of_file

    engine, scratch = contestant.engine, truth_file.parent
    setup_env.step(f"{case.name}: {engine.label}")
    if contestant.needs_flag and not setup_env.has_flag(contestant.needs_flag):
        return {"error": f"the processor has no {contestant.needs_flag}"}
    if engine.form and (reason := setup_env.make_forms(case.forms, [engine.form], case.source)):
        return {"error": reason}
    output = scratch / f"output-{case.name}.npy"
    output.unlink(missing_ok=True)
    process = None
    try:
        process = EngineProcess(
            command(engine, case, truth_file.with_suffix(".json"), output, options.quintic),
            environment(engine, options.threads, None),
            scratch / f"{case.name}-{engine.name}-{engine.dtype}.log",
        )
        process.wait_ready(TIMEOUT_S)
        found = distance_of_file(output, np.load(truth_file), case.lengths)
    except (EngineError, ValueError) as error:
        return {"error": str(error)}
    finally:
        if process is not None:
            process.kill()
    return {
        "quantiles": found.quantiles,
        "largest": found.largest,
        "relative_rms": found.relative_rms,
        "is_off": not found.relative_rms <= BOUNDS[engine.accuracy or engine.dtype],
    }


def run(case: Case, chosen: list[Contestant], options: argparse.Namespace, results: Path) -> None:
    """One case; a line of the results file for each engine."""
    import numpy as np
    from verify import QUANTILES

    scratch = REPOSITORY / ".cache" / "bench-runs" / "precision"
    truth_file = setup_env.make_truth(case.model, case.rows, scratch / f"truth-{case.name}.npy")
    size = np.abs(np.load(truth_file))
    about_case = {
        "case": case.name,
        "title": case.title,
        "sizes": [*np.quantile(size, QUANTILES).tolist(), float(size.max())],
        "command": invocation(options),
    }
    for contestant in chosen:
        about_engine = {
            "engine": contestant.engine.label,
            "class": contestant.class_name,
            "kind": contestant.kind,
            "bits": contestant.bits,
            "is_ours": contestant.engine.is_ours,
        }
        row = {**about_case, **about_engine, **measure(contestant, case, truth_file, options)}
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def invocation(options: argparse.Namespace) -> str:
    """The command that was given, without places on this machine, and with what changes it from outside."""
    extra = os.environ.get("QUINTIC_BENCH_ARGS", "")
    words = [*([f"QUINTIC_BENCH_ARGS='{extra}'"] if extra else []), "python3 bench/peers/precision.py"]
    words += [f"--{name} {value}" for name in ("cases", "engines") if (value := getattr(options, name))]
    return " ".join([*words, f"--threads {options.threads}"])


def heading(date: str, commands: list[str]) -> list[str]:
    """What was measured where, and how."""
    return [
        f"# Distance from float64, {date}",
        "",
        f"{setup_env.machine()}. {setup_env.versions()}.",
        *(f"`{each}`" for each in commands),
        "",
        "|output - float64| at these quantiles over all values of all real tokens, and root mean square relative to that of the",
        "float64 values. The float64 run has the weights as the file holds them, so a bf16 engine on an f32 file also pays for",
        "rounding the weights. [How to read it, and who is who](../peers/README.md#precision).",
    ]


def main() -> None:
    """Writes the report."""
    parser = argparse.ArgumentParser(description="Compare engines with float64.")
    parser.add_argument("--cases", default="", help="base, xl, flan, or one case such as base-ragged-bf16; all if empty")
    parser.add_argument("--engines", default="", help="names or labels such as quintic,nai:bf16; all if empty")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quintic", type=Path, default=REPOSITORY / "target" / "release" / "quintic")
    parser.add_argument("--no-build", action="store_true", help="take the program as it is")
    parser.add_argument("--check", action="store_true", help="exit with 1 if ours is not below a peer of its kind")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    setup_env.enter_venv()
    if not options.no_build:
        setup_env.build_quintic()

    date = datetime.date.today().isoformat()
    try:
        chosen = select([word.strip() for word in options.engines.split(",") if word.strip()])
        chosen_cases = cases([word.strip() for word in options.cases.split(",") if word.strip()])
    except ValueError as error:
        parser.error(str(error))
    options.results.mkdir(parents=True, exist_ok=True)
    results = options.results / f"precision-{date}.jsonl"
    rows: list[dict[str, Any]] = []
    for case in chosen_cases:
        run(case, chosen, options, results)
        rows = precision_report.read_rows(results)
        text = precision_report.report(rows, heading(date, list(dict.fromkeys(row["command"] for row in rows))))
        results.with_suffix(".md").write_text(text, encoding="utf-8")
    print("\n".join(precision_report.verdict(rows)))
    if options.check and not precision_report.is_passed(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
