"""How far two float32 results may lie apart."""

from __future__ import annotations

from typing import Any

import torch

# Unit roundoff of float32.
UNIT = 2.0**-24
# Two float32 engines that sum the same terms in different orders differ per sum of n terms by
# about sqrt(n) units in the root mean square (random signs), and layers add up. For at most some
# 100 terms a sum and 10 sums in a row that is 100 units for single values; the rest is room for
# the largest of some thousand values, five times the root mean square.
FACTOR = 500


def assert_close(found: Any, expected: Any) -> None:
    """Equal within float32 noise, relative to the root mean square of what is expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype
    scale = expected.double().square().mean().sqrt().item()
    distance = (found.double() - expected.double()).abs().max().item()
    assert distance <= FACTOR * UNIT * max(scale, 1e-6), (distance, scale)
    assert torch.isfinite(found).all()


# Two parts of bf16 keep 16 bits of a factor: it is off by 2^-17, and the product of two small parts, 2^-16 of the whole, is left
# out. Layers add up, some ten of them in the root mean square; the documented promise is this for whole models.
PARTS = 5e-5


def assert_close_in_parts(found: Any, expected: Any) -> None:
    """As near in the root mean square as ``matmul_precision="high"`` promises on every machine, with AMX too."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype
    assert torch.isfinite(found).all()
    scale = expected.double().square().mean().sqrt().item()
    distance = (found.double() - expected.double()).square().mean().sqrt().item()
    assert distance <= PARTS * max(scale, 1e-6), (distance, scale)
