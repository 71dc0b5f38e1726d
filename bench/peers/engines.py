"""Who takes part, how each is started, and what it needs."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from workloads import Workload

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
# As many beams as anybody asks for.
MANY = 1000
CANDLE = REPOSITORY / "target" / "bench-candle" / "release" / "candle-t5"


@dataclass(frozen=True)
class Engine:
    """An engine in one type; ``name:dtype`` is its label.

    ``dtype`` is the class in which it competes. ``files`` is the checkpoint that it loads (``f32``
    or ``bf16``), ``form`` the converted copy that it needs besides. ``held`` and ``peak`` estimate
    its memory, after and while loading, in sizes of that checkpoint; they only decide who is held
    in memory together.
    """

    name: str
    dtype: str
    program: str
    files: str = "f32"
    form: str | None = None
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    held: float = 1.3
    peak: float = 1.5
    accuracy: str = ""
    # What `--dtype` is told, if not the class.
    computes: str = ""
    # Runs under other limits than the peers, so that a ratio would mean nothing.
    is_alone: bool = False
    only_ragged: bool = False
    # Whether it generates, and with how many beams at most.
    most_beams: int = 0

    @property
    def label(self) -> str:
        """As in the report and in ``PEERS``."""
        return f"{self.name}:{self.dtype}"

    @property
    def is_ours(self) -> bool:
        """Whether it is a variant of quintic."""
        return self.program.startswith("quintic")

    @property
    def truth(self) -> str:
        """Whose float64 it is compared with: the f32 weights, unless it has f32 products of bf16 weights."""
        return "bf16" if self.files == "bf16" and self.dtype == "f32" else "f32"

    def output_suffix(self, workload: Workload) -> str:
        """Of the file that it saves."""
        if workload.new_tokens:
            return ".json"
        return ".f32" if self.program == "candle" else ".npy"

    def command(self, workload: Workload, models: Path, ids: Path, output: Path, quintic: Path) -> list[str]:
        """How it is started; ``models`` is the folder of one shape."""
        folder = models / self.files
        common = ["--ids-json", str(ids), "--save-output", str(output), *self.arguments]
        if workload.new_tokens:
            common += ["--new-tokens", str(workload.new_tokens), "--num-beams", str(workload.beams)]
        if self.program == "quintic":
            extra = os.environ.get("QUINTIC_BENCH_ARGS", "").split()
            return [str(quintic), "bench", "--serve", "--shape", str(folder), "--dtype", self.computes or self.dtype,
                    *common, *extra]
        if self.program == "candle":
            return [str(CANDLE), "--model", str(folder), "--dtype", self.dtype, *common]
        converted = ["--form", str(models / self.form)] if self.form else []
        return [
            *(sys.executable, str(HERE / "worker.py"), self.program),
            *("--model", str(folder), "--dtype", self.dtype, *converted, *common),
        ]


def _ours() -> list[Engine]:
    high = {"arguments": ("--matmul-precision", "high"), "accuracy": "f32-high"}
    one_thread = ("--threads", "1")
    bf16 = {"files": "bf16", "held": 2.2, "peak": 3.2}
    forced = [
        Engine(f"quintic-{isa}", dtype, "quintic", environment={"QUINTIC_ISA": isa}, is_alone=True, **more)
        for isa, dtype, more in (
            ("avx2", "f32", {}),
            ("avx2", "bf16", bf16),
            ("avx512", "f32", {}),
            ("avx512", "bf16", bf16),
            ("avx512bf16", "bf16", bf16),
            ("amx", "bf16", bf16),
        )
    ]
    # As a program written for transformers calls it: padded tensors of PyTorch in and out.
    python = [
        Engine(name, dtype, "quintic-python", arguments=arguments, most_beams=0 if arguments else MANY, **more)
        for dtype, more in (("f32", {"held": 2.1, "peak": 2.2}), ("bf16", bf16))
        for name, arguments in (("quintic-python", ()), ("quintic-python-zero", ("--padding-zero",)))
    ]
    return [
        *python,
        Engine("quintic", "f32", "quintic", held=2.1, peak=2.2, most_beams=MANY),
        Engine("quintic", "bf16", "quintic", most_beams=MANY, **bf16),
        Engine("quintic-high", "f32", "quintic", **high),
        Engine("quintic-high-bf16-weights", "f32", "quintic", **bf16, **high),
        Engine("quintic-1-thread", "f32", "quintic", arguments=one_thread, is_alone=True, most_beams=MANY),
        Engine("quintic-1-thread", "bf16", "quintic", arguments=one_thread, is_alone=True, most_beams=MANY, **bf16),
        *forced,
        # Weights alone in integers, for few rows; and products of integers.
        *(
            Engine(f"quintic-{weights}", "int8", "quintic", arguments=("--weights", weights), computes="bf16",
                   most_beams=MANY, **bf16)
            for weights in ("int8", "w8a8")
        ),
    ]


def _peers() -> list[Engine]:
    found = []
    for dtype in ("f32", "bf16"):
        f32 = dtype == "f32"
        found += [
            Engine(
                *("transformers", dtype, "transformers", dtype),
                **{"held": 1.2 if f32 else 1.4, "peak": 1.3 if f32 else 1.5, "most_beams": MANY},
            ),
            Engine(
                "transformers-compiled", dtype, "transformers", dtype, arguments=("--compile",), held=2.3, peak=2.4
            ),
            Engine("nai", dtype, "nai", dtype, held=1.3, peak=2.9, most_beams=1),
            Engine("nai-compiled", dtype, "nai", dtype, arguments=("--compile",), held=1.4, peak=2.9),
            Engine("openvino", dtype, "openvino", form="openvino", held=2.1, peak=2.2),
            Engine("candle", dtype, "candle", dtype, held=2.1, peak=2.3, most_beams=1),
        ]
    found += [
        Engine("onnxruntime", "f32", "onnxruntime", form="onnx", held=1.2, peak=1.4),
        Engine("onnxruntime", "int8", "onnxruntime", form="onnx-int8", held=0.5, peak=0.6),
        Engine("openvino", "int8", "openvino", form="openvino-int8", held=1.1, peak=1.3),
        Engine("ctranslate2", "f32", "ctranslate2", form="ctranslate2", held=1.2, peak=2.2, most_beams=MANY),
        Engine("ctranslate2", "int8", "ctranslate2", form="ctranslate2", held=0.6, peak=1.3, most_beams=MANY),
    ]
    loops = [
        Engine(
            **{**vars(engine), "name": f"{engine.name}-loop", "arguments": ("--loop",), "only_ragged": True}
        )
        for engine in found
        # Compiled for one width; candle always goes row by row.
        if not engine.name.endswith("-compiled") and engine.name != "candle"
    ]
    return found + loops


OURS = _ours()
PEERS = _peers()


def select(wanted: str, is_ragged: bool) -> list[Engine]:
    """Ours and the peers that a comma-separated list names; ``nai`` is every type of it, ``*`` a wildcard.

    An empty list means all. Our two main rows always take part, or nothing could be compared.
    """
    patterns = [word.strip() for word in wanted.split(",") if word.strip()]
    known = OURS + PEERS
    for pattern in patterns:
        if not any(_fits(engine, pattern) for engine in known):
            names = ", ".join(dict.fromkeys(engine.name for engine in known))
            raise ValueError(f"no engine is called `{pattern}`; there are {names}")
    return [
        engine
        for engine in known
        if (not patterns or engine.name == "quintic" or any(_fits(engine, pattern) for pattern in patterns))
        and (is_ragged or not engine.only_ragged)
    ]


def _fits(engine: Engine, pattern: str) -> bool:
    return fnmatchcase(engine.label, pattern if ":" in pattern else f"{pattern}:*")


# What limits an engine to an instruction set. ONNX Runtime and candle choose their kernels by
# themselves and take no such limit.
LIMITS = {
    "avx2": {
        "QUINTIC_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
    "avx512": {
        "QUINTIC_ISA": "avx512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "CT2_FORCE_CPU_ISA": "AVX512",
    },
    "avx512bf16": {
        "QUINTIC_ISA": "avx512bf16",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "CT2_FORCE_CPU_ISA": "AVX512",
    },
}
UNLIMITED_PROGRAMS = ("onnxruntime", "candle")


def environment(engine: Engine, threads: int, isa: str | None) -> dict[str, str]:
    """The process's environment: this one's, without what would change an engine behind our back."""
    limits = {name for names in LIMITS.values() for name in names}
    dropped = limits | {"DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "BENCH_THREADS")
    return {
        **kept,
        **dict.fromkeys(counts, str(threads)),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(LIMITS[isa] if isa else {}),
        **engine.environment,
    }


def takes_part(engine: Engine, workload: Workload, isa: str | None, has_amx: bool) -> str | None:
    """None, or why the engine is left out."""
    if workload.new_tokens and not engine.most_beams:
        return "does not generate here"
    if workload.beams > 1 and workload.beams > engine.most_beams:
        return "has no beam search here"
    if engine.environment.get("QUINTIC_ISA") == "amx" and not has_amx:
        return "the processor has no AMX"
    if isa and engine.program in UNLIMITED_PROGRAMS:
        return "cannot be limited to an instruction set"
    if isa and engine.environment.get("QUINTIC_ISA"):
        return "is limited already"
    return None
