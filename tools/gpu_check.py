"""Proves and measures the CUDA backend on the machine that this runs on.

    python tools/gpu_check.py --binary target/dist/quintic [--out bench/results] [--minutes 9]

Needs a GPU, its driver and cuBLASLt; nothing is installed or fetched. Steps, each with its own line
of the report: the suite of cases against the reference backend, the same under compute-sanitizer if
that is there, this engine at several lengths on T5 v1.1 XXL, and the same shapes in transformers and
nai-t5-wrapper's flex attention where Python has them (same card, same run, in turns). Ends with 0 only if the suite
ran on a GPU and passed; with 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

LENGTHS = (1, 32, 77, 128, 256, 512, 4096)
# 32 rows with the lengths of captions, and full prompts.
PACKED = {"32 captions": "lognormal", "8 x 512": ",".join(["512"] * 8), "64 x 77": ",".join(["77"] * 64)}
FLOPS_A_TOKEN = 2 * 4_630_511_616  # of XXL's products
PEAK_TFLOPS = 989.0  # H100 SXM, dense bf16, by its data sheet
READ_GB_S = 3350.0
WEIGHT_GB = 9.261


class Clock:
    """Time that is left."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        return self.end - time.monotonic()


def environment() -> dict[str, str]:
    """With the folders of CUDA libraries that this Python has."""
    folders = []
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        folders += [str(path) for path in sorted(Path(root).glob("*/lib"))]
    if named := os.environ.get("QUINTIC_CUDA_LIBRARIES"):
        folders.insert(0, named)
    return dict(os.environ, QUINTIC_CUDA_LIBRARIES=":".join(folders))


def run(command: list[str], clock: Clock, at_most: float) -> tuple[int, str]:
    """Exit code and output; 124 if time ran out."""
    try:
        done = subprocess.run(
            command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=max(1.0, min(at_most, clock.left()))
        )
        return done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        return 124, output.decode(errors="replace") if isinstance(output, bytes) else output


def card() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit", "--format=csv,noheader"]
    if not shutil.which("nvidia-smi"):
        return "unknown: no nvidia-smi"
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "unknown"


def ours(binary: Path, dtype: str, clock: Clock, on_device: bool) -> tuple[list[dict], str]:
    """One report for each of LENGTHS and PACKED, from one process; and what went wrong."""
    command = [str(binary), "bench", "--shape", "v1_1-xxl", "--backend", "cuda", "--dtype", dtype, "--stored", dtype]
    command += ["--tokens", str(LENGTHS[0]), "--skip-limits", "--json", "--warmup", "3", "--runs", "30"]
    for lengths in [*map(str, LENGTHS[1:]), *PACKED.values()]:
        command += ["--also", lengths]
    code, output = run(command + (["--on-device"] if on_device else []), clock, 150)
    reports = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return reports, "" if code == 0 else f"exit code {code}: {output.strip()[-400:]}"


# Runs in a process of its own, so that nothing stays on the card.
PEER = '''
import json, statistics, sys, time, torch
kind, dtype, rows, tokens = sys.argv[1], getattr(torch, sys.argv[2]), int(sys.argv[3]), [int(n) for n in sys.argv[4].split(",")]
from transformers import T5Config, T5EncoderModel
config = T5Config(vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
torch.manual_seed(0)
torch.set_default_dtype(dtype)
with torch.device("cuda"):
    if kind.startswith("transformers"):
        config._attn_implementation = {"transformers-sdpa": "sdpa", "transformers-compiled": "sdpa", "transformers-flex": "flex_attention"}[kind]
        model = T5EncoderModel(config).eval().to(dtype)
        call = lambda ids: model(input_ids=ids).last_hidden_state
        if kind == "transformers-compiled":
            model.forward = torch.compile(model.forward)
    else:
        import shutil, tempfile
        from nai_t5_wrapper import NAIT5EncoderModel
        folder = tempfile.mkdtemp()
        T5EncoderModel(config).to(dtype).save_pretrained(folder)
        torch.cuda.empty_cache()
        model = NAIT5EncoderModel.from_pretrained(folder, dtype=dtype, device_map="cuda", max_seq_len=max(tokens), use_flex_attention=True)
        shutil.rmtree(folder)
        model.compile()
        mask = torch.ones(rows, max(tokens), dtype=torch.bool, device="cuda")
        call = lambda ids: model(ids, attention_mask=mask[:, : ids.shape[1]]).last_hidden_state
for n in tokens:
    ids = torch.randint(100, 32000, (rows, n), device="cuda")
    with torch.inference_mode():
        for _ in range(4): call(ids)
        torch.cuda.synchronize()
        runs = []
        for _ in range(20):
            start = time.perf_counter(); call(ids); torch.cuda.synchronize(); runs.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"tokens": n, "ms_median": statistics.median(runs), "ms_min": min(runs), "ms_max": max(runs)}), flush=True)
'''


def peer(kind: str, dtype: str, clock: Clock) -> tuple[dict[int, dict], str]:
    """Milliseconds by length, and what went wrong if something did."""
    # nai-t5-wrapper is made for one length, and its figures are published for this one.
    lengths = ",".join(map(str, LENGTHS)) if kind != "nai" else "512"
    code, output = run([sys.executable, "-c", PEER, kind, {"bf16": "bfloat16", "f16": "float16"}[dtype], "1", lengths], clock, 140)
    found = {}
    for line in output.splitlines():
        if line.startswith("{"):
            result = json.loads(line)
            found[result["tokens"]] = result
    return found, "" if code == 0 else f"exit code {code}: {output.strip()[-300:]}"


def ms(result: dict | None) -> str:
    if not result:
        return ""
    return f"{result['ms_median']:.2f} ({result['ms_min']:.2f}..{result['ms_max']:.2f})"


def bound_ms(tokens: int) -> float:
    """Milliseconds below which no bf16 pass of one row can come."""
    attention = 4 * tokens * tokens * 4096 * 24
    return max((tokens * FLOPS_A_TOKEN + attention) / PEAK_TFLOPS / 1e9, WEIGHT_GB / READ_GB_S * 1e3)


def table(binary: Path, clock: Clock, lines: list[str]) -> None:
    peers = {}
    for kind in ("transformers-sdpa", "transformers-flex", "transformers-compiled", "nai"):
        needed = ["torch", "transformers"] + (["nai_t5_wrapper"] if kind == "nai" else [])
        if missing := [module for module in needed if not importlib.util.find_spec(module)]:
            lines.append(f"- {kind}: not measured, this Python has no {' and no '.join(missing)}")
            continue
        peers[kind], problem = peer(kind, "bf16", clock)
        if problem:
            lines.append(f"- {kind}: {problem}")
    columns: dict[str, list[dict]] = {}
    for name, dtype, there in (("ours bf16", "bf16", True), ("ours f16", "f16", True), ("ours bf16, result to the host", "bf16", False)):
        columns[name], problem = ours(binary, dtype, clock, there)
        if problem:
            lines.append(f"- {name}: {problem}")
    lines += ["", "T5 v1.1 XXL, one row, milliseconds: median (min..max). Bound: data-sheet FLOP/s or bytes/s, whichever takes longer.", ""]
    heads = ["tokens", "bound", *columns, *peers]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for at, n in enumerate(LENGTHS):
        row = [str(n), f"{bound_ms(n):.2f}"]
        row += [ms(reports[at]) if at < len(reports) else "" for reports in columns.values()]
        row += [ms(found.get(n)) for found in peers.values()]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "Packed batches, result on the device:", ""]
    for at, name in enumerate(PACKED, start=len(LENGTHS)):
        for column in ("ours bf16", "ours f16"):
            if at < len(columns[column]):
                report = columns[column][at]
                lines.append(
                    f"- {name}, {column}: {ms(report)} ms, {report['tokens_per_s']:,.0f} tokens/s, {report['gflops'] / 1e3:,.0f} TFLOP/s"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--minutes", type=float, default=9)
    arguments = parser.parse_args()
    clock = Clock(arguments.minutes)
    binary = arguments.binary.resolve()
    name = time.strftime("gpu-%Y-%m-%d.md")
    lines: list[str] = []

    code, output = run([str(binary), "check", "--backend", "cuda"], clock, 240)
    print(output, flush=True)
    if code == 9:
        print("nothing was checked: there is no GPU that this machine lets the engine use", file=sys.stderr)
        return 2
    suite = "passed" if code == 0 else f"FAILED (exit code {code})"
    lines.append(f"- The suite of cases on the GPU: {suite}")
    lines += ["", "```", output.strip(), "```", ""]
    if sanitizer := shutil.which("compute-sanitizer"):
        sanitized, text = run([sanitizer, "--error-exitcode", "99", str(binary), "check", "--backend", "cuda", "--filter", "attend"], clock, 90)
        lines.append(f"- compute-sanitizer over attention: {'clean' if sanitized == 0 else f'exit code {sanitized}: {text.strip()[-600:]}'}")
    else:
        lines.append("- compute-sanitizer: not on this machine")
    if code == 0:
        table(binary, clock, lines)
    else:
        lines.append("- Nothing was timed: wrong results have no speed.")
    head = [f"# GPU, {time.strftime('%Y-%m-%d')}", "", f"- Card: {card()}", f"- Host: {platform.machine()}, Python {platform.python_version()}", "- Command: `make gpu-check`", ""]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / name).write_text("\n".join(head + lines) + "\n")
    print("\n".join(head + lines))
    return 0 if code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
