"""How far each engine's output is from float64, as a table of quantiles: see README.md in this folder.

    python3 bench/peers/precision.py [--cases base,flan] [--engines transformers,nai]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from dataclasses import dataclass
from pathlib import Path

import setup_env
from engines import HERE, REPOSITORY, Engine, environment
from workloads import random_ids

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


def engines() -> list[Engine]:
    """Ours in every type, and those that set the standard; all of them load the case's own file."""
    high = ("--matmul-precision", "high")
    return [
        Engine("quintic", "f32", "quintic"),
        Engine("quintic-high", "f32", "quintic", arguments=high, accuracy="f32-high"),
        Engine("quintic", "bf16", "quintic"),
        Engine("quintic", "f16", "quintic"),
        Engine("transformers", "f32", "transformers"),
        Engine("transformers", "bf16", "transformers"),
        Engine("nai", "f32", "nai"),
        Engine("nai", "bf16", "nai"),
    ]


def cases(names: list[str]) -> list[Case]:
    """The chosen ones, their checkpoints written."""
    found = []
    for shape, lengths in (("base", [512]), ("base", [77, 5, 33, 1, 150, 18]), ("xl", [128])):
        for stored in ("f32", "bf16"):
            ragged = len(lengths) > 1
            rows = f"{len(lengths)} ragged rows of {min(lengths)} to {max(lengths)} tokens" if ragged else f"1 x {lengths[0]}"
            title = f"{shape}, {rows}, random weights stored in {stored}"
            name = f"{shape}-{'ragged' if ragged else lengths[0]}-{stored}"
            if wanted(name, names):
                reason = setup_env.make_forms(shape, [stored])
                if reason:
                    raise RuntimeError(reason)
                found.append(Case(name, title, setup_env.MODELS / shape / stored, random_ids(lengths)))
    if wanted("flan", names):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(FLAN / "tokenizer.json"))
        tokenizer.no_padding()
        rows = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
        lengths = [len(row) for row in rows]
        title = f"the real FLAN-T5-small, {len(rows)} ragged rows of {min(lengths)} to {max(lengths)} tokens"
        found.append(Case("flan", title, FLAN, rows))
    return found


def wanted(name: str, names: list[str]) -> bool:
    """All if none is named; ``base`` names all cases of that shape."""
    return not names or any(name == each or name.startswith(f"{each}-") for each in names)


def command(engine: Engine, case: Case, ids: Path, output: Path, quintic: Path) -> list[str]:
    """As for the benchmark, but on the case's own checkpoint."""
    # An engine's command takes a folder of several checkpoints; here there is one.
    within = Engine(**{**vars(engine), "files": case.model.name})
    return within.command(case.model.parent, ids, output, quintic)


def table(case: Case, chosen: list[Engine], options: argparse.Namespace) -> list[str]:
    """One case's section."""
    import numpy as np
    from protocol import EngineError, EngineProcess
    from verify import BOUNDS, QUANTILES, distance_of_file

    scratch = REPOSITORY / ".cache" / "bench-runs" / "precision"
    truth_file = setup_env.make_truth(case.model, case.rows, scratch / f"truth-{case.name}.npy")
    truth = np.load(truth_file)
    ids, output = truth_file.with_suffix(".json"), scratch / "output.npy"
    size = np.abs(truth)
    middle = ", ".join(f"{value:.3g}" for value in np.quantile(size, QUANTILES))
    lines = [
        f"## {case.title}",
        "",
        f"Sizes of the float64 values at the same quantiles: {middle}, largest {size.max():.3g}.",
        "",
        "| engine | type | " + " | ".join(str(each) for each in QUANTILES) + " | max | rel. RMS |",
        "|---|---|" + "---:|" * (len(QUANTILES) + 2),
    ]
    for engine in chosen:
        setup_env.step(f"{case.name}: {engine.label}")
        output.unlink(missing_ok=True)
        process = None
        name = f"**{engine.name}**" if engine.is_ours else engine.name
        try:
            process = EngineProcess(
                command(engine, case, ids, output, options.quintic),
                environment(engine, options.threads, None),
                scratch / f"{case.name}-{engine.name}-{engine.dtype}.log",
            )
            process.wait_ready(TIMEOUT_S)
            found = distance_of_file(output, truth, [len(row) for row in case.rows])
            values = [*found.quantiles, found.largest, found.relative_rms]
            off = "" if found.relative_rms <= BOUNDS[engine.accuracy or engine.dtype] else " **off**"
            lines.append(f"| {name} | {engine.dtype} | " + " | ".join(f"{value:.2e}" for value in values) + f"{off} |")
        except (EngineError, ValueError) as error:
            cause = str(error).replace("|", "\\|")
            lines.append(f"| {name} | {engine.dtype} | failed: {cause} |" + " |" * (len(QUANTILES) + 1))
        finally:
            if process is not None:
                process.kill()
    return [*lines, ""]


def main() -> None:
    """Writes the report."""
    parser = argparse.ArgumentParser(description="Compare engines with float64.")
    parser.add_argument("--cases", default="", help="base, xl, flan, or one case such as base-ragged-bf16; all if empty")
    parser.add_argument("--engines", default="", help="names such as quintic,nai; all if empty")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quintic", type=Path, default=REPOSITORY / "target" / "release" / "quintic")
    parser.add_argument("--no-build", action="store_true", help="take the program as it is")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    setup_env.enter_venv()
    if not options.no_build:
        setup_env.build_quintic()

    date = datetime.date.today().isoformat()
    named = [word.strip() for word in options.engines.split(",") if word.strip()]
    chosen = [engine for engine in engines() if not named or engine.name in named]
    chosen_cases = cases([word.strip() for word in options.cases.split(",") if word.strip()])
    lines = [
        f"# Distance from float64, {date}",
        "",
        f"{setup_env.machine()}. {setup_env.versions()}.",
        "|output - float64| at these quantiles over all values of all real tokens, and root mean square relative to that of the",
        "float64 values. The float64 run has the weights as the file holds them, so a bf16 engine on an f32 file also pays for",
        "rounding the weights. [How to read it](../peers/README.md).",
        "",
    ]
    options.results.mkdir(parents=True, exist_ok=True)
    place = options.results / f"precision-{date}.md"
    for case in chosen_cases:
        lines += table(case, chosen, options)
        place.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
