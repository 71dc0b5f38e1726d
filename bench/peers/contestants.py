"""Who is compared with float64, and with whom: engines in classes by the bits that they keep.

Within a class every engine of ours stands beside every peer. ``kind`` says what is rounded; two engines of one
kind round the same things, and of different kinds one of them keeps more.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines import Engine

F32, BF16, F16 = "f32", "bf16", "f16"
WEIGHTS_8, PRODUCTS_8, WEIGHTS_4 = "8-bit weights", "8-bit products", "4-bit weights"
# Sizes of OpenVINO's groups of 4-bit weights; with a zero point the finest alone.
GROUPS = (32, 64, 128)
CLASSES = {
    "f32": (F32,),
    "half types": (BF16, F16),
    "8 bits": (WEIGHTS_8, PRODUCTS_8),
    "4 bits": (WEIGHTS_4,),
}


@dataclass(frozen=True)
class Contestant:
    """An engine and what it rounds."""

    engine: Engine
    kind: str
    # What a product's weight takes, a block's factors and zero points included; a column's are not worth counting.
    bits: float
    # Of the processor, without which it does not run.
    needs_flag: str = ""

    @property
    def class_name(self) -> str:
        """The class that its kind belongs to."""
        return next(name for name, kinds in CLASSES.items() if self.kind in kinds)


def _ours() -> list[Contestant]:
    high = ("--matmul-precision", "high")
    dot = {"QUINTIC_ISA": "avx512bf16"}

    def integers(name: str, dtype: str, weights: str, computes: str) -> Engine:
        return Engine(name, dtype, "quintic", arguments=("--weights", weights), computes=computes)

    return [
        Contestant(Engine("quintic", "f32", "quintic"), F32, 32),
        Contestant(Engine("quintic-high", "f32", "quintic", arguments=high, accuracy="f32-high"), F32, 32),
        Contestant(Engine("quintic", "bf16", "quintic"), BF16, 16),
        # Where nothing is forced, Intel's CPUs without AMX multiply bf16 weights in f32.
        Contestant(
            Engine("quintic-avx512bf16", "bf16", "quintic", environment=dot), BF16, 16, needs_flag="avx512_bf16"
        ),
        Contestant(Engine("quintic", "f16", "quintic"), F16, 16),
        Contestant(integers("quintic-int8", "int8", "int8", "bf16"), WEIGHTS_8, 8),
        Contestant(integers("quintic-int8-f32", "int8", "int8", "f32"), WEIGHTS_8, 8),
        Contestant(integers("quintic-w8a8", "int8", "w8a8", "bf16"), PRODUCTS_8, 8),
        Contestant(integers("quintic-w8a8-f32", "int8", "w8a8", "f32"), PRODUCTS_8, 8),
        # A multiplier of 8 bits for 32 weights.
        Contestant(integers("quintic-int4", "int4", "int4", "bf16"), WEIGHTS_4, 4.25),
        Contestant(integers("quintic-int4-f32", "int4", "int4", "f32"), WEIGHTS_4, 4.25),
    ]


def _peers() -> list[Contestant]:
    bits = {F32: 32, BF16: 16, F16: 16}
    found = [
        Contestant(Engine(name, dtype, name, form="openvino" if name == "openvino" else None), dtype, bits[dtype])
        for name in ("transformers", "nai", "openvino")
        for dtype in bits
    ]
    found += [
        Contestant(Engine("onnxruntime", "f32", "onnxruntime", form="onnx"), F32, 32),
        Contestant(Engine("ctranslate2", "f32", "ctranslate2", form="ctranslate2"), F32, 32),
        Contestant(Engine("openvino", "int8", "openvino", form="openvino-int8"), PRODUCTS_8, 8),
        Contestant(Engine("onnxruntime", "int8", "onnxruntime", form="onnx-int8"), PRODUCTS_8, 8),
        Contestant(Engine("ctranslate2", "int8", "ctranslate2", form="ctranslate2"), PRODUCTS_8, 8),
    ]
    for how in ("sym", "asym"):
        found.append(_openvino(how, "int8", 8, None))
        found += [_onnx_blocks(how, dtype, width) for dtype, width in (("int8", 8), ("int4", 4))]
        found += [_openvino(how, "int4", 4, group) for group in (GROUPS if how == "sym" else GROUPS[:1])]
    return found


def _openvino(how: str, dtype: str, width: int, group: int | None) -> Contestant:
    """Weights by NNCF: of 8 bits by column, of 4 with a factor of 16 bits and maybe a zero point for each group."""
    suffix = f"{how}-{group}" if group else how
    form = f"openvino-{dtype}-{suffix}"
    engine = Engine(f"openvino-{suffix}", dtype, "openvino", form=form, arguments=("--whole-activations",))
    more = (16 + (width if how == "asym" else 0)) / group if group else 0
    return Contestant(engine, WEIGHTS_4 if group else WEIGHTS_8, width + more)


def _onnx_blocks(how: str, dtype: str, width: int) -> Contestant:
    """Weights by ONNX Runtime in blocks of 32, each with a factor in f32 and maybe a zero point."""
    engine = Engine(f"onnxruntime-{how}-32", dtype, "onnxruntime", form=f"onnx-{dtype}-{how}-32")
    more = (32 + (width if how == "asym" else 0)) / 32
    return Contestant(engine, WEIGHTS_4 if width == 4 else WEIGHTS_8, width + more)


CONTESTANTS = _ours() + _peers()


def select(wanted: list[str]) -> list[Contestant]:
    """Those whose engine has one of these names or labels; all if there is none. ``quintic`` is every variant of ours."""
    for word in wanted:
        if not any(_fits(each.engine, word) for each in CONTESTANTS):
            names = ", ".join(dict.fromkeys(each.engine.name for each in CONTESTANTS))
            raise ValueError(f"no engine is called `{word}`; there are {names}")
    return [each for each in CONTESTANTS if not wanted or any(_fits(each.engine, word) for word in wanted)]


def _fits(engine: Engine, word: str) -> bool:
    return word in (engine.name, engine.label) or (word == "quintic" and engine.is_ours)
