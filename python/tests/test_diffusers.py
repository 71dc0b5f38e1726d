"""Real diffusers pipelines give the same embeddings and pictures with quintic's encoder as with
transformers' own.

What is allowed is float32 noise. With these models, transformers' float32 results lie up to
4.4e-6 of their RMS from its own float64 results, and quintic's, whose sums run in another order,
may lie as far on the other side. TOLERANCE leaves each a third of it and a third to spare;
`test_encode_prompt` checks both. A rounding to bfloat16 would be 4e-3, a mask or a position
bucket that is off by one 1e-2 and more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import quintic
import torch
import transformers
from tiny_pipelines import CASES, Case, build, encode, picture, with_encoder

TOLERANCE = 2e-5  # largest difference, in units of the reference's RMS
NOISE_SEEDS = (3, 4, 5)

# Of one, several and many tokens; at 9 tokens the last two are cut, at 64 none is.
PROMPTS = ["fox", "a red fox in the snow, 35 mm", "an oil painting of " + "very " * 20 + "old clocks"]
NEGATIVES = ["blurry", "", "ugly hands, watermark"]
PICTURED = ["a red fox in the snow", "clocks"]
OTHER = ["two green parrots", "a cup of tea"]
LENGTH = 24

every_pipeline = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@dataclass(frozen=True)
class Pair:
    """A pipeline twice, of the same parts but for the T5."""

    theirs: diffusers.DiffusionPipeline
    ours: diffusers.DiffusionPipeline
    folder: Path
    """The T5's."""


def ours(folder: Path, kind: str) -> torch.nn.Module:
    """Quintic's encoder of a folder that transformers wrote."""
    return getattr(quintic, kind).from_pretrained(folder, dtype=torch.float32)


def make_pair(case: Case, folder: Path) -> Pair:
    """Both pipelines of a case. They share all parts but the T5."""
    theirs = build(case)
    getattr(theirs, case.slot).save_pretrained(folder)
    return Pair(theirs, with_encoder(theirs, case, ours(folder, case.kind)), folder)


@pytest.fixture(scope="module", autouse=True)
def one_quiet_thread() -> Iterator[None]:
    """Keeps torch's sums in one order, whatever the machine, and what is cut off out of the log."""
    threads, verbosity = torch.get_num_threads(), diffusers.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
    diffusers.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Pair]:
    """Pairs for tests that leave the pipelines as they are."""
    return cache(lambda case: make_pair(case, tmp_path_factory.mktemp(case.name)))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, in units of the expected values' RMS."""
    assert found.shape == expected.shape
    expected = expected.double()
    return float((found.double() - expected).abs().max() / expected.square().mean().sqrt())


def worst(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The worst of several tensors; those that are zero everywhere must be equal."""
    assert len(found) == len(expected)
    errors = [0.0]
    for one, other in zip(found, expected, strict=True):
        if other.any():
            errors.append(relative(one, other))
        else:
            assert torch.equal(one, other)
    return max(errors)


def encode_all(pipeline: diffusers.DiffusionPipeline, case: Case) -> list[torch.Tensor]:
    """What `encode_prompt` returns for all prompts together and for one alone, at both lengths."""
    outputs = []
    for length in case.lengths:
        outputs += encode(pipeline, case, PROMPTS, NEGATIVES, length)
        outputs += encode(pipeline, case, PROMPTS[1:2], NEGATIVES[2:], length)
    return outputs


@every_pipeline
def test_encode_prompt(case: Case, pair_of: Callable[[Case], Pair]) -> None:
    """Positive and negative prompts of different lengths, two pictures each, cut and padded.

    Quintic is as far from transformers as noise allows, and no more than twice as far from
    transformers in float64 as transformers in float32 is.
    """
    pair = pair_of(case)
    expected, found = encode_all(pair.theirs, case), encode_all(pair.ours, case)
    assert [output.dtype for output in found] == [output.dtype for output in expected]
    assert worst(found, expected) < TOLERANCE
    wide = copy.deepcopy(getattr(pair.theirs, case.slot)).double()
    exact = encode_all(with_encoder(pair.theirs, case, wide), case)
    noise = worst(expected, exact)
    # transformers' own noise depends on the CPU: up to 0.4 of TOLERANCE was seen.
    assert 0 < noise < TOLERANCE / 2
    assert worst(found, exact) <= 2 * noise


@every_pipeline
@pytest.mark.parametrize("output", ["latent", "pt"])
def test_picture(case: Case, output: str, pair_of: Callable[[Case], Pair]) -> None:
    """Two steps from the same noise: the pictures differ by no more than embedding noise explains.

    The reference is run with noise of TOLERANCE on every value that its T5 puts out. A picture
    that quintic's T5 leads to may be four times as far from the reference as the worst of those,
    because three draws are not the worst case. Another prompt moves the picture a hundred times further.
    """
    pair = pair_of(case)
    expected = picture(pair.theirs, case, PICTURED, LENGTH, output)
    noisy = [noisy_picture(pair.theirs, case, output, seed) for seed in NOISE_SEEDS]
    allowed = 4 * max(relative(one, expected) for one in noisy)
    other = picture(pair.theirs, case, OTHER, LENGTH, output)
    assert relative(other, expected) > 100 * allowed > 0
    assert relative(picture(pair.ours, case, PICTURED, LENGTH, output), expected) <= allowed


def noisy_picture(pipeline: diffusers.DiffusionPipeline, case: Case, output: str, seed: int) -> torch.Tensor:
    """The picture if every value from the T5 is off by TOLERANCE, with signs drawn."""
    generator = torch.Generator().manual_seed(seed)

    def disturb(_module: torch.nn.Module, _inputs: Any, result: Any) -> Any:
        values = result.last_hidden_state
        signs = torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
        size = TOLERANCE * values.square().mean().sqrt()
        return type(result)(last_hidden_state=values + signs * size)

    handle = getattr(pipeline, case.slot).register_forward_hook(disturb)
    try:
        return picture(pipeline, case, PICTURED, LENGTH, output)
    finally:
        handle.remove()


@every_pipeline
def test_saved_pipeline_takes_ours(case: Case, pair_of: Callable[[Case], Pair], tmp_path: Path) -> None:
    """`from_pretrained` of a published folder takes quintic's encoder in the T5's place."""
    pair = pair_of(case)
    pair.theirs.save_pretrained(tmp_path)
    encoder = getattr(pair.ours, case.slot)
    loaded = type(pair.theirs).from_pretrained(tmp_path, **{case.slot: encoder})
    assert getattr(loaded, case.slot) is encoder
    assert worst(encode_all(loaded, case), encode_all(pair.theirs, case)) < TOLERANCE


@every_pipeline
def test_pipeline_with_ours_is_saved_whole(case: Case, pair_of: Callable[[Case], Pair], tmp_path: Path) -> None:
    """A pipeline saved with quintic's encoder loads again, with one passed and on its own."""
    pair = pair_of(case)
    pair.ours.save_pretrained(tmp_path)
    encoder = getattr(pair.ours, case.slot)
    expected = encode_all(pair.theirs, case)
    passed = type(pair.ours).from_pretrained(tmp_path, **{case.slot: encoder})
    assert getattr(passed, case.slot) is encoder
    assert worst(encode_all(passed, case), expected) < TOLERANCE
    alone = type(pair.ours).from_pretrained(tmp_path)
    assert worst(encode_all(alone, case), expected) < TOLERANCE


@every_pipeline
def test_pipeline_sees_a_transformers_model(case: Case, pair_of: Callable[[Case], Pair]) -> None:
    """Class, components, device and type are what a pipeline asks about."""
    pair = pair_of(case)
    encoder = getattr(pair.ours, case.slot)
    assert isinstance(encoder, getattr(transformers, case.kind))
    assert pair.ours.components[case.slot] is encoder
    assert pair.ours.to("cpu") is pair.ours
    assert getattr(pair.ours, case.slot) is encoder
    assert (encoder.device, encoder.dtype) == (torch.device("cpu"), torch.float32)
    assert (pair.ours.device, pair.ours.dtype) == (torch.device("cpu"), torch.float32)
    again = type(pair.ours).from_pipe(pair.ours)
    assert getattr(again, case.slot) is encoder


@every_pipeline
def test_bfloat16(case: Case, tmp_path: Path) -> None:
    """`pipe.to(torch.bfloat16)` makes quintic compute in bfloat16, no worse than transformers does.

    Both are compared with transformers in float32. Their roundings differ, so one may be
    unlucky: ours may be twice as far.
    """
    pair = make_pair(case, tmp_path)
    expected = encode_all(pair.theirs, case)
    theirs = encode_all(pair.theirs.to(torch.bfloat16), case)
    found = encode_all(pair.ours.to(torch.bfloat16), case)
    assert getattr(pair.ours, case.slot).dtype == torch.bfloat16
    assert [output.dtype for output in found] == [output.dtype for output in theirs]
    assert TOLERANCE < worst(found, expected) <= 2 * worst(theirs, expected)
    assert picture(pair.ours, case, PICTURED, LENGTH, "latent").isfinite().all()


def offload_model(pipeline: diffusers.DiffusionPipeline) -> None:
    """Whole parts, by accelerate's hooks."""
    pipeline.enable_model_cpu_offload(device="cpu")


def offload_leaves(pipeline: diffusers.DiffusionPipeline) -> None:
    """Layers, by diffusers' own hooks."""
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")


def offload_blocks(pipeline: diffusers.DiffusionPipeline) -> None:
    """Blocks of layers, by diffusers' own hooks."""
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


@every_pipeline
@pytest.mark.parametrize("offload", [offload_model, offload_leaves, offload_blocks])
def test_offloading(case: Case, offload: Callable[[diffusers.DiffusionPipeline], None], tmp_path: Path) -> None:
    """The hooks that offloading puts on every part, with a CPU in the accelerator's place, change nothing."""
    pipeline = make_pair(case, tmp_path).ours
    expected = picture(pipeline, case, PICTURED, LENGTH)
    offload(pipeline)
    assert torch.equal(picture(pipeline, case, PICTURED, LENGTH), expected)
    pipeline.remove_all_hooks()
    assert torch.equal(picture(pipeline, case, PICTURED, LENGTH), expected)
