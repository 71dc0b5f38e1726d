"""Writes what transformers generates from the decoder goldens, and what its rules make of scores.

    PYTHONPATH=tools python -m oracle.make_generation_goldens [DEST]

DEST is ``testdata`` unless given: ``decoder_goldens/*/generation.json`` and
``generation/rules.json``. Tokens are those of float64; a case in which float32 chooses otherwise is
left out, since its best two are nearer to each other than float32 can tell.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList

from oracle.cases import DECODER_GOLDENS, REPOSITORY, Model
from oracle.decoder import load_model
from oracle.make_decoder_goldens import SOURCES

DEST = REPOSITORY / "testdata"
Options = dict[str, Any]

ENDS = [1, 7, 20, 33, 41, 52]
"""Several end tokens, so that random models end now and then."""


def option_grid() -> list[Options]:
    """What is asked of every model."""
    greedy: list[Options] = [
        {"max_new_tokens": 12},
        {"max_length": 9, "eos_token_id": ENDS},
        {"max_new_tokens": 10, "min_new_tokens": 6, "eos_token_id": ENDS},
        {"max_new_tokens": 10, "min_length": 5, "eos_token_id": ENDS},
        {"max_new_tokens": 14, "repetition_penalty": 1.7, "eos_token_id": ENDS},
        {"max_new_tokens": 14, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 9, "no_repeat_ngram_size": 1, "eos_token_id": [1]},
        {"max_new_tokens": 8, "bad_words_ids": [[5], [9, 11], *([word] for word in range(30, 40)), [3, 4, 5]]},
        {"max_new_tokens": 8, "forced_bos_token_id": 13, "forced_eos_token_id": 17},
        {"max_new_tokens": 8, "suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [2, 3, 4, 5, 6, 8]},
        {"max_new_tokens": 12, "exponential_decay_length_penalty": [3, 1.4], "eos_token_id": ENDS},
    ]
    beams: list[Options] = [
        {"num_beams": n, "num_return_sequences": n, "early_stopping": early, "length_penalty": penalty,
         "max_new_tokens": 9, "eos_token_id": ENDS}
        for n, early, penalty in itertools.product((2, 4), (False, True, "never"), (1.0, -0.5, 2.0))
    ]
    return [
        *greedy,
        *beams,
        {"num_beams": 4, "max_new_tokens": 12, "length_penalty": 0.0, "early_stopping": "never"},
        {"num_beams": 5, "max_new_tokens": 12, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3,
         "length_penalty": 0.8, "eos_token_id": ENDS},
        {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 7, "forced_eos_token_id": 9,
         "bad_words_ids": [[5], [9, 11]], "min_new_tokens": 3, "eos_token_id": ENDS},
        {"num_beams": 2, "max_new_tokens": 7, "renormalize_logits": True, "suppress_tokens": list(range(30, 60)),
         "eos_token_id": ENDS},
        {"num_beams": 6, "num_return_sequences": 6, "max_new_tokens": 1},
        {"num_beams": 7, "max_new_tokens": 20, "eos_token_id": 1},
    ]


def _generate(model: Any, sources: list[np.ndarray], options: Options) -> tuple[list[list[int]], list[float]]:
    longest = max(map(len, sources))
    ids = torch.zeros(len(sources), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, source in enumerate(sources):
        ids[row, : len(source)], mask[row, : len(source)] = torch.from_numpy(source), 1
    # With a cache transformers 5.23 fails where the decoder has more layers than the encoder.
    result = model.generate(use_cache=False, input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True,
                            **options)
    scores = getattr(result, "sequences_scores", None)
    return result.sequences.tolist(), [] if scores is None else scores.tolist()


def write_generated(model: Model, dest: Path) -> tuple[int, int]:
    """One model's file; returns how many cases it has and how many were left out."""
    folder = dest / "decoder_goldens" / model.name
    stored = load_file(folder / "cases.safetensors")
    sources = [stored[f"{index}.source"] for index in range(len(SOURCES))]
    exact, narrow = (load_model(folder, model, dtype) for dtype in (torch.float64, torch.float32))
    start = model.config.get("decoder_start_token_id") or 0
    cases, left_out = [], 0
    for options in option_grid():
        given = {"eos_token_id": model.config.get("eos_token_id", 1), "pad_token_id": 0,
                 "decoder_start_token_id": start, **options}
        sequences, scores = _generate(exact, sources, given)
        narrow_sequences, _ = _generate(narrow, sources, given)
        if sequences != narrow_sequences:
            left_out += 1
            continue
        cases.append({"options": given, "sequences": sequences, "scores": scores})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (folder / "generation.json").write_text(f"[\n{lines}\n]\n")
    return len(cases), left_out


def rule_grid() -> list[Options]:
    """Rules and filters, alone and together."""
    alone: list[Options] = [
        {"temperature": 0.4}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 5}, {"top_k": 100},
        *({"top_k": 0, "top_p": p} for p in (0.05, 0.5, 0.9, 0.99)),
        *({"top_k": 0, "min_p": p} for p in (0.0, 0.05, 0.3, 1.0)),
        *({"top_k": 0, "typical_p": p} for p in (0.1, 0.5, 0.95)),
        *({"top_k": 0, "epsilon_cutoff": p} for p in (0.001, 0.03, 0.5)),
        *({"top_k": 0, "eta_cutoff": p} for p in (0.001, 0.03, 0.5)),
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.9},
        {"temperature": 1.3, "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2,
         "renormalize_logits": True},
        {"top_k": 9, "num_beams": 3, "top_p": 0.1},
        {"top_k": 0, "num_beams": 2, "min_p": 0.9, "eos_token_id": [1, 2, 3]},
    ]
    rules: list[Options] = [
        {"repetition_penalty": 0.5}, {"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 3}, {"bad_words_ids": [[1], [4], [6, 2], [3, 6, 2], [2, 2]]},
        {"min_length": 9}, {"min_new_tokens": 5}, {"forced_bos_token_id": 8}, {"forced_eos_token_id": [8, 9]},
        {"suppress_tokens": [1, 5, 36]}, {"begin_suppress_tokens": [4, 5]}, {"remove_invalid_values": True},
        {"exponential_decay_length_penalty": [1, 1.5]}, {"renormalize_logits": True},
        {"begin_suppress_tokens": [4, 5], "forced_bos_token_id": 3},
    ]
    return [*({"do_sample": True, **options} for options in alone), *rules]


HISTORIES = ([0], [0, 4], [0, 3, 6], [0, 3, 6, 2, 3, 6], [2, 2, 2, 2, 2, 2, 2], [0, 9, 8, 9, 8, 9, 8, 7, 6, 3, 6])
"""Tokens that a decoder has been fed; the last has the longest length less one."""


def write_rules(dest: Path) -> int:
    """Scores before and after transformers' processors, chosen by its own code."""
    vocab, longest = 37, 12
    rng = np.random.default_rng(5)
    carrier = load_model(dest / "decoder_goldens" / "t5-v1_1", DECODER_GOLDENS[1], torch.float32)
    cases = []
    for options in rule_grid():
        for history in HISTORIES:
            given = {"eos_token_id": [1], "decoder_start_token_id": 0, "max_length": longest, **options}
            config = GenerationConfig(**carrier.generation_config._get_default_generation_params() | given)
            config.min_length = config.min_length or 0
            prefix = 1
            if config.min_new_tokens is not None:
                config.min_length = config.min_new_tokens + prefix
            carrier._prepare_special_tokens(config, device="cpu")
            processors: LogitsProcessorList = carrier._get_logits_processor(config, input_ids_seq_length=prefix)
            scores = (rng.standard_normal(vocab) * 3).astype(np.float32)
            if options.get("remove_invalid_values"):
                scores[[3, 4, 5]] = np.nan, np.inf, -np.inf
            after = processors(torch.tensor([history]), torch.from_numpy(scores)[None].clone())[0]
            cases.append({"options": given, "history": history, "before": _plain(scores), "after": _plain(after.numpy())})
    (dest / "generation").mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (dest / "generation" / "rules.json").write_text(f"[\n{lines}\n]\n")
    return len(cases)


def _plain(values: np.ndarray) -> list[float | str]:
    return [float(f"{value:.9g}") if np.isfinite(value) else str(value) for value in values.astype(np.float64)]


def main() -> None:
    """Writes all files and says how many cases there are."""
    parser = argparse.ArgumentParser(description="Write what transformers generates, for Rust tests.")
    parser.add_argument("dest", type=Path, nargs="?", default=DEST)
    dest: Path = parser.parse_args().dest
    torch.set_num_threads(1)
    counts = [write_generated(model, dest) for model in DECODER_GOLDENS]
    print(f"{sum(count for count, _ in counts)} cases, {sum(left for _, left in counts)} left out")
    print(f"{write_rules(dest)} cases of rules")


if __name__ == "__main__":
    main()
