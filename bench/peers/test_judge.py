"""The judge of generated tokens, on a tiny random model; needs PyTorch and transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parent))

import judge

VOCAB = 50


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    made = transformers.T5ForConditionalGeneration(config).eval().double()
    made.shared.weight.data.normal_(std=4)
    made.generation_config.eos_token_id = None
    return made


@pytest.mark.parametrize("beams", [1, 3])
def test_regret(model: Any, beams: int) -> None:
    ids = torch.randint(2, VOCAB, (3, 7), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        own = model.generate(input_ids=ids, max_new_tokens=6, num_beams=beams, do_sample=False)[:, 1:]
        assert judge.regret(model, ids, own, beams) == pytest.approx(0, abs=1e-9)
        # One token that is not the likeliest is worse by what separates the two, over all 18.
        found = judge.log_probs(model, ids, own)
        other = own.clone()
        other[1, 5] = found[1, 5].argsort(descending=True)[7]
        loss = found[1, 5, own[1, 5]] - found[1, 5, other[1, 5]]
        assert judge.regret(model, ids, other, beams) == pytest.approx(loss.item() / 18)
        assert loss > 0.1
