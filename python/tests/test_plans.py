"""``plan=``: what ``quintic calibrate`` found is what a model computes with."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pytest
import quintic
import torch
import transformers
from conftest import SHAPES
from safetensors.torch import load_file, save_file
from test_texts import TOKENIZER
from test_weights import run

from quintic.errors import InputError, ModelNotFoundError

# Less than all products in int8 have in error (1.05e-2), and more than those of one layer of the encoder.
AT_MOST = "0.0095"


def make(folder: Path, seed: int) -> None:
    """A random encoder-decoder with T5's vocabulary."""
    folder.mkdir()
    torch.manual_seed(seed)
    config = transformers.T5Config(vocab_size=32128, decoder_start_token_id=0, **SHAPES["t5-gated"])
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    shutil.copyfile(TOKENIZER, folder / "spiece.model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and beside it ``plan.json``, which puts some of its products into int8."""
    folder = tmp_path_factory.mktemp("plans") / "model"
    make(folder, 7)
    texts = folder / "texts.txt"
    texts.write_text("a red fox in the snow\nA lighthouse in a storm, oil on canvas\n")
    run("calibrate", "--model", folder, "--weights", "int8", "--dtype", "f32", "--at-most", AT_MOST, "--input", texts,
        "--new-tokens", "3", "--quiet", "-o", folder / "plan.json")
    return folder


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 32000, (2, 9), generator=torch.Generator().manual_seed(1))


def test_a_plan_says_weights_keep_and_dtype(folder: Path, ids: torch.Tensor, tmp_path: Path) -> None:
    load = quintic.T5EncoderModel.from_pretrained
    model = load(folder, plan=folder / "plan.json")
    assert model.weights == "int8" and model.keep and model.dtype == torch.float32
    assert json.loads((folder / "plan.json").read_text())["weights"] == "int8"
    found = model(ids)[0]
    assert torch.equal(load(folder, dtype="float32", weights="int8", keep=model.keep)(ids)[0], found)
    for other in ({}, {"weights": "int8"}):
        assert not torch.equal(load(folder, dtype="float32", **other)(ids)[0], found)
    # What the plan says may be said again, and copies and pickles are as the model.
    again = load(folder, plan=str(folder / "plan.json"), dtype="float32", weights="int8", keep=model.keep)
    for same in (again, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same.keep == model.keep and torch.equal(same(ids)[0], found)

    save_file({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tmp_path / "batch.safetensors")
    run("encode", "--model", folder, "--input-ids", tmp_path / "batch.safetensors", "--pad-rows", "compute", "--quiet",
        "--plan", folder / "plan.json", "-o", tmp_path / "out.safetensors")
    assert torch.equal(found, load_file(tmp_path / "out.safetensors")["last_hidden_state"])


def test_a_plan_of_a_decoder(folder: Path, ids: torch.Tensor) -> None:
    load = quintic.T5ForConditionalGeneration.from_pretrained
    model = load(folder, plan=folder / "plan.json")
    assert model.weights == "int8" and model.keep
    labels = torch.tensor([[5, 6, 1], [7, 8, 1]])
    found = model(ids, labels=labels).logits
    assert torch.equal(load(folder, dtype="float32", weights="int8", keep=model.keep)(ids, labels=labels).logits, found)
    assert not torch.equal(load(folder, dtype="float32")(ids, labels=labels).logits, found)


def test_what_contradicts_a_plan_is_refused(folder: Path, tmp_path: Path) -> None:
    load, plan = quintic.T5EncoderModel.from_pretrained, folder / "plan.json"
    for arguments, message in (
        ({"dtype": "bfloat16"}, "`dtype` is `bf16`, but the plan was measured for `f32`"),
        ({"weights": "int4"}, "`weights` is `int4`, but the plan was measured for `int8`"),
        ({"matmul_precision": "high"}, "`matmul_precision` is `high`, but the plan was measured for `highest`"),
    ):
        with pytest.raises(InputError, match=message):
            load(folder, plan=plan, **arguments)
    make(tmp_path / "other", 8)
    with pytest.raises(InputError, match="plan.json: is of another checkpoint"):
        load(tmp_path / "other", plan=plan)
    with pytest.raises(InputError, match="a plan is that of a model's files"):
        quintic.T5EncoderModel.from_hf(transformers.T5EncoderModel.from_pretrained(folder), plan=plan)
    with pytest.raises(ModelNotFoundError, match="no-plan.json"):
        load(folder, plan=folder / "no-plan.json")
    (folder / "broken.json").write_text("{")
    with pytest.raises(InputError, match="broken.json"):
        load(folder, plan=folder / "broken.json")
