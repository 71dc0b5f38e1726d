"""`quintic.SentenceTransformerModule` in a real SentenceTransformer gives what sentence-transformers
gives for the same folder.

The models are tiny and random, in the layout of sentence-t5: T5, mean, dense, normalisation. A
value of a normalised embedding may be off by 1e-5: transformers' float32 noise is up to 4.4e-6 of
the hidden states' RMS (see `test_diffusers.py`), and means over tokens only make it smaller.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import quintic
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tiny_pipelines import D_MODEL, t5_encoder, t5_tokenizer

TOLERANCE = 1e-5
WIDTH = 24
MAX_SEQ_LENGTH = 40

# Neither sorted nor of one length, so batches are made, padded and put back in order.
TEXTS = [
    "A red fox crosses the snow.",
    "Clocks",
    "",
    "Where do the swallows of this old town spend their winters, and when do they return?",
    "Naïve café owners – déjà vu?",
    "The tram was late. " * 20,  # cut at MAX_SEQ_LENGTH
    "two green parrots",
]
PROMPT = "Represent the sentence for retrieval: "

# What sentence-t5-base has on the hub; `2_Dense` has not changed since.
PUBLISHED = {
    "modules.json": [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate(
            [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
        )
    ],
    "sentence_bert_config.json": {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False},
    "1_Pooling/config.json": {
        "word_embedding_dimension": D_MODEL,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    },
}


def write_t5(folder: Path) -> Path:
    """A T5 encoder and its tokenizer."""
    tokenizer = t5_tokenizer("t5/flan")
    tokenizer.model_max_length = MAX_SEQ_LENGTH
    tokenizer.save_pretrained(folder)
    t5_encoder("T5EncoderModel", 32128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 without modules behind it."""
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module", params=["saved", "published"])
def folder(request: pytest.FixtureRequest, t5_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-t5, as this version of sentence-transformers saves it and as it is on the hub."""
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(7)
    dense = Dense(D_MODEL, WIDTH, bias=False, activation_function=torch.nn.Identity())
    modules = [Transformer(str(t5_folder)), Pooling(D_MODEL, "mean"), dense, Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(path), create_model_card=False)
    if request.param == "published":
        for name, content in PUBLISHED.items():
            assert (path / name).is_file()
            (path / name).write_text(json.dumps(content))
    return path


def with_ours(*modules: torch.nn.Module) -> SentenceTransformer:
    """A SentenceTransformer that starts with quintic's module."""
    assert isinstance(modules[0], quintic.SentenceTransformerModule)
    return SentenceTransformer(modules=list(modules), device="cpu")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> SentenceTransformer:
    """The reference."""
    return SentenceTransformer(str(folder), device="cpu")


@pytest.fixture(scope="module")
def ours(folder: Path) -> SentenceTransformer:
    """Quintic alone, from tokens to normalised embeddings."""
    return with_ours(quintic.SentenceTransformerModule(folder, pool="sentence", dtype=torch.float32))


def check(found: np.ndarray | torch.Tensor, expected: np.ndarray | torch.Tensor) -> None:
    """Same kind, type, shape and, up to TOLERANCE, values."""
    assert type(found) is type(expected)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=TOLERANCE)


def test_texts_of_any_length_in_any_batches(ours: SentenceTransformer, theirs: SentenceTransformer) -> None:
    """A list, at several batch sizes; the reference's rows differ from each other far more."""
    expected = theirs.encode(TEXTS)
    assert expected.shape == (len(TEXTS), WIDTH)
    assert np.abs(expected[1:] - expected[:-1]).max(axis=1).min() > 1000 * TOLERANCE
    for batch_size in (1, 2, 3, 32):
        check(ours.encode(TEXTS, batch_size=batch_size), expected)
    check(ours.encode(TEXTS[::-1], batch_size=2), expected[::-1])


def test_one_text(ours: SentenceTransformer, theirs: SentenceTransformer) -> None:
    """A string gives one vector, no text at all an empty array."""
    check(ours.encode(TEXTS[0]), theirs.encode(TEXTS[0]))
    check(ours.encode([]), theirs.encode([]))


def test_tensors(ours: SentenceTransformer, theirs: SentenceTransformer) -> None:
    """One tensor, or one per text; usable in what follows."""
    found = ours.encode(TEXTS, convert_to_tensor=True)
    check(found, theirs.encode(TEXTS, convert_to_tensor=True))
    assert not found.requires_grad
    for one, other in zip(
        ours.encode(TEXTS, convert_to_numpy=False),
        theirs.encode(TEXTS, convert_to_numpy=False),
        strict=True,
    ):
        check(one, other)


def test_options_of_encode(ours: SentenceTransformer, theirs: SentenceTransformer) -> None:
    """What encode does with finished embeddings."""
    for options in ({"normalize_embeddings": True}, {"truncate_dim": 8}):
        check(ours.encode(TEXTS, **options), theirs.encode(TEXTS, **options))


def test_prompts(folder: Path, theirs: SentenceTransformer) -> None:
    """A prompt given, by name, and by default for queries; it counts in the mean."""
    prompts = {"query": PROMPT, "document": "passage: "}
    module = quintic.SentenceTransformerModule(folder, pool="sentence", dtype=torch.float32)
    ours = SentenceTransformer(modules=[module], prompts=prompts, device="cpu")
    expected = theirs.encode(TEXTS, prompt=PROMPT)
    assert np.abs(expected - theirs.encode(TEXTS)).max() > 1000 * TOLERANCE
    check(ours.encode(TEXTS, prompt=PROMPT), expected)
    check(ours.encode(TEXTS, prompt_name="query"), expected)
    check(ours.encode_query(TEXTS), expected)
    check(ours.encode_document(TEXTS), theirs.encode(TEXTS, prompt="passage: "))
    check(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_similarity(ours: SentenceTransformer, theirs: SentenceTransformer) -> None:
    """Cosines of all pairs, within twice what the vectors, whose values are off by TOLERANCE, are off."""
    found = ours.similarity(ours.encode(TEXTS[:3]), ours.encode(TEXTS))
    expected = theirs.similarity(theirs.encode(TEXTS[:3]), theirs.encode(TEXTS))
    bound = 2 * WIDTH**0.5 * TOLERANCE  # |ab - a'b'| <= |a - a'| + |b - b'| for unit vectors
    assert found.shape == expected.shape == (3, len(TEXTS))
    assert float((found - expected).abs().max()) <= bound


def test_tokens_and_facts(ours: SentenceTransformer, theirs: SentenceTransformer) -> None:
    """The ids, the embedding's width and the longest text are those of the folder."""
    for prompt in (None, PROMPT):
        found, expected = (model.preprocess(TEXTS, prompt=prompt) for model in (ours, theirs))
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(found[name], expected[name]), name
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == WIDTH
    assert ours.max_seq_length == theirs.max_seq_length == MAX_SEQ_LENGTH
    assert ours.device == torch.device("cpu")


def test_max_seq_length_can_be_set(folder: Path) -> None:
    """A shorter limit cuts, a longer one does not."""
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = with_ours(quintic.SentenceTransformerModule(folder, pool="sentence", dtype=torch.float32))
    for limit in (6, 120):
        ours.max_seq_length = theirs.max_seq_length = limit
        assert ours.max_seq_length == limit
        check(ours.encode(TEXTS), theirs.encode(TEXTS))


@pytest.mark.parametrize("normalize", [False, True])
def test_mean_of_a_plain_t5(t5_folder: Path, normalize: bool) -> None:
    """`pool="mean"` is Transformer and Pooling, and Normalize if asked for."""
    tail = [Normalize()] if normalize else []
    theirs = SentenceTransformer(modules=[Transformer(str(t5_folder)), Pooling(D_MODEL, "mean"), *tail], device="cpu")
    module = quintic.SentenceTransformerModule(t5_folder, pool="mean", normalize=normalize, dtype=torch.float32)
    ours = with_ours(module)
    assert ours.get_embedding_dimension() == D_MODEL
    check(ours.encode(TEXTS, batch_size=3), theirs.encode(TEXTS, batch_size=3))


def test_modules_behind_it(t5_folder: Path) -> None:
    """Torch's own modules go on from quintic's mean."""
    torch.manual_seed(8)
    tail = [Dense(D_MODEL, WIDTH), Normalize()]
    theirs = SentenceTransformer(modules=[Transformer(str(t5_folder)), Pooling(D_MODEL, "mean"), *tail], device="cpu")
    module = quintic.SentenceTransformerModule(t5_folder, pool="mean", dtype=torch.float32)
    ours = with_ours(module, *tail)
    assert ours.get_embedding_dimension() == WIDTH
    check(ours.encode(TEXTS), theirs.encode(TEXTS))


def test_save_and_load(folder: Path, ours: SentenceTransformer, tmp_path: Path) -> None:
    """A saved model loads again; a class from outside sentence-transformers has to be trusted."""
    ours.save(str(tmp_path), create_model_card=False)
    loaded = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert isinstance(loaded[0], quintic.SentenceTransformerModule)
    assert loaded.max_seq_length == ours.max_seq_length
    check(loaded.encode(TEXTS), ours.encode(TEXTS))


def test_bfloat16(folder: Path, theirs: SentenceTransformer) -> None:
    """In bfloat16 quintic is at most twice as far from float32 as sentence-transformers is."""
    expected = theirs.encode(TEXTS)
    rounded = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16}).encode(TEXTS)
    module = quintic.SentenceTransformerModule(folder, pool="sentence", dtype=torch.bfloat16)
    found = with_ours(module).encode(TEXTS)
    assert found.dtype == np.float32
    error, bound = (np.abs(one - expected).max() for one in (found, rounded.astype(np.float32)))
    assert TOLERANCE < error <= 2 * bound
