"""Times quintic beside transformers in float32 on real captions, interleaved, on the real FLAN-T5-small.

    PYTHONPATH=tools python -m oracle.time_captions [--captions 512] [--rounds 5]

Both get the same token ids and give mean-pooled vectors, which are compared before anything is timed. transformers runs with its
default attention (sdpa) in padded batches of 32, once in file order and once sorted by length. quintic's time is that of encoding,
as the program itself reports it; neither side's loading is counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from transformers import T5EncoderModel

from oracle.cases import REPOSITORY
from oracle.engines import Quintic

PARTI = REPOSITORY / "testdata" / "prompts" / "PartiPrompts.tsv"
FLAN = REPOSITORY / ".cache" / "models" / "flan-t5-small"
BATCH_ROWS = 32


def batches(rows: list[list[int]], *, by_length: bool) -> list[list[int]]:
    """Indices of rows, 32 a batch."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row])) if by_length else list(range(len(rows)))
    return [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]


def run_transformers(model: T5EncoderModel, rows: list[list[int]], *, by_length: bool) -> np.ndarray:
    """Mean-pooled vectors, `[rows, d_model]`."""
    vectors = np.empty((len(rows), model.config.d_model), dtype=np.float32)
    for batch in batches(rows, by_length=by_length):
        length = max(len(rows[row]) for row in batch)
        ids = torch.tensor([rows[row] + [0] * (length - len(rows[row])) for row in batch])
        mask = torch.tensor([[1] * len(rows[row]) + [0] * (length - len(rows[row])) for row in batch])
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        vectors[batch] = pooled.numpy()
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    texts = [line.split("\t")[0] for line in PARTI.read_text().strip("\n").split("\n")[1:]][: args.captions]
    tokenizer = Tokenizer.from_file(str(FLAN / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows = [tokenizer.encode(text).ids for text in texts]
    n_tokens = sum(map(len, rows))
    model = T5EncoderModel.from_pretrained(FLAN, dtype=torch.float32).eval()

    with tempfile.TemporaryDirectory() as folder:
        quintic = Quintic(Path(folder))
        (Path(folder) / "texts.txt").write_text("\n".join(texts) + "\n")
        output = Path(folder) / "out.safetensors"

        def run_quintic() -> float:
            printed = quintic.run(
                "encode", "--model", FLAN, "--input", Path(folder) / "texts.txt", "--pool", "mean", "--json", "-o", output
            )
            return float(json.loads(printed)["encode_s"])

        run_quintic()
        distance = np.abs(load_file(output)["embeddings"] - run_transformers(model, rows, by_length=True)).max()
        if not distance < 1e-5:
            raise SystemExit(f"the vectors differ by {distance}: nothing was timed")
        times: dict[str, list[float]] = {"quintic reference": [], "transformers, sorted": [], "transformers, file order": []}
        for _ in range(args.rounds):
            times["quintic reference"].append(run_quintic())
            for name, by_length in (("transformers, sorted", True), ("transformers, file order", False)):
                start = time.perf_counter()
                run_transformers(model, rows, by_length=by_length)
                times[name].append(time.perf_counter() - start)

    print(f"{len(rows)} captions, {n_tokens} tokens, {args.rounds} rounds, {torch.get_num_threads()} threads; vectors agree to {distance:.1e}")
    ours = statistics.median(times["quintic reference"])
    print("| engine | median s | min | max | tokens/s | quintic is slower by |")
    print("|---|---|---|---|---|---|")
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"| {name} | {median:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {n_tokens / median:.0f} | {ours / median:.1f} x |")


if __name__ == "__main__":
    main()
