"""Tests of the tester: wrong outputs must be refused, and the reference must be what it claims to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from oracle.cases import CONFIGS, MODELS, Batch, Model
from oracle.compare import EXACT, LayerError, assert_accepted, assert_zero, layer_errors
from oracle.engines import Outputs, StandIn
from oracle.make_models import read_tensors
from oracle.plain import PlainEncoder
from oracle.run_reference import Expected, Reference, check_weights, load_encoder

FolderOf = Callable[[Model], Path]


def _named(name: str) -> Model:
    return next(model for model in MODELS if model.name == name)


def _small() -> Model:
    return _named("shape-umt5")


@pytest.fixture(scope="module")
def right(folder_of: FolderOf) -> tuple[Batch, Expected, Outputs]:
    """A batch, what is expected, and an output that is right."""
    model = _small()
    batch = model.batch("ragged")
    folder = folder_of(model)
    return batch, Reference(folder, model.oracle).run(batch), StandIn().encode(folder, batch, "zero")


def _verify(batch: Batch, expected: Expected, outputs: Outputs) -> None:
    assert_zero(outputs, ~batch.real())
    assert_accepted(layer_errors(outputs, expected, batch.real()))


def test_a_maximum_of_luck_is_judged_by_its_channel() -> None:
    """Never for the exact backend, and only if root mean squares are in order."""
    lucky = LayerError(1, 5.0, 1.0, ours_rms=1.0, theirs_rms=1.0, ours_channel=1.5, theirs_channel=1.0)
    assert lucky.accepted is not EXACT
    for worse in ({"ours_channel": 2.5}, {"ours_channel": float("nan")}, {"ours_rms": 2.5}):
        assert not replace(lucky, **worse).accepted


def test_the_right_output_is_accepted(right: tuple[Batch, Expected, Outputs]) -> None:
    """Otherwise the refusals below would mean nothing."""
    _verify(*right)


def _nudge(outputs: Outputs, name: str, row: int, position: int, value: float) -> None:
    outputs[name][row, position, 3] = value


SPOILERS: dict[str, Callable[[Outputs], object]] = {
    "a value off by 1e-4": lambda o: _nudge(o, "hidden_states.2", 3, 15, o["hidden_states.2"][3, 15, 3] + 1e-4),
    "an embedding off by one bit": lambda o: _nudge(
        o, "hidden_states.0", 2, 0, np.nextafter(o["hidden_states.0"][2, 0, 3], np.float32(9))
    ),
    "nan": lambda o: _nudge(o, "hidden_states.1", 0, 0, np.nan),
    "infinity": lambda o: _nudge(o, "hidden_states.1", 0, 0, np.inf),
    "something at padding": lambda o: _nudge(o, "hidden_states.1", 0, 5, 1e-30),
    "something at padding, at the end": lambda o: _nudge(o, "last_hidden_state", 0, 39, 1e-30),
    "zeros instead of results": lambda o: o["hidden_states.1"].fill(0),
    "a last state of its own": lambda o: _nudge(
        o, "last_hidden_state", 7, 1, np.nextafter(o["last_hidden_state"][7, 1, 3], np.float32(9))
    ),
    "two layers swapped": lambda o: o.update(
        {"hidden_states.1": o["hidden_states.2"], "hidden_states.2": o["hidden_states.1"]}
    ),
    "two rows swapped": lambda o: o.update({name: value[[0, 1, 2, 3, 4, 5, 7, 6]] for name, value in o.items()}),
    "a layer missing": lambda o: o.pop("hidden_states.1"),
    "a layer too many": lambda o: o.update({"hidden_states.4": o["hidden_states.3"]}),
    "no last state": lambda o: o.pop("last_hidden_state"),
    "another type": lambda o: o.update({"hidden_states.1": o["hidden_states.1"].astype(np.float64)}),
    "another shape": lambda o: o.update({"hidden_states.1": o["hidden_states.1"][:, :-1]}),
}


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_wrong_output_is_refused(spoiler: str, right: tuple[Batch, Expected, Outputs]) -> None:
    """Each way to be wrong, alone."""
    batch, expected, outputs = right
    spoiled = {name: value.copy() for name, value in outputs.items()}
    SPOILERS[spoiler](spoiled)
    with pytest.raises((AssertionError, IndexError)):
        _verify(batch, expected, spoiled)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_reference_is_exact(model: Model, folder_of: FolderOf) -> None:
    """float64 transformers with exact norms and the NumPy encoder agree to a few units in the last place."""
    folder = folder_of(model)
    encoder = PlainEncoder(folder, np.float64)
    reference = Reference(folder, model.oracle)
    for name in model.batches:
        batch = model.batch(name)
        if batch.input_ids.shape[1] > 64:
            continue
        for index, (theirs, ours) in enumerate(
            zip(reference.run(batch).f64, encoder.hidden_states(batch), strict=True)
        ):
            scale = max(1.0, float(np.abs(theirs).max()))
            assert np.abs(theirs - ours).max() <= 1e-12 * scale, f"{name}, layer {index}"


def test_wrong_weights_are_noticed(folder_of: FolderOf) -> None:
    """The check after loading fails when one stored number differs."""
    model = _small()
    encoder = load_encoder(folder_of(model), model.oracle, torch.float64)
    tensors = read_tensors(folder_of(model))
    check_weights(encoder, tensors)
    tensors["encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"][3, 1] += 0.5
    with pytest.raises(AssertionError, match="block.1"):
        check_weights(encoder, tensors)


@pytest.mark.parametrize(
    "name",
    ["published-google-t5__t5-small", "published-t5-v1_1-xxl", "published-google__umt5-small_84afba6", "shape-d_kv-16"],
)
def test_models_strain_arithmetic_as_trained_ones_do(name: str, folder_of: FolderOf) -> None:
    """Residual stream of order 1 to 10, attention neither uniform nor one-hot, outputs that differ by token."""
    model = _named(name)
    encoder = load_encoder(folder_of(model), model.oracle, torch.float64)
    batch = model.batch("len_33")
    output = encoder(torch.from_numpy(batch.input_ids), output_attentions=True, output_hidden_states=True)
    for attention in output.attentions:
        assert 0.15 < float(attention.amax(-1).mean()) < 0.8
    for state in output.hidden_states:
        assert 0.3 < float(state.pow(2).mean().sqrt()) < 30
        assert float(state.std(dim=1).mean()) > 0.3


# --- what transformers does in odd cases, so that a new version cannot change it unnoticed ------


def test_transformers_computes_norm_statistics_in_float32() -> None:
    """Why the float64 reference replaces the norm."""
    norm = transformers.models.t5.modeling_t5.T5LayerNorm(64).double()
    x = torch.randn(10, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert 1e-10 < float((norm(x) - exact).detach().abs().max()) < 1e-6


@pytest.fixture(scope="module")
def tiny(folder_of: FolderOf) -> torch.nn.Module:
    """An encoder in float64, and eager."""
    return load_encoder(folder_of(_small()), _small().oracle, torch.float64)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_transformers_refuses_3d_masks(tiny: torch.nn.Module, dtype: torch.dtype) -> None:
    """They have to become 4-D; only a 3-D mask of ones passes, because it is dropped before use."""
    mask = torch.ones((1, 4, 4), dtype=dtype)
    ids = torch.ones((1, 4), dtype=torch.int64)
    tiny(ids, attention_mask=mask)
    mask[0, 0, 1] = 0
    with pytest.raises(RuntimeError, match="expand"):
        tiny(ids, attention_mask=mask)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_transformers_adds_4d_masks_to_the_scores(tiny: torch.nn.Module, dtype: torch.dtype) -> None:
    """With eager attention a 4-D mask of bools masks next to nothing, silently."""
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.zeros((1, 1, 5, 5), dtype=dtype)
    mask[..., :2, :2] = mask[..., 2:, 2:] = 1
    alone = tiny(ids[:, :2]).last_hidden_state
    assert float((tiny(ids, attention_mask=mask).last_hidden_state[:, :2] - alone).abs().max()) > 0.1
    zero = torch.zeros((), dtype=torch.float64)
    additive = torch.where(mask.bool(), zero, torch.finfo(torch.float64).min)
    assert float((tiny(ids, attention_mask=additive).last_hidden_state[:, :2] - alone).abs().max()) < 1e-12


def test_an_empty_row_attends_uniformly(tiny: torch.nn.Module) -> None:
    """Every key of a fully masked row gets the weight 1/len, padding included, in every head and layer."""
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 1, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    for attention in tiny(ids, attention_mask=mask, output_attentions=True).attentions:
        assert torch.equal(attention[1], torch.full_like(attention[1], 0.25))
        assert not attention[0, :, :, 3].any()


@pytest.mark.parametrize(
    ("config", "activation", "gated"),
    [
        ("google__flan-t5-xxl_18f1ad8_odd", "gelu", True),
        ("flux1-dev_text_encoder_2_t5-v1_1-xxl", "gelu_pytorch_tanh", True),
        ("comfyui__t5_config_base", "relu", False),
        ("google-t5__t5-small", "relu", False),
        ("google__mt5-small_copy", "gelu_new", True),
        ("google__flan-t5-large", "gelu_new", True),
    ],
)
def test_dense_act_fn_and_is_gated_act_have_the_last_word(config: str, activation: str, gated: bool) -> None:
    """What ``feed_forward_proj`` implies is overwritten by these two keys wherever they are written."""
    read = transformers.T5Config.from_json_file(CONFIGS / f"{config}.json")
    assert (read.dense_act_fn, read.is_gated_act) == (activation, gated)


def test_umt5_without_a_model_type_needs_its_class_named(folder_of: FolderOf) -> None:
    """AutoConfig refuses the published folder; the class from ``architectures`` reads it."""
    folder = folder_of(_named("published-google__umt5-small_84afba6"))
    with pytest.raises(ValueError, match="model_type"):
        transformers.AutoConfig.from_pretrained(folder)
    assert transformers.UMT5Config.from_pretrained(folder).dense_act_fn == "gelu_new"


def test_from_pretrained_and_a_checkpoint_without_shared(tmp_path: Path, folder_of: FolderOf) -> None:
    """Why weights are assigned by hand: MADLAD's encoder comes out of ``from_pretrained`` with random embeddings."""
    model = _named("published-google__madlad400-3b-mt")
    tensors = read_tensors(folder_of(model))
    (tmp_path / "config.json").write_text((folder_of(model) / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = transformers.T5EncoderModel.from_pretrained(tmp_path)
    with pytest.raises(AssertionError, match="shared.weight"):
        check_weights(loaded, tensors)
