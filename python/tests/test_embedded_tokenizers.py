"""Tokenizers that stand inside weight files: texts need nothing beside a GGUF file or one of ComfyUI's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import quintic
import sentencepiece
import torch
from conftest import make_hf
from quintic import _quintic
from safetensors.torch import load_file, save_file
from test_texts import TEXTS, TOKENIZER

from quintic.errors import CheckpointError, InputError, TokenizerError, UnsupportedError

VOCAB = 32128
END = 1
# Parts of a layer's names in GGUF and in transformers.
PARTS = {
    "attn_norm": "layer.0.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders with the tokenizer beside the weights."""
    made = {}
    for kind in ("t5-gated", "umt5"):
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        make_hf(kind, vocab_size=VOCAB).save_pretrained(folder)
        shutil.copyfile(TOKENIZER, folder / "spiece.model")
    return made


def write_gguf(folder: Path, file: Path, model: str = "t5") -> None:
    """The model of a folder as llama.cpp's converter writes it, in float32, tokenizer included."""
    theirs = {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    shape = quintic.T5EncoderModel.from_pretrained(folder).config
    writer = gguf.GGUFWriter(file, "t5encoder")
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_block_count(shape.num_layers)
    writer.add_head_count(shape.num_heads)
    writer.add_key_length(shape.d_kv)
    writer.add_value_length(shape.d_kv)
    writer.add_layer_norm_rms_eps(shape.layer_norm_epsilon)
    writer.add_relative_attn_buckets_count(shape.relative_attention_num_buckets)
    add_vocabulary(writer, model)
    writer.add_tensor("token_embd.weight", theirs["shared.weight"])
    writer.add_tensor("enc.output_norm.weight", theirs["encoder.final_layer_norm.weight"])
    for layer in range(shape.num_layers):
        for part, name in PARTS.items():
            tensor = theirs.get(f"encoder.block.{layer}.{name}.weight")
            if tensor is not None:
                writer.add_tensor(f"enc.blk.{layer}.{part}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: gguf.GGUFWriter, model: str) -> None:
    """Pieces, scores, kinds and rules of characters of T5's SentencePiece model, filled up to VOCAB."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    known = range(pieces.vocab_size())
    filled = range(pieces.vocab_size(), VOCAB)
    kinds = gguf.TokenType
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(id) for id in known] + [f"[PAD{id}]" for id in filled])
    writer.add_token_scores([pieces.get_score(id) for id in known] + [-10000.0] * len(filled))
    writer.add_token_types(
        [
            kinds.UNKNOWN if pieces.is_unknown(id) else kinds.CONTROL if pieces.is_control(id) else kinds.NORMAL
            for id in known
        ]
        + [kinds.UNUSED] * len(filled)
    )
    # Field 3 of the model is the normaliser, whose field 2 are its rules.
    writer.add_precompiled_charsmap(field(field(TOKENIZER.read_bytes(), 3), 2))
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)


def field(message: bytes, wanted: int) -> bytes:
    """The first field of that number and of bytes in a message of protocol buffers."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        length = varint() if kind in (0, 2) else {1: 8, 5: 4}[kind]
        if kind == 0:
            continue
        if (number, kind) == (wanted, 2):
            return message[at : at + length]
        at += length
    raise AssertionError(f"there is no field {wanted}")


def write_comfy(folder: Path, file: Path, prefix: str = "", spiece: bytes | None = None) -> None:
    """The model of a folder as a single file of ComfyUI's, with the SentencePiece model as a tensor."""
    tensors = {prefix + name: tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    spiece = TOKENIZER.read_bytes() if spiece is None else spiece
    save_file({**tensors, "spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}, file)


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file each, alone in a folder: nothing stands beside it."""
    made = {
        name: tmp_path_factory.mktemp("alone") / name
        for name in ("t5.gguf", "umt5_xxl_fp32.safetensors", "all_in_one.safetensors")
    }
    write_gguf(folders["t5-gated"], made["t5.gguf"])
    write_comfy(folders["umt5"], made["umt5_xxl_fp32.safetensors"])
    write_comfy(folders["umt5"], made["all_in_one.safetensors"], "text_encoders.umt5xxl.transformer.")
    return made


KINDS = {"t5.gguf": "t5-gated", "umt5_xxl_fp32.safetensors": "umt5", "all_in_one.safetensors": "umt5"}


@pytest.mark.parametrize("name", KINDS)
def test_texts_need_nothing_beside_the_file(folders: dict[str, Path], files: dict[str, Path], name: str) -> None:
    """Ids are SentencePiece's own, vectors and conditioning those of a folder with the tokenizer beside it."""
    model = quintic.AutoT5Encoder.from_pretrained(files[name])
    beside = quintic.AutoT5Encoder.from_pretrained(folders[KINDS[name]])
    assert type(model) is type(beside)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZER))
    expected = [[*pieces.encode(text), END] for text in TEXTS]
    assert _quintic.Tokenizer.inside(model._engine).encode(TEXTS, None) == expected

    vectors = model.encode(TEXTS)
    np.testing.assert_array_equal(vectors, beside.encode(TEXTS))
    np.testing.assert_array_equal(vectors, model.encode(TEXTS, tokenizer=str(TOKENIZER)))
    np.testing.assert_array_equal(vectors, quintic.encode(TEXTS, model=files[name]))
    states = model.encode(TEXTS, pool="none")
    assert [len(state) for state in states] == [len(row) for row in expected]

    preset = {"t5-gated": "flux", "umt5": "wan"}[KINDS[name]]
    found, masks = zip(*(one.encode_for(preset, TEXTS[:3]) for one in (model, beside)), strict=True)
    np.testing.assert_array_equal(*found)
    assert (masks[0] is None and masks[1] is None) or np.array_equal(*masks)

    module = quintic.SentenceTransformerModule(str(files[name]), normalize=True)
    embedding = module.forward(module.preprocess(TEXTS))["sentence_embedding"].numpy()
    np.testing.assert_array_equal(embedding, vectors)


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_the_command(files: dict[str, Path], name: str) -> None:
    """Which reads the same file."""
    inside = _quintic.Tokenizer.inside(quintic.AutoT5Encoder.from_pretrained(files[name])._engine)
    for text in TEXTS:
        command = [sys.executable, "-m", "quintic", "encode", "--model", str(files[name]), "--quiet", "-o", "-", text]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert f'"input_ids":{inside.encode([text], None)[0]}'.replace(" ", "") in done.stdout.replace(" ", "")


def test_weights_of_a_gguf_file_become_integers(folders: dict[str, Path], files: dict[str, Path]) -> None:
    """As those of any other file."""
    found = quintic.encode(TEXTS, model=files["t5.gguf"], dtype="float32", weights="int8")
    expected = quintic.encode(TEXTS, model=folders["t5-gated"], dtype="float32", weights="int8")
    np.testing.assert_array_equal(found, expected)


def test_a_folder_comes_before_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """As in the command: what is named, then what is beside the weights, then what is inside."""
    write_comfy(folders["umt5"], tmp_path / "model.safetensors", spiece=b"broken")
    for name in ("config.json", "spiece.model"):
        shutil.copyfile(folders["umt5"] / name, tmp_path / name)
    found = quintic.UMT5EncoderModel.from_pretrained(tmp_path).encode(TEXTS)
    np.testing.assert_array_equal(found, quintic.UMT5EncoderModel.from_pretrained(folders["umt5"]).encode(TEXTS))


def test_mistakes(folders: dict[str, Path], files: dict[str, Path], tmp_path: Path) -> None:
    """None inside, a damaged one, one of another kind; and what is not written out."""
    save_file(load_file(folders["umt5"] / "model.safetensors"), tmp_path / "none.safetensors")
    write_comfy(folders["umt5"], tmp_path / "damaged.safetensors", spiece=b"\xff\xff\xff")
    write_gguf(folders["t5-gated"], tmp_path / "gpt2.gguf", model="gpt2")
    for name, preset, error, message in (
        ("none.safetensors", "wan", InputError, "no tokenizer beside it, and its weights have none inside"),
        ("damaged.safetensors", "wan", TokenizerError, "damaged.safetensors"),
        ("gpt2.gguf", "flux", UnsupportedError, "gpt2.gguf.*found `gpt2`, expected `t5`"),
    ):
        model = quintic.AutoT5Encoder.from_pretrained(tmp_path / name)
        for call in (lambda model=model: model.encode("fox"), lambda model=model: model.encode_for(preset, "fox")):
            with pytest.raises(error, match=message):
                call()
    tensors = load_file(folders["umt5"] / "model.safetensors")
    save_file({**tensors, "spiece_model": torch.zeros(3)}, tmp_path / "floats.safetensors")
    with pytest.raises(CheckpointError, match="`spiece_model`.*expected one extent of u8"):
        quintic.UMT5EncoderModel.from_pretrained(tmp_path / "floats.safetensors").encode("fox")
    module = quintic.SentenceTransformerModule(str(files["t5.gguf"]))
    with pytest.raises(UnsupportedError, match="inside the weight file"):
        module.save(str(tmp_path / "saved"))
