"""The virtual environment, the programs and the checkpoints that a measurement needs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from engines import CANDLE, HERE, REPOSITORY
from workloads import SHAPES

VENV = REPOSITORY / ".venv-bench"
MODELS = REPOSITORY / ".cache" / "bench-models"
REQUIREMENTS = HERE / "requirements.txt"


def enter_venv() -> None:
    """Starts this program again with the environment's Python, made first if it is missing or old."""
    python = VENV / "bin" / "python"
    stamp = VENV / "installed.txt"
    wanted = REQUIREMENTS.read_text()
    if not stamp.is_file() or stamp.read_text() != wanted:
        step("making .venv-bench")
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", REQUIREMENTS]
        subprocess.run(install, check=True)
        stamp.write_text(wanted)
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), *sys.argv])


def step(text: str) -> None:
    """Says what takes long."""
    print(f"# {text}", file=sys.stderr, flush=True)


def build_quintic() -> None:
    """The release build."""
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=REPOSITORY, check=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "."]
    subprocess.run([*install, "--force-reinstall"], cwd=REPOSITORY, check=True)


def build_candle() -> None:
    """candle's program, for the processor at hand: its kernels choose nothing else at run time."""
    environment = {**os.environ, "RUSTFLAGS": "-C target-cpu=native"}
    command = ["cargo", "build", "--release", "--locked", "--target-dir", str(CANDLE.parents[1])]
    subprocess.run(command, cwd=HERE / "candle", env=environment, check=True)


def make_forms(name: str, forms: list[str], source: Path | None = None) -> str | None:
    """Writes the missing ones, each in a process of its own so that its memory is given back.

    ``name`` is a shape, or of the folder that takes the forms of the checkpoint ``source``. None, or the
    reason why one could not be made.
    """
    # Quantised graphs are made from the others.
    first = [form.split("-")[0] for form in forms]
    needed = list(dict.fromkeys([*([] if source else ["f32"]), *first, *forms]))
    for form in needed:
        if (MODELS / name / form).is_dir():
            continue
        step(f"writing {name}/{form}")
        command = [sys.executable, str(HERE / "checkpoints.py"), str(MODELS), name, form]
        command += ["--source", str(source)] if source else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
            return f"{form} could not be made: {lines[-1][:200]}"
    return None


def make_truth(model: Path, ids: list[list[int]], place: Path) -> Path:
    """The float64 output of these ids, made once."""
    ids_file = place.with_suffix(".json")
    text = json.dumps(ids)
    if place.is_file() and ids_file.is_file() and ids_file.read_text() == text:
        return place
    step(f"computing float64 for {place.stem}")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    ids_file.write_text(text)
    subprocess.run([sys.executable, str(HERE / "truth.py"), str(model), str(ids_file), str(place)], check=True)
    return place


def judge(model: Path, ids: Path, tokens: Path, beams: int) -> float:
    """The regret of generated tokens; :class:`ValueError` if nothing can be said."""
    command = [sys.executable, str(HERE / "judge.py"), str(model), str(ids), str(tokens), str(beams)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise ValueError(f"cannot be judged: {lines[-1][:200]}")
    return float(json.loads(done.stdout)["regret"])


def has_amx() -> bool:
    """Whether the processor has bf16 tiles."""
    return has_flag("amx_bf16")


def has_flag(name: str) -> bool:
    """Whether the system lists this of the processor."""
    return name in _cpu_line("flags").split()


def _cpu_line(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1] for line in lines if line.startswith(key)), "")


def memory_gib(key: str) -> float:
    """``MemTotal`` or ``MemAvailable``."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(f"{key}:")), 0.0)


def machine() -> str:
    """Processor, instruction sets that matter here, memory."""
    flags = set(_cpu_line("flags").split())
    sets = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]
    model = _cpu_line("model name").strip() or platform.machine()
    return f"{model}, {os.cpu_count()} cores ({', '.join(sets) or 'none of the known sets'}), {memory_gib('MemTotal'):.0f} GiB"


def versions() -> str:
    """Of the peers and of what they are built on."""
    names = ("torch", "transformers", "nai-t5-wrapper", "openvino", "nncf", "onnxruntime", "onnx", "ctranslate2", "numpy")
    lock = (HERE / "candle" / "Cargo.lock").read_text().split('name = "candle-core"\nversion = "')
    candle = [f"candle {lock[1].split(chr(34))[0]}"] if len(lock) > 1 else []
    compiler = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=False).stdout.split()
    rust = [f"rustc {compiler[1]}"] if len(compiler) > 1 else []
    return ", ".join([*(f"{name} {metadata.version(name)}" for name in names), *candle, *rust, f"Python {platform.python_version()}"])


def checkpoint_gib(shape: str, files: str) -> float:
    """Size of a checkpoint's weights."""
    return SHAPES[shape].parameters() * (4 if files == "f32" else 2) / 2**30
