"""How good generated tokens are, judged by transformers in float64.

    python judge.py MODEL_FOLDER IDS.json TOKENS.json BEAMS

Prints a line of JSON: ``regret``, in natural logarithms a token. Greedily it is how much more
likely than the chosen token the likeliest one was, given what the engine itself had written
before: 0 for an engine without errors, near 0 for one with rounding errors, several for one that
is wrong, however early two right engines part at a tie. With beams it is by how much the
likelihood of the engine's sequence falls short of that of the sequence that beam search finds
in float64; below 0, the engine found a better one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch


def log_probs(model: Any, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Of every token after those before, ``[rows, new, vocab]``."""
    start = torch.zeros_like(tokens[:, :1])
    decoder_ids = torch.cat([start, tokens[:, :-1]], 1)
    return model(input_ids=ids, decoder_input_ids=decoder_ids, use_cache=False).logits.log_softmax(-1)


def regret(model: Any, ids: torch.Tensor, tokens: torch.Tensor, beams: int) -> float:
    """As this module says, the mean over all tokens."""
    found = log_probs(model, ids, tokens)
    chosen = found.gather(-1, tokens[..., None])[..., 0]
    if beams == 1:
        return (found.amax(-1) - chosen).mean().item()
    model.generation_config.eos_token_id = None
    best = model.generate(input_ids=ids, max_new_tokens=tokens.shape[1], num_beams=beams, do_sample=False)[:, 1:]
    expected = log_probs(model, ids, best).gather(-1, best[..., None])[..., 0]
    return (expected - chosen).mean().item()


def main() -> None:
    """Judges one engine."""
    import transformers

    parser = argparse.ArgumentParser(description="Judge generated tokens.")
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("beams", type=int)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    model = transformers.T5ForConditionalGeneration.from_pretrained(options.model, dtype=torch.float64).eval()
    ids, tokens = (torch.tensor(json.loads(path.read_text())) for path in (options.ids, options.tokens))
    print(json.dumps({"regret": regret(model, ids, tokens, options.beams)}))


if __name__ == "__main__":
    main()
