"""Weights in integers: what they compute, how they are shown, and what they cost."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quintic
import torch
import transformers
from closeness import assert_close
from conftest import SHAPES, VOCAB, Pair, make_hf
from rounding import rounded
from safetensors.torch import load_file, save_file
from test_generation import KINDS, Twins, batch, near
from test_texts import TOKENIZER

from quintic.errors import InputError, UnsupportedError

INTEGERS = ["int8", "int4", "w8a8"]


def run(*arguments: object) -> str:
    """The command of the same wheel."""
    command = [sys.executable, "-m", "quintic", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float((found.double() - expected.double()).square().mean().sqrt() / expected.double().square().mean().sqrt())


@pytest.mark.parametrize("keep", [(), ("wo",), ("qkv", "wi")], ids=str)
def test_int8_computes_with_rounded_weights_and_nothing_else_is_rounded(pair: Pair, keep: tuple[str, ...]) -> None:
    """To the error of float32, beside transformers with the same rounded weights."""
    ours = pair.our_class.from_pretrained(pair.folder, dtype="float32", weights="int8", keep=keep)
    ids, mask = batch()
    with torch.no_grad():
        expected = rounded(pair.theirs, keep)(ids, attention_mask=mask)[0]
    found = ours(ids, attention_mask=mask)[0]
    assert_close(found, expected)
    # And rounding is seen: without it, or of all products where some are kept, results are farther
    # off than a thousand times the float32 noise of 2^-24.
    for other in (pair.ours, pair.our_class.from_pretrained(pair.folder, dtype="float32", weights="int8", keep="o")):
        assert distance(other(ids, attention_mask=mask)[0], expected) > 1000 * 2**-24


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", INTEGERS)
@pytest.mark.parametrize("keep", [None, "wo"])
def test_bits_are_those_of_the_command(gated: Pair, tmp_path: Path, weights: str, dtype: str, keep: str | None) -> None:
    """For all integers, of which the engine's own tests know what they compute."""
    ids, mask = batch()
    save_file({"input_ids": ids, "attention_mask": mask}, tmp_path / "batch.safetensors")
    out = tmp_path / "out.safetensors"
    how = ["--dtype", {"float32": "f32", "bfloat16": "bf16"}[dtype], "--weights", weights]
    how += ["--keep", keep] if keep else []
    run("encode", "--model", gated.folder, "--input-ids", tmp_path / "batch.safetensors", "--pad-rows", "compute",
        "--quiet", *how, "-o", out)
    load = gated.our_class.from_pretrained
    ours = load(gated.folder, dtype=dtype, weights=weights, keep=keep, output_dtype="float32")
    found = ours(ids, attention_mask=mask)[0]
    assert torch.equal(found, load_file(out)["last_hidden_state"])
    plain = load(gated.folder, dtype=dtype, output_dtype="float32")
    assert not torch.equal(found, plain(ids, attention_mask=mask)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_decoders_in_int8(kind: str, tmp_path: Path) -> None:
    """Logits and tokens of transformers with the same rounded weights, tied head included."""
    twins = Twins(kind, tmp_path)
    ids, mask = batch()
    labels = torch.randint(2, VOCAB, (3, 7), generator=torch.Generator().manual_seed(4))
    for keep in ((), ("head", "o")):
        ours = type(twins.ours).from_pretrained(tmp_path, dtype="float32", weights="int8", keep=keep)
        theirs = rounded(twins.theirs, keep)
        with torch.no_grad():
            expected = theirs(input_ids=ids, attention_mask=mask, labels=labels)
        found = ours(ids, mask, labels=labels)
        near(found.logits, expected.logits)
        assert distance(twins.ours(ids, mask, labels=labels).logits, expected.logits) > 1000 * 2**-24
        for options in ({"max_new_tokens": 9}, {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 3}):
            # With 0 transformers fills beams up with an end token.
            options = {"pad_token_id": VOCAB - 1, **options}
            expected_tokens = theirs.generate(ids, attention_mask=mask, **options)
            assert torch.equal(ours.generate(ids, attention_mask=mask, **options), expected_tokens)


@pytest.mark.parametrize("weights", INTEGERS)
def test_generated_tokens_are_the_likeliest_of_the_same_model(weights: str, tmp_path: Path) -> None:
    """A pass over what was generated has, behind every token, the next one at the top."""
    twins = Twins("t5-gated", tmp_path)
    ours = type(twins.ours).from_pretrained(tmp_path, weights=weights)
    ids, mask = batch()
    # No end token, so that every row has all its tokens.
    options = {"max_new_tokens": 8, "eos_token_id": VOCAB - 1, "suppress_tokens": [VOCAB - 1]}
    tokens = ours.generate(ids, attention_mask=mask, **options)
    logits = ours(ids, mask, tokens[:, :-1]).logits
    logits[..., VOCAB - 1] = -torch.inf
    assert torch.equal(logits.argmax(-1), tokens[:, 1:])
    assert not torch.equal(logits, twins.ours(ids, mask, tokens[:, :-1]).logits)


def test_what_is_shown(gated: Pair, tmp_path: Path) -> None:
    """By attributes and by repr; a model without integers shows none."""
    load = gated.our_class.from_pretrained
    assert gated.ours.weights is None and gated.ours.keep == () and "weights" not in repr(gated.ours)
    model = load(gated.folder, dtype="float32", weights="int8")
    assert (model.weights, model.keep) == ("int8", ()) and ", float32, int8 weights, " in repr(model)
    model = load(gated.folder, dtype="float32", weights="w8a8", keep=["wo", "qkv"])
    assert (model.weights, model.keep) == ("w8a8", ("qkv", "wo"))
    assert ", float32, w8a8 weights without qkv and wo, " in repr(model)
    twins = Twins("mt5", tmp_path)
    assert repr(twins.ours).endswith(", float32)") and twins.ours.weights is None
    model = load(gated.folder, dtype="float32", weights="int8", keep=["encoder.0.wo", "qkv"])
    assert model.keep == ("qkv", "encoder.0.wo") and load(gated.folder, weights="int8", keep=model.keep).keep == model.keep
    decoder = type(twins.ours).from_pretrained(tmp_path, weights="int4", keep=("head",))
    assert (decoder.weights, decoder.keep) == ("int4", ("head",))
    assert repr(decoder).endswith(", float32, int4 weights without head)")


def test_copies_moves_and_pickles_keep_their_integers(gated: Pair) -> None:
    """Of files and of a model in memory; weights out are those that came in, not rounded ones."""
    ids = batch()[0]
    for model in (
        gated.our_class.from_pretrained(gated.folder, dtype="float32", weights="int8", keep=("o",)),
        gated.our_class.from_hf(gated.theirs, weights="int8", keep=("o",)),
    ):
        expected = model(ids)[0]
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert (other.weights, other.keep) == ("int8", ("o",))
            assert torch.equal(other(ids)[0], expected)
        assert torch.equal(model.state_dict()["shared.weight"], gated.theirs.shared.weight)
        name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
        assert torch.equal(model.state_dict()[name], gated.theirs.state_dict()[name])
        moved = model.to(torch.bfloat16)
        assert (moved.weights, moved.keep) == ("int8", ("o",)) and moved.dtype == torch.bfloat16
        assert torch.equal(moved.float()(ids)[0], expected)


def test_packed_models_stay_as_they_were_packed(gated: Pair, tmp_path: Path) -> None:
    """Nothing has to be said, and nothing else can be."""
    packed = tmp_path / "packed"
    run("convert", "--pack", "--model", gated.folder, "--weights", "int8", "--keep", "wo", "-o", packed)
    load = gated.our_class.from_pretrained
    expected = load(gated.folder, dtype="float32", weights="int8", keep="wo")(batch()[0])[0]
    for arguments in ({}, {"weights": "int8"}, {"weights": "int8", "keep": ("wo",)}):
        model = load(packed, **arguments)
        assert (model.weights, model.keep) == ("int8", ("wo",))
        assert torch.equal(model(batch()[0])[0], expected)
    for arguments in ({"weights": "int4"}, {"weights": "int8", "keep": ()}):
        with pytest.raises(InputError, match="packed"):
            load(packed, **arguments)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"weights": "int3"}, UnsupportedError, "`weights` is 'int3', expected 'int8', 'int4' or 'w8a8'"),
    ({"weights": torch.int8}, UnsupportedError, "`weights` is torch.int8, expected 'int8'"),
    ({"weights": "int8", "keep": ("wo", "up")}, UnsupportedError, "`keep` holds 'up', expected 'qkv', 'o'"),
    ({"weights": "int8", "keep": 3}, UnsupportedError, "`keep` holds 3, expected"),
    ({"keep": ("wo",)}, InputError, "`keep` is .*'wo'.*, but it names products that `weights` leaves out"),
    ({"weights": "int8", "backend": "reference"}, UnsupportedError, "`weights` or `keep` was chosen"),
    ({"load_in_8bit": True}, UnsupportedError, "`load_in_8bit` cannot be used: .*`weights=\"int8\"`"),
    ({"load_in_4bit": True}, UnsupportedError, "`load_in_4bit` cannot be used: .*`weights=\"int8\"`"),
    ({"quantization_config": {"load_in_8bit": True}}, UnsupportedError, "`quantization_config` .*`weights=\"int8\"`"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_mistakes_name_the_argument(
    gated: Pair, decoder_folder: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """In every class that loads a model, before anything is read of it."""
    for load, folder in (
        (gated.our_class.from_pretrained, gated.folder),
        (quintic.AutoT5Encoder.from_pretrained, gated.folder),
        (quintic.NAIT5EncoderModel.from_pretrained, gated.folder),
        (quintic.SentenceTransformerModule, gated.folder),
        (quintic.T5ForConditionalGeneration.from_pretrained, decoder_folder),
    ):
        with pytest.raises(error, match=message):
            load(str(folder), **arguments)


def test_a_config_of_bitsandbytes_is_refused(gated: Pair) -> None:
    """As transformers' users write it; False and None ask for nothing."""
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    with pytest.raises(UnsupportedError, match="`weights=\"int8\"`"):
        gated.our_class.from_pretrained(gated.folder, quantization_config=config)
    model = gated.our_class.from_pretrained(gated.folder, load_in_8bit=False, quantization_config=None, weights=None)
    assert model.weights is None


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder."""
    folder = tmp_path_factory.mktemp("decoder")
    transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **SHAPES["t5-gated"])
    ).save_pretrained(folder)
    return folder


def test_the_footprint_counts_integers(gated: Pair) -> None:
    """By hand: d_model 64, 2 heads of 64, d_ff 96, 2 layers, 32 buckets."""
    inner, d_model, d_ff = 128, 64, 96
    columns = {"qkv": 3 * inner, "o": d_model, "wi": 2 * d_ff, "wo": d_model}
    depth = {"qkv": d_model, "o": inner, "wi": d_model, "wo": d_ff}
    products = {name: columns[name] * depth[name] for name in columns}
    rest = VOCAB * d_model + 32 * 2 + 5 * d_model
    load = gated.our_class.from_pretrained
    assert load(gated.folder, dtype="float32").get_memory_footprint() == 4 * (rest + 2 * sum(products.values()))
    for weights, thirty_seconds in (("int8", 32), ("w8a8", 32), ("int4", 17)):
        model = load(gated.folder, dtype="bfloat16", weights=weights, keep="o")
        expected = 2 * rest + 2 * 2 * products["o"]
        for name in ("qkv", "wi", "wo"):
            expected += 2 * (products[name] * thirty_seconds // 32 + 4 * columns[name])
        assert model.get_memory_footprint() == expected


# One layer whose four products are large: 42 million weights.
LARGE = {"d_model": 2048, "d_kv": 64, "d_ff": 4096, "num_layers": 1, "num_heads": 32, "feed_forward_proj": "gated-gelu"}
LARGE_WEIGHTS = 4 * 2048 * 2048 + 3 * 2048 * 4096
HUGE_PAGE = 2 << 20

ANONYMOUS = """
import sys, json
for name in ("torch", "transformers"):
    sys.modules[name] = None
import quintic
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
load = quintic.T5EncoderModel.from_pretrained
before = anonymous()
model = load(sys.argv[1], threads=1, **json.loads(sys.argv[2]))
print(anonymous() - before)
"""


def test_memory_is_that_of_the_integers(tmp_path: Path) -> None:
    """Of a process of its own, after loading: files are mapped, and what is packed is not."""
    torch.manual_seed(0)
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=VOCAB, **LARGE)).save_pretrained(tmp_path)

    def loaded(**arguments: str) -> float:
        command = [sys.executable, "-c", ANONYMOUS, str(tmp_path), json.dumps(arguments)]
        # So that what is freed after loading goes back to the system at once, matrix by matrix.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        return int(done.stdout) / LARGE_WEIGHTS

    # Bytes a weight of a product; what else a model takes is the same and goes off by the difference.
    f32, int8, int4 = loaded(dtype="float32"), loaded(weights="int8"), loaded(weights="int4")
    # Each of the four products may fill up a huge page; 2 MB are for smaller pieces, factors among them.
    slack = (4 * HUGE_PAGE + 2e6) / LARGE_WEIGHTS
    assert slack < 0.25
    assert f32 - int8 == pytest.approx(4 - 1, abs=slack)
    assert int8 - int4 == pytest.approx(1 - 17 / 32, abs=slack)


def test_texts_and_sentences(texts_folder: Path) -> None:
    """`encode`, the method of the same name, and the module agree; the model stays loaded by its integers."""
    texts = ["a red fox", "naïve café"]
    vectors = quintic.encode(texts, model=texts_folder, weights="int8", keep=("wo",))
    kept = next(iter(quintic._kept.values()))
    assert quintic.encode(texts, model=texts_folder, weights="int8", keep="wo").tolist() == vectors.tolist()
    assert next(iter(quintic._kept.values())) is kept
    model = quintic.T5EncoderModel.from_pretrained(texts_folder, weights="int8", keep=("wo",))
    np.testing.assert_array_equal(model.encode(texts), vectors)
    module = quintic.SentenceTransformerModule(str(texts_folder), normalize=True, weights="int8", keep=("wo",))
    assert "int8 weights without wo" in repr(module)
    found = module.forward(module.preprocess(texts))["sentence_embedding"].numpy()
    np.testing.assert_array_equal(found, vectors)
    plain = quintic.encode(texts, model=texts_folder)
    assert np.abs(plain - vectors).max() > 1000 * 2**-24
    with pytest.raises(InputError, match="`weights` is for models that are loaded by `encode`"):
        quintic.encode(texts, model=model, weights="int8")
    with pytest.raises(UnsupportedError, match="`weights` is 'int3'"):
        quintic.encode(texts, model=texts_folder, weights="int3")


@pytest.fixture(scope="module")
def texts_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with T5's vocabulary and tokenizer."""
    folder = tmp_path_factory.mktemp("texts")
    make_hf("t5-gated", vocab_size=32128).save_pretrained(folder)
    shutil.copyfile(TOKENIZER, folder / "spiece.model")
    return folder
