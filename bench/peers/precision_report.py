"""The precision report: distances, ours beside each peer, and the verdict. Made from the lines of a results file.

Ours counts as below a peer where it is below at every measure: the quantiles and the relative root mean square. The
largest distance is shown, but is one value of many and decides nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from contestants import CLASSES
from verify import QUANTILES

Row = dict[str, Any]
MEASURES = [*(str(quantile) for quantile in QUANTILES), "rel. RMS"]


def read_rows(path: Path) -> list[Row]:
    """Of the lines about the same case and engine the last one, in the order of the first."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list({(line["case"], line["engine"]): line for line in lines}.values())


def measures(row: Row) -> list[float]:
    """What decides, in the order of ``MEASURES``."""
    return [*row["quantiles"], row["relative_rms"]]


def ratio(ours: float, peer: float) -> float:
    """Ours over the peer's; infinite if ours is not finite, 1 if both are exact."""
    if not math.isfinite(ours):
        return math.inf
    if peer == 0:
        return 1.0 if ours == 0 else math.inf
    return ours / peer


def ratios(ours: Row, peer: Row) -> list[float]:
    """At every measure."""
    return [ratio(*pair) for pair in zip(measures(ours), measures(peer), strict=True)]


def not_below(ours: Row, peer: Row) -> list[str]:
    """Where ours is not closer to float64 than the peer, with the ratio; empty if it is closer everywhere."""
    if ours.get("is_off"):
        return ["its output is off"]
    found = zip(MEASURES, ratios(ours, peer), strict=True)
    # Written so that NaN, which no comparison holds for, counts as not below.
    return [f"{measure} ({value:.3f})" for measure, value in found if not value < 1]


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Every engine of ours with every peer, of those that gave an output; a peer's must be right, or beating it is nothing."""
    good = [row for row in rows if "error" not in row]
    peers = [row for row in good if not row["is_ours"] and not row.get("is_off")]
    return [(ours, peer) for ours in good if ours["is_ours"] for peer in peers]


def losses(rows: list[Row], same_kind: bool) -> list[str]:
    """A line for each pair of a class's rows in which ours is not below everywhere."""
    lines = []
    for ours, peer in pairs(rows):
        if (ours["kind"] == peer["kind"]) == same_kind and (where := not_below(ours, peer)):
            what = f"not below at {', '.join(where)}"
            if ours.get("is_off"):
                what = where[0]
            elif len(where) == len(MEASURES):
                what = f"not below at every measure (rel. RMS {ratios(ours, peer)[-1]:.3f})"
            bits = "" if ours["bits"] == peer["bits"] else f" ({ours['bits']:g} and {peer['bits']:g} bits a weight)"
            lines.append(f"{ours['engine']} beside {peer['engine']}{bits}: {what}")
    return lines


def failures(rows: list[Row]) -> list[str]:
    """A line for each engine without an output, and for each whose output is off."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['engine']}: {_cell(row['error'])}")
        elif row.get("is_off"):
            lines.append(f"{row['engine']}: off, relative RMS {row['relative_rms']:.2e}")
    return lines


def is_passed(rows: list[Row]) -> bool:
    """Whether every engine of ours gave an output and is below every peer of its kind in every case and class."""
    if any("error" in row for row in rows if row["is_ours"]):
        return False
    return not any(losses(chosen, same_kind=True) for _, _, chosen in _groups(rows))


def _groups(rows: list[Row]) -> list[tuple[Row, str, list[Row]]]:
    """A row of the case, the class, and the rows of both."""
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        of_case = [row for row in rows if row["case"] == case]
        for name in CLASSES:
            chosen = [row for row in of_case if row["class"] == name]
            if chosen:
                found.append((chosen[0], name, chosen))
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _count(rows: list[Row], same_kind: bool) -> str:
    chosen = [pair for pair in pairs(rows) if (pair[0]["kind"] == pair[1]["kind"]) == same_kind]
    if not chosen:
        return "no pair"
    return f"{sum(not not_below(*pair) for pair in chosen)} of {len(chosen)}"


def verdict(rows: list[Row]) -> list[str]:
    """How many pairs there are in each case and class, in how many ours is below everywhere, and the others by name."""
    lines = [
        "## Verdict",
        "",
        "In how many pairs of ours and a peer ours is below at every measure. Pairs of one kind round the same things; of",
        "different kinds one rounds more than the other, which is no contest but is shown. Peers whose output is off are not counted.",
        "",
        "| case | class | below, pairs of one kind | below, of different kinds |",
        "|---|---|---:|---:|",
    ]
    groups = _groups(rows)
    for row, name, chosen in groups:
        lines.append(f"| {row['title']} | {name} | {_count(chosen, True)} | {_count(chosen, False)} |")
    for heading, find in (
        ("Not below, of one kind", lambda chosen: losses(chosen, True)),
        ("Not below, of different kinds", lambda chosen: losses(chosen, False)),
        ("Not compared: without an output, or off", failures),
    ):
        found = [f"- {row['case']}, {name}: {line}" for row, name, chosen in groups for line in find(chosen)]
        lines += ["", f"{heading}:", "", *(found or ["- none"])]
    return [*lines, ""]


def distances(rows: list[Row]) -> list[str]:
    """One class of a case: who is how far."""
    head = ["engine", "type", "kind", "bits a weight", *MEASURES[:-1], "max", MEASURES[-1]]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    for row in rows:
        name, dtype = row["engine"].rsplit(":", 1)
        start = f"| {f'**{name}**' if row['is_ours'] else name} | {dtype} | {row['kind']} | {row['bits']:g} | "
        if "error" in row:
            lines.append(f"{start}failed: {_cell(row['error'])} |" + " |" * (len(head) - 5))
            continue
        values = [*row["quantiles"], row["largest"], row["relative_rms"]]
        off = " **off**" if row.get("is_off") else ""
        lines.append(start + " | ".join(f"{value:.2e}" for value in values) + f"{off} |")
    return lines


def beside(rows: list[Row]) -> list[str]:
    """One class of a case: the ratio of ours to each peer, at every measure."""
    found = pairs(rows)
    if not found:
        return ["No pair to compare."]
    lines = [
        f"| ours / peer | {' | '.join(MEASURES)} | ours is below |",
        "|---|" + "---:|" * len(MEASURES) + "---|",
    ]
    # Those of one kind first.
    for ours, peer in sorted(found, key=lambda pair: pair[0]["kind"] != pair[1]["kind"]):
        where = not_below(ours, peer)
        answer = "everywhere" if not where else "nowhere" if len(where) == len(MEASURES) else "**not everywhere**"
        answer = "**off**" if ours.get("is_off") else answer.replace("nowhere", "**nowhere**")
        kinds = "" if ours["kind"] == peer["kind"] else f" ({ours['kind']} / {peer['kind']})"
        values = " | ".join(f"{value:.3g}" for value in ratios(ours, peer))
        lines.append(f"| **{ours['engine']}** / {peer['engine']}{kinds} | {values} | {answer} |")
    return lines


def report(rows: list[Row], heading: list[str]) -> str:
    """The whole file."""
    lines = [*heading, "", *verdict(rows)]
    last = ""
    for row, name, chosen in _groups(rows):
        if row["case"] != last:
            sizes = ", ".join(f"{value:.3g}" for value in row["sizes"][:-1])
            lines += [f"## {row['title']}", ""]
            lines += [f"Sizes of the float64 values at the same quantiles: {sizes}, largest {row['sizes'][-1]:.3g}.", ""]
            last = row["case"]
        lines += [f"### {name}", "", *distances(chosen), "", *beside(chosen), ""]
    return "\n".join(lines)
