"""Writes testdata/blocks: random blocks of every GGUF format that is read, and their values.

NAME.bin holds whole blocks, then their values in f32, little endian, as `gguf.quants.dequantize`
gives them. All fields that may have any byte have random bytes; scales in f16 have random finite
bits, subnormal and negative ones included.

    pip install gguf==0.19.0
    python tools/make_block_goldens.py
"""

import sys
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where a block's f16 fields are.
F16_FIELDS = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
VALUES = 2048


def blocks_of(name: str, rng: np.random.Generator) -> np.ndarray:
    """`[n, bytes]` random blocks of the format."""
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (VALUES // values, size), dtype=np.uint8)
    for at in F16_FIELDS[name]:
        bits = rng.integers(0, 1 << 16, len(blocks), dtype=np.uint16)
        # An exponent of all ones is no finite number.
        bits = np.where(bits & 0x7C00 == 0x7C00, bits & 0xBFFF, bits)
        blocks[:, at : at + 2] = bits.astype("<u2").view(np.uint8).reshape(-1, 2)
    return blocks


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(F16_FIELDS):
        blocks = blocks_of(name, np.random.default_rng(seed))
        values = dequantize(blocks, GGMLQuantizationType[name]).astype("<f4")
        assert np.isfinite(values).all()
        (folder / f"{name}.bin").write_bytes(blocks.tobytes() + values.tobytes())


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "testdata" / "blocks"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
