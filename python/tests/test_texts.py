"""Texts in, vectors and states out; and no PyTorch needed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from conftest import REPOSITORY, make_hf

import quintic
from quintic.errors import InputError

TOKENIZER = REPOSITORY / "testdata" / "tokenizers" / "t5" / "spiece.model"
TEXTS = ["a red fox", "", "A lighthouse in a storm, oil on canvas, by nobody in particular", "fox", "naïve café ☕"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with T5's vocabulary."""
    folder = tmp_path_factory.mktemp("texts")
    import transformers
    from conftest import SHAPES

    torch.manual_seed(5)
    config = transformers.T5Config(vocab_size=32128, **SHAPES["t5-gated"])
    transformers.T5EncoderModel(config).save_pretrained(folder)
    shutil.copyfile(TOKENIZER, folder / "spiece.model")
    return folder


@pytest.fixture(scope="module")
def ids(model_folder: Path) -> list[list[int]]:
    from quintic import _quintic

    return _quintic.Tokenizer.open(str(model_folder), "auto").encode(TEXTS, None)


def test_vectors_are_the_mean_of_states(model_folder: Path, ids: list[list[int]]) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    found = model.encode(TEXTS, normalize=False)
    assert found.shape == (len(TEXTS), 64) and found.dtype == np.float32
    for row, row_ids in enumerate(ids):
        states = model(torch.tensor([row_ids]))[0][0]
        assert_close(torch.from_numpy(found[row]), states.mean(0))
    normalized = model.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(normalized, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-6)


def test_order_and_batches_do_not_matter(model_folder: Path) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    expected = model.encode(TEXTS)
    np.testing.assert_array_equal(model.encode(TEXTS[::-1])[::-1], expected)
    np.testing.assert_array_equal(model.encode(TEXTS, batch_tokens=1), expected)
    np.testing.assert_array_equal(model.encode(TEXTS[2]), expected[2])
    as_tensor = model.encode(TEXTS, convert_to_tensor=True)
    assert isinstance(as_tensor, torch.Tensor) and np.array_equal(as_tensor.numpy(), expected)


def test_states_of_texts(model_folder: Path, ids: list[list[int]]) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    states = model.encode(TEXTS, pool="none")
    assert [state.shape for state in states] == [(len(row), 64) for row in ids]
    for pool, at in (("first", 0), ("last", -1)):
        vectors = model.encode(TEXTS, pool=pool, normalize=False)
        np.testing.assert_array_equal(vectors, np.stack([state[at] for state in states]))


def test_prompt_and_length(model_folder: Path) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    prompted = model.encode(["fox"], prompt="a red ")
    np.testing.assert_array_equal(prompted, model.encode(["a red fox"]))
    cut = model.encode([TEXTS[2]], max_length=4, pool="none")[0]
    assert cut.shape == (4, 64)


def test_presets_are_those_of_pipelines(model_folder: Path, ids: list[list[int]]) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    states, mask = quintic.encode(TEXTS[:1], model=model, preset="flux", max_length=16)
    assert states.shape == (1, 16, 64) and mask is None
    padded = torch.zeros(1, 16, dtype=torch.long)
    padded[0, : len(ids[0])] = torch.tensor(ids[0])
    np.testing.assert_array_equal(states, model(padded)[0].numpy())

    states, _ = model.encode_for("flux", "fox", max_length=4, output_dtype=torch.bfloat16, convert_to_tensor=True)
    assert states.dtype == torch.bfloat16
    with pytest.raises(InputError, match="NumPy has no bfloat16"):
        model.encode_for("flux", "fox", output_dtype="bfloat16")
    with pytest.raises(InputError, match="preset `wan` expects UMT5"):
        model.encode_for("wan", "fox")
    assert "flux" in quintic.preset_names()


def test_encode_keeps_the_model(model_folder: Path) -> None:
    first = quintic.encode(TEXTS, model=str(model_folder))
    np.testing.assert_array_equal(quintic.encode(TEXTS, model=model_folder), first)
    assert len(quintic._kept) == 1
    half = quintic.encode(TEXTS, model=model_folder, dtype="bfloat16")
    assert len(quintic._kept) == 1, "one at a time"
    assert 0 < np.abs(half - first).max() < 0.05


def test_progress(model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    model.encode(TEXTS, show_progress_bar=True)
    assert f"{len(TEXTS)}/{len(TEXTS)}" in capfd.readouterr().err
    model.encode(TEXTS)
    assert capfd.readouterr().err == ""


def test_mistakes(model_folder: Path, tmp_path: Path) -> None:
    model = quintic.T5EncoderModel.from_pretrained(model_folder)
    for arguments, error, message in (
        ({"texts": ["a", 3]}, InputError, "text 1 is of type int, expected str"),
        ({"texts": TEXTS, "pool": "max"}, InputError, "`pool` is `max`"),
        ({"texts": TEXTS, "pool": "sentence"}, InputError, "needs a modules.json"),
        ({"texts": TEXTS, "batch_tokens": 0}, InputError, "`batch_tokens` is 0"),
        ({"texts": TEXTS, "tokenizer": str(tmp_path)}, OSError, str(tmp_path)),
    ):
        with pytest.raises(error, match=message):
            model.encode(**arguments)
    assert model.encode([]).shape == (0, 64)
    make_hf("t5-gated").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no tokenizer beside it"):
        quintic.encode("fox", model=tmp_path)
    with pytest.raises(InputError, match="outside the vocabulary, expected 0 to 102"):
        quintic.T5EncoderModel.from_pretrained(tmp_path).encode("a red fox", tokenizer=str(TOKENIZER))


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "safetensors", "sentence_transformers", "tqdm"):
    sys.modules[name] = None
import numpy as np, pickle, copy, quintic
folder = sys.argv[1]
vectors = quintic.encode(["a red fox", "fox"], model=folder)
assert vectors.shape == (2, 64)
model = quintic.T5EncoderModel.from_pretrained(folder)
assert model.device == "cpu" and model.dtype == "float32" and model.config.d_model == 64
output = model([[3, 4, 5]], attention_mask=np.ones((1, 3)), output_hidden_states=True, output_attentions=True)
assert type(output) is quintic.EncoderOutput and output[0].shape == (1, 3, 64) and len(output.hidden_states) == 3
assert output.attentions[0].shape == (1, 2, 3, 3)
assert model.to("bfloat16").dtype == "bfloat16" and model([[3]])[0].dtype == np.float32
assert model.to(np.float16).dtype == "float16" and model([[3]])[0].dtype == np.float16
assert pickle.loads(pickle.dumps(model)).dtype == "float16"
assert copy.deepcopy(model).num_parameters() == model.num_parameters()
for refused in (lambda: model.to("cuda:0"), lambda: quintic.T5EncoderModel({})):
    try:
        refused()
    except quintic.errors.UnsupportedError:
        continue
    raise AssertionError(refused)
np.save(sys.argv[2], vectors)
"""


def test_without_torch(model_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "vectors.npy"
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(model_folder), str(place)], check=True)
    np.testing.assert_array_equal(np.load(place), quintic.encode(["a red fox", "fox"], model=model_folder))


def test_importing_it_imports_nothing_large() -> None:
    code = "import sys, quintic; quintic.encode; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command(model_folder: Path, tmp_path: Path) -> None:
    """The wheel's command is the binary's, exit codes and all."""

    def run(*arguments: str) -> Any:
        command = [sys.executable, "-m", "quintic", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})

    done = run("encode", "--model", str(model_folder), "--pool", "mean", "-o", str(tmp_path / "x.npy"), "a red fox")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "x.npy"), quintic.encode(["a red fox"], model=model_folder, normalize=False), atol=1e-6
    )
    assert run("--version").stdout == f"quintic {quintic.__version__}\n"
    missing = run("inspect", "no/such/folder")
    with pytest.raises(OSError) as caught:
        quintic.T5EncoderModel.from_pretrained("no/such/folder")
    assert missing.returncode == 4 and missing.stderr == f"error: {caught.value}\n"
    assert run("encode").returncode == 2
    assert json.loads(run("inspect", "--json", str(model_folder)).stdout)


def test_a_sentence_head_needs_no_sentence_transformers(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "st")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (tmp_path / "st" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "st" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (tmp_path / "st" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    found = quintic.encode(TEXTS, model=tmp_path / "st", pool="sentence", normalize=False)
    np.testing.assert_array_equal(found, quintic.encode(TEXTS, model=model_folder, normalize=False))
