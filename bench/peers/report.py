"""The Markdown report, from the lines of a results file."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from workloads import WORKLOADS, Workload

Row = dict[str, Any]
HEAD = "| engine | type | ms (median) | min..max | runs | tokens/s | GFLOP/s | ours takes | rel. RMS | peak MB | load s |"
RULE = "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"


def read_rows(path: Path) -> list[Row]:
    """Of the lines about the same engine and workload, the last invocation's."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    newest = {(row["workload"], row["engine"]): row["invocation"] for row in lines}
    return [row for row in lines if newest[row["workload"], row["engine"]] == row["invocation"]]


def pool(rows: list[Row]) -> Row:
    """One row from an engine's rows in several groups: all its times together."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return rows[-1]
    times = [time for row in good for time in row["times_ms"]]
    return {**good[-1], "times_ms": times, "peak_mb": max(row.get("peak_mb", 0) for row in good)}


def is_right(row: Row) -> bool:
    """It ran, and its output is what it should be."""
    return "error" not in row and not row.get("is_off", False)


def ratio(ours: Row, peer: Row, rows: list[Row]) -> float | None:
    """How many times as long ours takes as the peer, from a group in which both ran if there is one."""
    for mine in rows:
        if mine["engine"] == ours["engine"] and mine["invocation"] == peer["invocation"] and mine["group"] == peer["group"]:
            if "error" not in mine:
                return median(mine["times_ms"]) / median(peer["times_ms"])
    return median(ours["times_ms"]) / median(peer["times_ms"]) if "error" not in ours else None


def fastest_peer(rows: list[Row], dtype: str) -> Row | None:
    """Of those whose output is right."""
    peers = [row for row in rows if row["dtype"] == dtype and not row["is_ours"] and is_right(row)]
    return min(peers, key=lambda row: median(row["times_ms"]), default=None)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(row: Row, workload: Workload, takes: float | None) -> str:
    name = row["engine"].rsplit(":", 1)[0]
    if "error" in row:
        return f"| {name} | {row['dtype']} | failed: {_cell(row['error'])} |" + " |" * 8
    times = row["times_ms"]
    middle = median(times)
    rms = row.get("relative_rms", row.get("regret"))
    distance = _cell(row["off"]) if row.get("off") else "" if rms is None else f"{rms:.1e}"
    cells = [
        f"**{name}**" if row["is_ours"] else name,
        row["dtype"],
        f"{middle:,.1f}",
        f"{min(times):,.1f}..{max(times):,.1f}",
        str(len(times)),
        f"{workload.tokens / middle * 1e3:,.0f}",
        f"{workload.flops / middle / 1e6:,.0f}",
        "" if takes is None else f"{takes:.2f} x",
        f"{distance} **off**" if row.get("is_off") else distance,
        _number(row.get("peak_mb")),
        _number(row.get("load_s")),
    ]
    return "| " + " | ".join(cells) + " |"


def _summary(rows: list[Row], all_rows: list[Row]) -> list[str]:
    lines = []
    for ours in (row for row in rows if row["is_ours"] and not row["is_alone"]):
        best = fastest_peer(rows, ours["dtype"])
        if "error" in ours or best is None:
            continue
        share = ratio(ours, best, all_rows)
        warning = "" if is_right(ours) else " Its output is off, so this means nothing."
        lines.append(
            f"- {ours['engine']} takes {share:.2f} times as long as the fastest {ours['dtype']} peer, {best['engine']}.{warning}"
        )
    return lines


def table(workload: Workload, all_rows: list[Row]) -> str:
    """One workload's section; the fastest first, what failed last."""
    labels = dict.fromkeys(row["engine"] for row in all_rows)
    rows = [pool([row for row in all_rows if row["engine"] == label]) for label in labels]
    rows.sort(key=lambda row: median(row["times_ms"]) if "error" not in row else float("inf"))
    main = {row["dtype"]: row for row in rows if row["engine"] == f"quintic:{row['dtype']}" and "error" not in row}
    lines = [f"## {workload.title()}", "", *_summary(rows, all_rows), "", HEAD, RULE]
    for row in rows:
        ours = main.get(row["dtype"])
        comparable = ours is not None and not row["is_ours"] and "error" not in row
        lines.append(_line(row, workload, ratio(ours, row, all_rows) if comparable else None))
    return "\n".join(lines) + "\n"


def report(rows: list[Row], heading: list[str]) -> str:
    """The whole file."""
    names = [name for name in WORKLOADS if any(row["workload"] == name for row in rows)]
    sections = [table(WORKLOADS[name], [row for row in rows if row["workload"] == name]) for name in names]
    return "\n".join([*heading, "", *sections])
