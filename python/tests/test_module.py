"""The classes behave like modules of PyTorch where programs look, and refuse the rest."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from closeness import assert_close, assert_close_in_parts
from conftest import SHAPES, Pair, make_hf
from test_forward import ids_of

import quintic
from quintic.errors import (
    ConfigError,
    InputError,
    ModelNotFoundError,
    QuinticError,
    UnsupportedError,
)


def test_is_what_programs_ask_for(pair: Pair) -> None:
    model = pair.ours
    assert isinstance(model, type(pair.theirs)) and isinstance(model, transformers.PreTrainedModel)
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    assert type(model.config) is type(pair.theirs.config)
    for field, value in pair.theirs.config.to_dict().items():
        if field not in ("dtype", "_name_or_path", "transformers_version", "architectures"):
            assert getattr(model.config, field) == value, field
    assert model.training is False
    assert model.config_class is type(model.config)
    assert next(model.parameters()).device.type == "cpu"
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_under_hugging_face_names(pair: Pair) -> None:
    expected = pair.theirs.state_dict()
    found = pair.ours.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    named = dict(pair.ours.named_parameters())
    assert list(named) == list(dict(pair.theirs.named_parameters()))
    everything = pair.ours.named_parameters(remove_duplicate=False)
    assert [name for name, _ in everything] == [name for name, _ in pair.theirs.named_parameters(remove_duplicate=False)]
    for exclude in (False, True):
        counts = {model.num_parameters(exclude_embeddings=exclude) for model in (pair.ours, pair.theirs)}
        assert len(counts) == 1
    assert pair.ours.num_parameters(only_trainable=True) == 0
    assert torch.equal(pair.ours.get_input_embeddings().weight, expected["shared.weight"])
    assert torch.equal(pair.ours.shared(ids_of(1, 4)), pair.theirs.shared(ids_of(1, 4)))


def test_writing_to_a_copy_of_a_weight_changes_nothing(gated: Pair) -> None:
    before = gated.ours(ids_of(1, 5))[0]
    for parameter in gated.ours.parameters():
        parameter.data.zero_()
    assert torch.equal(gated.ours(ids_of(1, 5))[0], before)


def test_to_changes_the_type_in_place_and_back(gated: Pair) -> None:
    model = gated.our_class.from_pretrained(gated.folder, dtype=torch.float32)
    ids = ids_of(2, 9)
    exact = model(ids)[0]
    assert model.to(torch.bfloat16) is model and model.dtype == torch.bfloat16
    half = model(ids)[0]
    assert half.dtype == torch.bfloat16 and next(model.parameters()).dtype == torch.bfloat16
    loaded = gated.our_class.from_pretrained(gated.folder, dtype=torch.bfloat16)
    assert torch.equal(loaded(ids)[0], half)
    # The files are read again: nothing was lost.
    assert torch.equal(model.float()(ids)[0], exact)
    assert model.to("cpu", torch.float16).dtype == torch.float16
    assert model.to(torch.device("cpu"), None) is model
    assert model.to(None, torch.float32).dtype == torch.float32
    assert model.to(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert model.half().dtype == torch.float16 and model.bfloat16().dtype == torch.bfloat16
    assert model.cpu() is model


def test_a_module_that_holds_it_moves_and_casts_it(gated: Pair) -> None:
    model = gated.our_class.from_pretrained(gated.folder, dtype=torch.float32)
    holder = torch.nn.ModuleDict({"text_encoder": model, "head": torch.nn.Linear(2, 2)})
    holder.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model(ids_of(1, 2))[0].dtype == torch.bfloat16
    assert "text_encoder.shared.weight" in holder.state_dict()
    assert holder.eval() is holder
    with pytest.raises(UnsupportedError, match="device `meta`"):
        holder.to("meta")


def test_hooks_fire(gated: Pair) -> None:
    model = gated.our_class.from_pretrained(gated.folder)
    seen: list[Any] = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output))
    model(ids_of(1, 3))
    handle.remove()
    model(ids_of(1, 3))
    assert len(seen) == 1


def test_no_training_and_no_unknown_device(gated: Pair) -> None:
    model = gated.ours
    assert model.eval() is model and model.train(False) is model and model.requires_grad_(False) is model
    assert model.compile(mode="max-autotune") is model
    model.zero_grad()
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="`attn_implementation=\"paged\"` is not supported"):
        model.set_attn_implementation("paged")
    for refused in (model.train, model.requires_grad_, model.double):
        with pytest.raises(UnsupportedError):
            refused()
    with pytest.raises(UnsupportedError, match="the model cannot be on device `mps`"):
        model.to("mps")


def test_what_has_no_meaning_is_refused_by_name(gated: Pair) -> None:
    for name, arguments in (
        ("resize_token_embeddings", (5,)),
        ("set_input_embeddings", (None,)),
        ("load_state_dict", ({},)),
        ("gradient_checkpointing_enable", ()),
        ("push_to_hub", ("x",)),
        ("load_adapter", ("x",)),
    ):
        with pytest.raises(UnsupportedError, match=f"T5EncoderModel.{name}` has no meaning"):
            getattr(gated.ours, name)(*arguments)
    assert not hasattr(gated.ours, "encoder")


def test_every_public_method_is_ours_kept_or_refused() -> None:
    """So that a new version of transformers cannot bring one that does something else in silence."""
    from quintic._classes import KEPT
    from quintic._models import EncoderModel

    found = quintic.T5EncoderModel
    for name in dir(found):
        if name.startswith("_") or not callable(inspect.getattr_static(found, name)):
            continue
        own = any(name in vars(parent) for parent in EncoderModel.__mro__[:-1])
        refused = getattr(found, name).__doc__ == "Refused: the model has no layers in PyTorch and does not change."
        constant = isinstance(inspect.getattr_static(found, name), type)
        assert own or refused or constant or name in KEPT, name


def test_copies_share_weights_and_nothing_else(pair: Pair) -> None:
    ids = ids_of(2, 6)
    made = copy.deepcopy(pair.ours)
    made.padding = "zero"
    made.config.output_hidden_states = True
    assert pair.ours.padding == "compute" and not pair.ours.config.output_hidden_states
    assert torch.equal(made(ids)[0], pair.ours(ids)[0])
    made.to(torch.bfloat16)
    assert pair.ours.dtype == torch.float32


def test_pickle_of_a_model_of_files(pair: Pair) -> None:
    model = pair.our_class.from_pretrained(pair.folder, dtype=torch.bfloat16, padding="zero", token="hf_secret")
    data = pickle.dumps(model)
    assert b"hf_secret" not in data
    assert len(data) < 20_000, "weights stay in their files"
    again = pickle.loads(data)
    assert type(again) is type(model) and again.padding == "zero" and again.dtype == torch.bfloat16
    assert torch.equal(again(ids_of(2, 6))[0], model(ids_of(2, 6))[0])


def test_from_hf_shares_and_equals(pair: Pair, tmp_path: Path) -> None:
    ours = pair.our_class.from_hf(pair.theirs)
    ids = ids_of(3, 20)
    assert torch.equal(ours(ids)[0], pair.ours(ids)[0])
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(ids)[0], ours(ids)[0])
    assert ours.to(torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(UnsupportedError, match="`gguf_file`"):
        pair.our_class.from_hf(pair.theirs, gguf_file="x")


def test_from_hf_takes_the_encoder_of_a_whole_model(gated: Pair) -> None:
    torch.manual_seed(4)
    config = transformers.T5Config(vocab_size=103, **SHAPES["t5-gated"])
    whole = transformers.T5ForConditionalGeneration(config).eval()
    ours = quintic.AutoT5Encoder.from_hf(whole)
    with torch.no_grad():
        expected = whole.encoder(ids_of(2, 8))[0]
    assert_close(ours(ids_of(2, 8))[0], expected)
    with pytest.raises((InputError, QuinticError)):
        quintic.T5EncoderModel.from_hf(transformers.BertModel(transformers.BertConfig(num_hidden_layers=1)))


def test_from_hf_in_half_types(gated: Pair) -> None:
    half = make_hf("t5-gated").bfloat16()
    ours = quintic.T5EncoderModel.from_hf(half)
    assert ours.dtype == torch.bfloat16
    exact = make_hf("t5-gated").bfloat16().double()
    with torch.no_grad():
        expected = exact(ids_of(2, 8))[0]
        theirs = half(ids_of(2, 8))[0]
    distance = (ours(ids_of(2, 8))[0].double() - expected).square().mean()
    assert distance < (theirs.double() - expected).square().mean()


def test_made_from_a_config(gated: Pair) -> None:
    torch.manual_seed(0)
    made = quintic.T5EncoderModel(gated.theirs.config)
    assert torch.equal(made(ids_of(1, 4))[0], gated.ours(ids_of(1, 4))[0])


def test_save_pretrained_is_read_by_transformers(pair: Pair, tmp_path: Path) -> None:
    pair.ours.save_pretrained(tmp_path / "saved")
    theirs = type(pair.theirs).from_pretrained(tmp_path / "saved", attn_implementation="eager")
    for name, tensor in pair.theirs.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], tensor), name
    ours = pair.our_class.from_pretrained(tmp_path / "saved")
    assert torch.equal(ours(ids_of(2, 7))[0], pair.ours(ids_of(2, 7))[0])
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="expected a folder"):
        pair.ours.save_pretrained(tmp_path / "file")
    with pytest.raises(UnsupportedError, match="push_to_hub"):
        pair.ours.save_pretrained(tmp_path / "other", push_to_hub=True)


def test_saved_in_the_type_that_it_computes_in(gated: Pair, tmp_path: Path) -> None:
    model = gated.our_class.from_pretrained(gated.folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, variant="bf16")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = gated.our_class.from_pretrained(tmp_path, variant="bf16")
    assert again.dtype == torch.bfloat16, "`auto` follows the config"
    # What is saved is rounded, as transformers' would be; computing from the float32 files keeps
    # norms and embeddings as they are.
    rounded = gated.our_class.from_hf(copy.deepcopy(gated.theirs).bfloat16())
    assert torch.equal(again(ids_of(1, 4))[0], rounded(ids_of(1, 4))[0])


def test_families(tmp_path: Path) -> None:
    for kind in ("t5-gated", "mt5", "umt5"):
        make_hf(kind).save_pretrained(tmp_path / kind)
    for kind, name in (("t5-gated", "T5"), ("mt5", "MT5"), ("umt5", "UMT5")):
        found = quintic.AutoT5Encoder.from_pretrained(tmp_path / kind)
        assert type(found) is getattr(quintic, f"{name}EncoderModel")
        assert quintic.NAIT5EncoderModel.from_pretrained(tmp_path / kind).model_type == kind.removesuffix("-gated")
    quintic.T5EncoderModel.from_pretrained(tmp_path / "mt5")
    with pytest.raises(ConfigError, match="of type `umt5`, expected t5 or mt5 .*\n\nhint: use AutoT5Encoder"):
        quintic.T5EncoderModel.from_pretrained(tmp_path / "umt5")


def test_subfolder_variant_and_formats(tmp_path: Path) -> None:
    theirs = make_hf("t5-gated")
    theirs.save_pretrained(tmp_path / "text_encoder_2", variant="fp16")
    load = quintic.T5EncoderModel.from_pretrained
    found = load(tmp_path, subfolder="text_encoder_2", variant="fp16", use_safetensors=True, low_cpu_mem_usage=True)
    with torch.no_grad():
        assert_close(found(ids_of(1, 4))[0], theirs(ids_of(1, 4))[0])
    with pytest.raises(ModelNotFoundError):
        load(tmp_path, subfolder="text_encoder_2")
    with pytest.raises(OSError, match="text_encoder_9"):
        load(tmp_path, subfolder="text_encoder_9")
    with pytest.raises(UnsupportedError, match="`use_safetensors` is False"):
        load(tmp_path / "text_encoder_2", variant="fp16", use_safetensors=False)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(ids_of(1, 4))[0], found(ids_of(1, 4))[0])
    with pytest.raises(UnsupportedError, match="`use_safetensors` is True"):
        load(tmp_path, use_safetensors=True)


def test_dtypes_that_are_asked_for(tmp_path: Path) -> None:
    load = quintic.T5EncoderModel.from_pretrained
    make_hf("t5-gated").bfloat16().save_pretrained(tmp_path)
    assert load(tmp_path).dtype == torch.bfloat16
    assert load(tmp_path, dtype="auto").dtype == torch.bfloat16
    for dtype in (torch.float32, "float32", "torch.float32"):
        assert load(tmp_path, dtype=dtype).dtype == torch.float32
    assert load(tmp_path, torch_dtype=torch.float16).dtype == torch.float16
    for bad in (torch.float64, torch.int8, "int4"):
        with pytest.raises(UnsupportedError, match="cannot be computed in"):
            load(tmp_path, dtype=bad)


BAD_ARGUMENTS: dict[str, Any] = {
    "quantization_config": {"load_in_8bit": True},
    "device_map": "mps",
    "gguf_file": "x.gguf",
    "attn_implementation": "flash_attention_2",
    "output_loading_info": True,
    "max_memory": {0: 1},
    "padding": "longest",
    "max_seq_len": 0,
    "threads": 0,
    "use_flex_attention": "yes",
    "matmul_precision": "low",
    "backend": "tpu",
    "token": False,
}


@pytest.mark.parametrize("name", list(BAD_ARGUMENTS))
def test_arguments_are_honoured_or_refused(gated: Pair, name: str) -> None:
    with pytest.raises((UnsupportedError, InputError), match=str(name).replace("matmul_precision", "matmul precision")):
        gated.our_class.from_pretrained(gated.folder, **{name: BAD_ARGUMENTS[name]})


def test_unknown_arguments_are_refused(gated: Pair) -> None:
    with pytest.raises(TypeError, match="`dropout_rat`"):
        gated.our_class.from_pretrained(gated.folder, dropout_rat=0.1)
    model = gated.our_class.from_pretrained(
        gated.folder,
        device_map={"": "cpu"},
        attn_implementation="sdpa",
        local_files_only=True,
        trust_remote_code=True,
        low_cpu_mem_usage=False,
        cache_dir=None,
        revision=None,
        quantization_config=None,
        threads=1,
        matmul_precision="high",
        fold_norm_gains=True,
    )
    assert model.threads == 1
    assert_close_in_parts(model(ids_of(1, 6))[0], gated.ours(ids_of(1, 6))[0])


def test_a_config_that_says_something_else_is_refused(gated: Pair) -> None:
    config = copy.deepcopy(gated.theirs.config)
    assert gated.our_class.from_pretrained(gated.folder, config=config).config is config
    config.num_layers = 9
    with pytest.raises(ConfigError, match="field `num_layers` of the `config` given is 9, expected 2"):
        gated.our_class.from_pretrained(gated.folder, config=config)


def test_errors_are_those_of_the_command_line(gated: Pair, tmp_path: Path) -> None:
    gated.theirs.config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(QuinticError) as caught:
        quintic.T5EncoderModel.from_pretrained(tmp_path)
    assert str(tmp_path / "model.safetensors") in str(caught.value)
    with pytest.raises(OSError, match="there is no such file or folder"):
        quintic.T5EncoderModel.from_pretrained("./nowhere")


def test_torch_compile_runs_it_as_it_is(gated: Pair) -> None:
    compiled = torch.compile(gated.ours, backend="eager")
    with torch.no_grad():
        found = compiled(ids_of(2, 5))[0]
    assert torch.equal(found, gated.ours(ids_of(2, 5))[0])
