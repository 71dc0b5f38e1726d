"""What is encoded or generated: model shapes, token ids and the arithmetic that they cost."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

VOCAB = 32128
D_KV = 64


@dataclass(frozen=True)
class Shape:
    """A T5 v1.1 encoder: gated tanh-GELU, heads of 64, 32 position buckets.

    With a decoder it is the whole model, whose head is not the embedding table.
    """

    d_model: int
    d_ff: int
    n_layers: int
    n_heads: int
    has_decoder: bool = False

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.n_heads * D_KV

    def layer_parameters(self) -> int:
        """Weights of one layer's matrices: query, key, value, output, gate, up, down."""
        return 4 * self.d_model * self.inner + 3 * self.d_model * self.d_ff

    def parameters(self) -> int:
        """All weights, the embedding included."""
        norms = (2 * self.n_layers + 1) * self.d_model
        encoder = VOCAB * self.d_model + self.n_layers * self.layer_parameters() + norms + 32 * self.n_heads
        if not self.has_decoder:
            return encoder
        norms = (3 * self.n_layers + 1) * self.d_model
        layers = self.n_layers * (self.layer_parameters() + self.cross_parameters())
        return encoder + layers + norms + 32 * self.n_heads + VOCAB * self.d_model

    def cross_parameters(self) -> int:
        """Weights of one layer's cross-attention."""
        return 4 * self.d_model * self.inner

    def flops(self, lengths: list[int]) -> int:
        """Useful work on rows of these lengths, a multiply-add as two; nothing for padding.

        The matrices, and in attention the scores and the weighted sums. Norms, softmax and
        activations are left out.
        """
        products = 2 * self.n_layers * self.layer_parameters() * sum(lengths)
        attention = 4 * self.n_layers * self.inner * sum(n * n for n in lengths)
        return products + attention

    def decoder_flops(self, lengths: list[int], new: int) -> int:
        """Useful work of ``new`` tokens behind each row: one sequence a row, however many are tried."""
        cross_kv = 2 * self.n_layers * self.cross_parameters() // 2 * sum(lengths)
        layers = self.n_layers * (self.layer_parameters() + self.cross_parameters() // 2)
        steps = 2 * (layers + VOCAB * self.d_model) * new * len(lengths)
        looked_at = sum(new * (new + 1) // 2 + new * length for length in lengths)
        return cross_kv + steps + 4 * self.n_layers * self.inner * looked_at


SHAPES = {
    "tiny": Shape(128, 256, 2, 2),
    "base": Shape(768, 2048, 12, 12),
    "large": Shape(1024, 2816, 24, 16),
    "xl": Shape(2048, 5120, 24, 32),
    "tiny-decoder": Shape(128, 256, 2, 2, has_decoder=True),
    "base-decoder": Shape(768, 2048, 12, 12, has_decoder=True),
}

# 32 draws of a log-normal law around 24 tokens, as captions are long. Written down, so that no
# generator's version can change them.
CAPTIONS = [
    *(87, 102, 26, 11, 8, 25, 9, 6, 29, 27, 41, 10, 24, 22, 5, 41),
    *(33, 262, 29, 21, 82, 29, 60, 17, 30, 67, 48, 27, 8, 37, 26, 49),
]


@dataclass(frozen=True)
class Workload:
    """Rows of given lengths through a model of a given shape.

    With ``new_tokens`` so many are written behind each row, greedily or with beams, and the end
    token plays no part.
    """

    name: str
    shape_name: str
    lengths: list[int]
    new_tokens: int = 0
    beams: int = 1

    @property
    def shape(self) -> Shape:
        """The model's shape."""
        return SHAPES[self.shape_name]

    @property
    def is_ragged(self) -> bool:
        """Whether rows differ in length, so that a batch has padding."""
        return len(set(self.lengths)) > 1

    @property
    def tokens(self) -> int:
        """What a rate counts: tokens written, or else real tokens read."""
        return self.new_tokens * len(self.lengths) or sum(self.lengths)

    @property
    def flops(self) -> int:
        """Useful work of one run."""
        decoder = self.shape.decoder_flops(self.lengths, self.new_tokens) if self.new_tokens else 0
        return self.shape.flops(self.lengths) + decoder

    def ids(self) -> list[list[int]]:
        """Random ordinary tokens, the same on every machine."""
        return random_ids(self.lengths)

    def title(self) -> str:
        """One line for the report."""
        longest = max(self.lengths)
        if self.new_tokens:
            how = f"{self.beams} beams" if self.beams > 1 else "greedy"
            rows = f"{len(self.lengths)} x {longest} tokens read, {self.new_tokens} written, {how}"
            return f"{self.name}: {self.shape_name}, {rows}; {self.flops / 1e9:,.0f} GFLOP of useful work"
        rows = f"{len(self.lengths)} captions, {self.tokens:,} tokens, longest {longest}" if self.is_ragged else f"1 x {longest}"
        return f"{self.name}: {self.shape_name}, {rows}; {self.flops / 1e9:,.0f} GFLOP of useful work"


def random_ids(lengths: list[int]) -> list[list[int]]:
    """Token ids below the sentinels and above padding and end."""
    source = random.Random(20)
    return [[int(source.random() * 31_000) + 100 for _ in range(length)] for length in lengths]


# Every so manyeth of the captions is taken, so that all their kinds are among them.
CAPTION_STEP = 13
CAPTION_FILE = Path(__file__).resolve().parents[2] / "testdata" / "prompts" / "PartiPrompts.tsv"


def caption_ids(checkpoint: Path, offset: int) -> list[list[int]]:
    """Token ids of real captions, by the checkpoint's tokenizer; different offsets share no caption's place."""
    from tokenizers import Tokenizer

    with CAPTION_FILE.open(encoding="utf-8", newline="") as file:
        texts = [row["Prompt"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    return [tokenizer.encode(text).ids for text in texts[offset::CAPTION_STEP]]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W0", "tiny", [24, 5, 64]),
        Workload("W1", "base", [512]),
        Workload("W2", "large", [512]),
        Workload("W3", "xl", [512]),
        Workload("W4", "xl", [32]),
        Workload("W5", "large", CAPTIONS),
        Workload("W6", "xl", CAPTIONS),
        Workload("G0", "tiny-decoder", [12, 12], 8, 2),
        Workload("G1", "base-decoder", [64], 64),
        Workload("G2", "base-decoder", [64] * 8, 64),
        Workload("G3", "base-decoder", [64], 64, 4),
    )
}
DEFAULT_WORKLOADS = ("W1", "W2", "W3", "W4", "W5", "G1", "G2", "G3")
