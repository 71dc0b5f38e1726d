"""How weights may be rounded to 8 and 4 bits: error compensation and smoothing, simulated on a real encoder.

    .venv/bin/python tools/simulate_rounding.py .cache/models/flan-t5-small TEXTS.txt

Of the texts, a line each, 128 shuffled ones are calibrated on and the next 64 are measured: relative root mean square and quantiles
of |difference| to the encoder's own f32 output. Products stay transformers'; only weights, and what flows into a product, are rounded.

- "nearest": what `quintic --weights` does.
- "compensated": rounding goes through a weight's columns in order, and what one column loses is made up for by those after it, by the
  inverse of the inputs' second moments (Frantar et al., GPTQ, arXiv:2210.17323).
- "smoothed a": inputs are divided by `max|x|^a / max|w|^(1 - a)` channel by channel and weights multiplied by it (Xiao et al.,
  SmoothQuant, arXiv:2211.10438).
- "in groups of n": what flows into `wo` has a step for each token and `n` adjacent channels, not for each token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import T5EncoderModel

GROUP = 32
QUANTILES = (0.5, 0.9, 0.99, 0.999, 0.9999)
BYTES, WORDS = 127, 32639
KINDS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "wi": "wi", "wi_0": "wi", "wi_1": "wi", "wo": "wo"}
Rounding = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def steps_of_int8(weights: torch.Tensor) -> torch.Tensor:
    """A step for each row of `weights`."""
    return weights.abs().amax(1) / BYTES


def steps_of_int4(group: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Steps of a group of columns: a whole multiplier of the row's factor, the one with the least squared error."""
    best = error = torch.empty(0)
    for multiplier in (sign * size for size in range(1, 16) for sign in (1, -1)):
        step = (factor * multiplier)[:, None]
        lost = (((group / step).round().clamp(-8, 7) * step - group) ** 2).sum(1)
        if multiplier == 1:
            best, error = step[:, 0], lost
        best, error = torch.where(lost < error, step[:, 0], best), torch.minimum(lost, error)
    return best


def rounded(bits: int, compensate: float | None) -> Rounding:
    """Rounds column by column; `compensate` is the share of the mean second moment that is added to all of them."""

    def f(weights: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
        weights, out = weights.clone(), torch.zeros_like(weights)
        if compensate is not None:
            damped = moments + torch.eye(len(moments), dtype=moments.dtype) * compensate * moments.diag().mean()
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
            upper = torch.linalg.cholesky(inverse, upper=True)
        step = steps_of_int8(weights)
        factor = weights.abs().amax(1) / 120
        lowest, highest = (-8, 7) if bits == 4 else (-BYTES, BYTES)
        for k in range(weights.shape[1]):
            if bits == 4 and k % GROUP == 0:
                step = steps_of_int4(weights[:, k : k + GROUP], factor)
            out[:, k] = (weights[:, k] / step).round().clamp(lowest, highest) * step
            if compensate is not None:
                lost = (weights[:, k] - out[:, k]) / upper[k, k]
                weights[:, k + 1 :] -= lost[:, None] * upper[k, k + 1 :][None]
        return out

    return f


class Bench:
    """An encoder, what flows through it, and what it gives."""

    def __init__(self, folder: Path, texts: Path) -> None:
        self.model = T5EncoderModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        lines = [line for line in texts.read_text().splitlines() if len(line) > 20]
        if len(lines) < 192:
            raise SystemExit(f"{texts}: {len(lines)} lines of more than 20 characters, expected at least 192")
        np.random.default_rng(0).shuffle(lines)
        rows = [tokenizer.encode(line).ids[:256] for line in lines[:192]]
        self.rows = rows[128:]
        self.products = {n: m for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)}
        self.weights = {n: m.weight.data.clone().double() for n, m in self.products.items()}
        self.moments: dict[str, torch.Tensor] = {}
        self.largest: dict[str, torch.Tensor] = {}
        with self.hooks({name: self.watch(name) for name in self.products}):
            self.run(rows[:128])
        self.truth = self.run(self.rows)

    def run(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.cat([self.model(torch.tensor([row])).last_hidden_state[0] for row in rows]).double()

    def watch(self, name: str) -> Callable[[torch.Tensor], None]:
        def f(x: torch.Tensor) -> None:
            x = x.reshape(-1, x.shape[-1]).double()
            most = x.abs().amax(0)
            self.moments[name] = self.moments.get(name, torch.zeros(1)) + x.T @ x
            self.largest[name] = torch.maximum(self.largest.get(name, most), most)

        return f

    @contextmanager
    def hooks(self, hooks: dict[str, Callable[[torch.Tensor], torch.Tensor | None]]) -> Iterator[None]:
        def hook(f: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., tuple[torch.Tensor] | None]:
            def g(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor] | None:
                changed = f(inputs[0])
                return None if changed is None else (changed,)

            return g

        handles = [self.products[name].register_forward_pre_hook(hook(f)) for name, f in hooks.items()]
        yield
        for handle in handles:
            handle.remove()

    def smoothing(self, name: str, alpha: float | None) -> torch.Tensor:
        """Divisors of the channels that flow into a product; products with one input share them."""
        if alpha is None:
            return torch.ones(self.weights[name].shape[1], dtype=torch.float64)
        layer = name.rsplit(".", 1)[0]
        kin = [n for n in self.products if n.rsplit(".", 1)[0] == layer and kind(n) == kind(name)]
        weights = torch.stack([self.weights[n].abs().amax(0) for n in kin]).amax(0).clamp(min=1e-9)
        divisors = self.largest[name].clamp(min=1e-9) ** alpha / weights ** (1 - alpha)
        return divisors / divisors.log().mean().exp()

    def measure(
        self,
        name: str,
        rounding: Rounding,
        inputs: dict[str, int] | None = None,
        smooth: dict[str, float] | None = None,
        groups: dict[str, int] | None = None,
    ) -> None:
        """Of `inputs`, the largest code of a kind's inputs, of `smooth` its exponent, of `groups` the channels of a step."""
        hooks: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {}
        for product, module in self.products.items():
            divisors = self.smoothing(product, (smooth or {}).get(kind(product)))
            moments = self.moments[product] / divisors[None] / divisors[:, None]
            module.weight.data = rounding(self.weights[product] * divisors[None], moments).float()
            if inputs is not None:
                group = (groups or {}).get(kind(product))
                hooks[product] = to_codes(divisors.float(), inputs[kind(product)], group)
        with self.hooks(hooks):
            found = self.run(self.rows)
        for product, module in self.products.items():
            module.weight.data = self.weights[product].float()
        difference = (found - self.truth).abs().flatten()
        relative = (difference.square().mean().sqrt() / self.truth.square().mean().sqrt()).item()
        quantiles = np.quantile(difference.numpy(), QUANTILES)
        print(f"{name:40} {relative:.4f}  " + "  ".join(f"{value:.1e}" for value in quantiles), flush=True)


def kind(name: str) -> str:
    return KINDS[name.rsplit(".", 1)[1]]


def to_codes(divisors: torch.Tensor, largest: int, group: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Each token's nearest codes, with a step for every `group` channels; one for all if there is none."""

    def f(x: torch.Tensor) -> torch.Tensor:
        x = x / divisors
        pieces = x.unflatten(-1, (-1, group or x.shape[-1]))
        step = pieces.abs().amax(-1, keepdim=True).clamp(min=1e-30) / largest
        return ((pieces / step).round() * step).flatten(-2)

    return f


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a T5 model with tokenizer.json")
    parser.add_argument("texts", type=Path, help="texts, a line each")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = Bench(arguments.model, arguments.texts)
    print(f"{'':40} rel. RMS " + "  ".join(f"{q:>7}" for q in QUANTILES))
    for bits in (8, 4):
        bench.measure(f"int{bits}, nearest", rounded(bits, None))
        for damping in (0.01, 0.1):
            bench.measure(f"int{bits}, compensated, damping {damping}", rounded(bits, damping))
    nearest = rounded(8, None)
    all_bytes = dict.fromkeys(("qkv", "o", "wi", "wo"), BYTES)
    wide_wo = {**all_bytes, "wo": WORDS}
    bench.measure("w8a8, all inputs in 8 bits", nearest, all_bytes)
    bench.measure("w8a8, wo's in 16", nearest, wide_wo)
    for group in (512, 256, 128, 64):
        bench.measure(f"w8a8, all in 8, wo's in groups of {group}", nearest, all_bytes, groups={"wo": group})
    for alpha in (0.3, 0.5, 0.7):
        bench.measure(f"w8a8, all in 8, smoothed {alpha}", nearest, all_bytes, dict.fromkeys(all_bytes, alpha))
    for alpha in (0.3, 0.5, 0.7):
        others = dict.fromkeys(("qkv", "o", "wi"), alpha)
        bench.measure(f"w8a8, wo's in 16, others smoothed {alpha}", nearest, wide_wo, others)
    bench.measure("w8a8, wo's in 16, compensated", rounded(8, 0.1), wide_wo)


if __name__ == "__main__":
    main()
