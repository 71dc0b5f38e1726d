"""Greedy outputs of the real FLAN-T5-small in int8 are those of float32 wherever float32 is sure enough.

At a step at which two ways to compute have the same tokens before them, the likeliest token `i` of the
one is `j` for the other only if the scores of the two are close: with every score changed by at most
`change`, `score(i) - score(j) <= 2 * change`. So each step has a `margin`, from the likeliest score to
the next, and above `2 * change` nothing may differ. Margins, and what rounding of the weights changes,
are transformers', by weights that NumPy rounds: neither is the engine's own word.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quintic
import torch
import transformers
from conftest import REPOSITORY
from rounding import rounded
from safetensors.torch import load_file
from tokenizers import Tokenizer

PARTI = REPOSITORY / "testdata" / "prompts" / "PartiPrompts.tsv"
CAPTIONS = [line.split("\t")[0] for line in PARTI.read_text().strip("\n").split("\n")[1:]]
# Real captions of all kinds and lengths, from the whole file.
TEXTS = [f"translate English to German: {caption}" for caption in CAPTIONS[::34]]
NEW_TOKENS = 32
PAD, END = 0, 1

# Two engines in float32, and the same in another order of sums, differ in a score by less than this
# share of the largest score. Some 60 sums of 512 or 1,024 terms follow each other in 16 layers, and
# a sum of n terms is off by about sqrt(n) * 2^-24 of its size (random signs): sqrt(60 * 1024) * 2^-24
# is 1.5e-5, and the largest of a million scores lies five times as far off as they do in the mean.
NOISE = 1e-4


@dataclass(frozen=True)
class Decoded:
    """What a model makes of the texts: its tokens, and its scores behind each token of float32's."""

    tokens: torch.Tensor
    """``[texts, steps]``, the start token left out."""
    scores: torch.Tensor
    """``[texts, steps, vocab]``, those of step `n` behind the first `n` tokens of float32."""


@dataclass(frozen=True)
class Compared:
    """Float32, and everything that is held against it."""

    real: torch.Tensor
    """``[texts, steps]``: whether float32 has a token there, the end token being the last."""
    ours: dict[str | None, Decoded]
    """By ``weights``."""
    exact: torch.Tensor
    """Scores of transformers, as in `Decoded`."""
    rounded: torch.Tensor
    """Those with weights rounded to int8."""


@pytest.fixture(scope="module")
def flan() -> Path:
    """The model folder."""
    folder = Path(os.environ.get("QUINTIC_FLAN_T5_SMALL", REPOSITORY / ".cache" / "models" / "flan-t5-small"))
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"run `make fetch` first, or set QUINTIC_FLAN_T5_SMALL: there is no model in {folder}")
    return folder


def _theirs(flan: Path) -> Any:
    """transformers' model with the stored weights; its head, which version 5 would tie, by itself."""
    config = transformers.T5Config.from_pretrained(flan)
    config._attn_implementation = "eager"
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    stored = load_file(flan / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])
    return model


def _batch(flan: Path) -> tuple[torch.Tensor, torch.Tensor]:
    tokenizer = Tokenizer.from_file(str(flan / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows = [tokenizer.encode(text).ids for text in TEXTS]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for row, row_ids in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
    return ids, (ids != PAD).long()


@pytest.fixture(scope="module")
def compared(flan: Path) -> Compared:
    """Every model over all texts."""
    ids, mask = _batch(flan)
    load = quintic.T5ForConditionalGeneration.from_pretrained
    ours: dict[str | None, Decoded] = {}
    for weights in (None, "int8", "int4"):
        model = load(flan, dtype="float32", weights=weights)
        tokens = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS)
        if weights is None:
            inputs = tokens[:, :-1]
        ours[weights] = Decoded(tokens[:, 1:], model(ids, mask, inputs).logits)
    theirs = _theirs(flan)
    with torch.no_grad():
        scores = [model(input_ids=ids, attention_mask=mask, decoder_input_ids=inputs).logits
                  for model in (theirs, rounded(theirs))]
    plain = ours[None].tokens
    # Behind an end token stands what fills up.
    real = torch.cat([torch.ones_like(plain[:, :1]), (plain[:, :-1] != END).cumprod(1)], 1).bool()
    return Compared(real, ours, *scores)


def _margins(scores: torch.Tensor) -> torch.Tensor:
    """From the likeliest score to the next."""
    best = scores.topk(2).values
    return best[..., 0] - best[..., 1]


def _limits(compared: Compared, other: torch.Tensor) -> torch.Tensor:
    """Largest margins at which another token can be the likeliest one for scores like `other`."""
    change = (compared.exact - other).abs().amax(-1)
    # Scores that the engine compares are off by float32's noise from those here, both ways.
    noise = NOISE * compared.exact.abs().amax(-1)
    return 2 * change + 4 * noise


def _first_difference(found: torch.Tensor, plain: torch.Tensor) -> int | None:
    """The step at which two rows of tokens part; None if they do not. What fills up is a token, too."""
    length = max(len(found), len(plain))
    rows = [torch.nn.functional.pad(row, (0, length - len(row)), value=PAD) for row in (found, plain)]
    differs = (rows[0] != rows[1]).nonzero()
    return int(differs[0]) if len(differs) else None


def _unexplained(compared: Compared, found: torch.Tensor, limits: torch.Tensor) -> list[tuple[int, int]]:
    """Texts and steps at which rows part from those of float32 although its margin forbids it."""
    margins = _margins(compared.exact)
    parted = [(row, _first_difference(found[row], compared.ours[None].tokens[row])) for row in range(len(found))]
    return [(row, step) for row, step in parted if step is not None and margins[row, step] > limits[row, step]]


def test_scores_are_those_of_rounded_weights(compared: Compared) -> None:
    """The engine's own scores: float32's are transformers', int8's those with rounded weights."""
    for weights, expected in ((None, compared.exact), ("int8", compared.rounded)):
        off = (compared.ours[weights].scores - expected).abs().amax(-1) / expected.abs().amax(-1)
        assert float(off[compared.real].max()) <= NOISE, weights


def test_int8_parts_from_float32_only_where_it_may(compared: Compared, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens that were generated, and the likeliest one behind every token that float32 generates."""
    plain, int8 = compared.ours[None], compared.ours["int8"]
    limits = _limits(compared, compared.rounded)
    assert _unexplained(compared, int8.tokens, limits) == []
    sure = compared.real & (_margins(compared.exact) > limits)
    assert torch.equal(int8.scores.argmax(-1)[sure], plain.tokens[sure])

    alike = sum(_first_difference(a, b) is None for a, b in zip(int8.tokens, plain.tokens, strict=True))
    steps, n_sure = int(compared.real.sum()), int(sure.sum())
    n_other = int((int8.scores.argmax(-1) != plain.tokens)[compared.real].sum())
    with capsys.disabled():
        print(f"\n{alike} of {len(TEXTS)} texts wholly alike in int8; {n_sure} of {steps} steps have to be; "
              f"{n_other} others")
    # Texts all of whose steps are sure have to be alike. The rule has looked at both kinds of step.
    assert alike >= int((sure | ~compared.real).all(1).sum())
    assert alike < len(TEXTS) and 0 < n_sure < steps


def test_the_rule_can_be_broken(compared: Compared) -> None:
    """By tokens of int4 if int8's changes are allowed; its own explain them."""
    int4 = compared.ours["int4"]
    assert _unexplained(compared, int4.tokens, _limits(compared, compared.rounded)) != []
    assert _unexplained(compared, int4.tokens, _limits(compared, int4.scores)) == []


def test_first_differences_by_hand() -> None:
    """Rows of different length are filled up: to go on behind another one's end is to differ."""
    row = torch.tensor([5, 6, END])
    assert _first_difference(row, torch.tensor([5, 6, END, PAD])) is None
    assert _first_difference(row, torch.tensor([5, 7, END, PAD])) == 1
    assert _first_difference(row, torch.tensor([5, 6, END, 9])) == 3
    assert float(_margins(torch.tensor([1.0, 4.0, 3.5]))) == np.float32(0.5)
