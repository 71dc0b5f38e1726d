"""f16 on a model whose feed-forward layers leave its range: quintic's, and transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from oracle.cases import GOLDENS, Batch, Model
from oracle.engines import Quintic
from oracle.make_models import draw
from oracle.run_reference import hidden_states, load_encoder

LARGEST = 65504.0
# Eight roundings to 11 bits, as the suite of quintic's backends derives it for a pass.
BOUND = 8 / 2048
# One of so many hidden units is an outlier.
EVERY = 7
# Of an outlier's first two products; each is some units in size.
FACTOR = 400.0


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A gated model, stored in f16, whose outliers reach some 100,000 and more behind the gate."""
    model = next(each for each in GOLDENS if each.name == "t5-v1_1")
    assert model.is_gated
    tensors = {name: tensor.float() for name, tensor in draw(model).items()}
    for name, tensor in tensors.items():
        if name.startswith("encoder.") and ".wi_" in name:
            tensor[::EVERY] *= FACTOR
        elif name.startswith("encoder.") and name.endswith(".wo.weight"):
            # Nearly as much back: some four times the usual size of such a unit is left, which f16 holds.
            tensor[:, ::EVERY] /= FACTOR**2 / 4
    folder = tmp_path_factory.mktemp("loud")
    (folder / "config.json").write_text(json.dumps(model.config))
    stored = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return model, folder


@pytest.fixture(scope="module")
def batch(loud: tuple[Model, Path]) -> Batch:
    """Three rows without padding."""
    ids = np.random.default_rng(5).integers(2, loud[0].config["vocab_size"], size=(3, 24))
    return Batch("loud", "none", ids)


def _distance(found: np.ndarray, exact: np.ndarray) -> float:
    """Relative root mean square; NaN if a value is."""
    difference = found.astype(np.float64) - exact
    return float(np.sqrt(np.square(difference).sum() / np.square(exact).sum()))


def _transformers_in_f16(folder: Path, batch: Batch, *, with_wo_in_f32: bool) -> np.ndarray:
    """The last hidden states, with the one kind of weights that transformers keeps in float32 there, or not."""
    encoder = transformers.T5EncoderModel.from_pretrained(folder, dtype=torch.float16).eval()
    if not with_wo_in_f32:
        encoder = encoder.half()
    types = {parameter.dtype for name, parameter in encoder.named_parameters() if name.endswith("wo.weight")}
    assert types == {torch.float32 if with_wo_in_f32 else torch.float16}
    with torch.no_grad():
        return encoder(input_ids=torch.from_numpy(batch.input_ids)).last_hidden_state.float().numpy()


def test_quintic_holds_what_transformers_does_not(
    quintic: Quintic, loud: tuple[Model, Path], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is within the bounds of f16; theirs is not finite, or off by more than a hundred times as much."""
    model, folder = loud
    exact_encoder = load_encoder(folder, model.oracle, torch.float64)
    peaks: list[float] = []
    for name, module in exact_encoder.named_modules():
        if name.endswith("DenseReluDense.wo"):
            module.register_forward_pre_hook(lambda _, args: peaks.append(float(args[0].abs().max())))
    exact = hidden_states(exact_encoder, batch)[-1]
    assert len(peaks) == model.config["num_layers"]
    assert min(peaks) > LARGEST, peaks

    # The program is shared by the whole session.
    monkeypatch.setattr(quintic, "extra", ["--dtype", "f16"])
    ours = quintic.encode(folder, batch, "zero", hidden_states=False)["last_hidden_state"]
    distance = _distance(ours, exact)
    assert distance <= BOUND
    for with_wo_in_f32 in (True, False):
        theirs = _transformers_in_f16(folder, batch, with_wo_in_f32=with_wo_in_f32)
        other = _distance(theirs, exact)
        assert not np.isfinite(theirs).all() or other > 100 * distance, (with_wo_in_f32, other, distance)


def test_a_calibration_finds_the_peaks(
    quintic: Quintic, loud: tuple[Model, Path], batch: Batch, tmp_path: Path
) -> None:
    """What `calibrate` says of the sizes is what transformers in float64 computes."""
    model, folder = loud
    encoder = load_encoder(folder, model.oracle, torch.float64)
    inside: list[float] = []
    before: list[float] = []

    def product(_module: torch.nn.Module, _args: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        before.append(float(result.abs().max()))

    for name, module in encoder.named_modules():
        if name.endswith("DenseReluDense.wo"):
            module.register_forward_pre_hook(lambda _, args: inside.append(float(args[0].abs().max())))
        elif name.endswith(("DenseReluDense.wi_0", "DenseReluDense.wi_1")):
            module.register_forward_hook(product)
    # Bytes are the tokenizer that needs no files; a row each, as `calibrate` packs them.
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}))
    text = "$*3/9%"
    ids = np.array([[byte + 3 for byte in text.encode()] + [1]])
    assert ids.max() < model.config["vocab_size"]
    hidden_states(encoder, Batch("text", "none", ids))
    source, plan = tmp_path / "texts.txt", tmp_path / "plan.json"
    source.write_text(text + "\n")
    quintic.run("calibrate", "--model", folder, "--input", source, "--new-tokens", "0", "--quiet", "-o", plan)
    layers = [layer for layer in json.loads(plan.read_text())["feed_forward"] if "encoder" in layer["product"]]
    assert len(layers) == len(inside) == model.config["num_layers"]
    pairs = zip(before[::2], before[1::2], strict=True)
    for layer, gated, product_peak in zip(layers, inside, map(max, pairs), strict=True):
        # Both are exact but for one rounding to f32 a buffer, of some ten on the way.
        assert layer["gated_peak"] == pytest.approx(gated, rel=1e-5)
        assert layer["product_peak"] == pytest.approx(product_peak, rel=1e-5)
        # The power of two leaves a factor of 8 above what was found, and less than twice that.
        scaled = gated * 2.0 ** -layer["outer_exponent"]
        assert LARGEST / 16 < scaled <= LARGEST / 8
