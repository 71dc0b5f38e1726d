"""``quintic convert --to`` read back by others: the package ``gguf``, and transformers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

from oracle.cases import REPOSITORY
from oracle.engines import Quintic

FLAN = REPOSITORY / ".cache" / "models" / "flan-t5-small"
SPIECE = REPOSITORY / "testdata" / "tokenizers" / "t5" / "spiece.model"
GOLDENS = REPOSITORY / "testdata" / "decoder_goldens"
MATRICES = {kind.name.lower(): kind for kind in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)}
# Blocks of 256, of which ``gguf`` has no encoder, and what rows that are no multiple of that have instead.
LARGE = {
    "q2_k": (Kind.Q2_K, Kind.Q4_0),
    "q3_k": (Kind.Q3_K, Kind.Q4_0),
    "q4_k": (Kind.Q4_K, Kind.Q5_0),
    "q5_k": (Kind.Q5_K, Kind.Q5_1),
    "q6_k": (Kind.Q6_K, Kind.Q8_0),
}


def _convert(quintic: Quintic, model: Path, out: Path, *arguments: object) -> Path:
    command = [str(quintic.binary), "convert", "--model", model, "-o", out, "--quiet", *arguments]
    subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return out


def _value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def _expected_kind(name: str, shape: list[int], dtype: str) -> Kind:
    """Norms and biases stay f32, the embedding and the head have 8 bits at least, rows are whole blocks."""
    if name.endswith(("_norm.weight", "_rel_b.weight")):
        return Kind.F32
    is_large = dtype in LARGE
    kinds = LARGE[dtype] if is_large else (MATRICES[dtype],)
    if name in ("token_embd.weight", "output.weight") and dtype.startswith("q") and dtype != "q8_0":
        kinds = LARGE["q6_k"] if is_large else (Kind.Q8_0,)
    whole = [kind for kind in kinds if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0]
    return whole[0] if whole else Kind.F16


def _check_tensors(path: Path, tensors: dict[str, torch.Tensor], dtype: str) -> None:
    """Every tensor has llama.cpp's name, and the bytes that ``gguf`` makes of its values."""
    reader = gguf.GGUFReader(path)
    blocks = max(int(name.split(".")[2]) for name in tensors if ".block." in name) + 1
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, blocks)
    shared = {name: "shared.weight" for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}
    expected = {
        names.get_name(shared.get(name, name), try_suffixes=(".weight",)): tensor for name, tensor in tensors.items()
    }
    assert None not in expected
    assert {tensor.name for tensor in reader.tensors} == set(expected)
    for tensor in reader.tensors:
        values = expected[tensor.name].float().numpy()
        kind = _expected_kind(tensor.name, list(values.shape), dtype)
        assert tensor.tensor_type == kind, tensor.name
        assert list(reversed(tensor.shape.tolist())) == list(values.shape), tensor.name
        decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        if kind in [large for large, _ in LARGE.values()]:
            assert np.isfinite(decoded).all(), tensor.name
            continue
        encoded = gguf.quants.quantize(values, kind)
        assert np.array_equal(tensor.data.view(np.uint8).ravel(), encoded.view(np.uint8).ravel()), tensor.name
        # Half a step of the coarsest block: the largest value of all over 8 (4 bits).
        assert np.abs(decoded - values).max() <= np.abs(values).max() / 8, tensor.name


@pytest.mark.parametrize("dtype", list(MATRICES))
def test_gguf_of_the_real_model(quintic: Quintic, tmp_path: Path, dtype: str) -> None:
    """All 190 tensors, bit for bit, and the metadata that llama.cpp's converter writes."""
    out = _convert(quintic, FLAN, tmp_path / "x.gguf", "--to", "gguf", "--dtype", dtype, "--tokenizer", SPIECE)
    _check_tensors(out, load_file(FLAN / "model.safetensors"), dtype)
    reader = gguf.GGUFReader(out)
    keys = gguf.constants.Keys
    numbers = {
        keys.LLM.CONTEXT_LENGTH: 512,
        keys.LLM.EMBEDDING_LENGTH: 512,
        keys.LLM.FEED_FORWARD_LENGTH: 1024,
        keys.LLM.BLOCK_COUNT: 8,
        keys.LLM.DECODER_BLOCK_COUNT: 8,
        keys.LLM.DECODER_START_TOKEN_ID: 0,
        keys.Attention.HEAD_COUNT: 6,
        keys.Attention.KEY_LENGTH: 64,
        keys.Attention.VALUE_LENGTH: 64,
        keys.Attention.REL_BUCKETS_COUNT: 32,
        keys.Attention.LAYERNORM_EPS: np.float32(1e-6),
        keys.Attention.LAYERNORM_RMS_EPS: np.float32(1e-6),
    }
    for key, expected in numbers.items():
        assert _value(reader, key.format(arch="t5")) == expected, key
    assert _value(reader, keys.General.ARCHITECTURE) == gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.T5]
    assert _value(reader, keys.General.NAME) == "flan-t5-small"
    file_types = {"f32": "ALL_F32"}
    file_type = getattr(gguf.LlamaFileType, file_types.get(dtype, f"MOSTLY_{dtype.upper()}"))
    assert _value(reader, keys.General.FILE_TYPE) == file_type
    assert _value(reader, keys.General.QUANTIZATION_VERSION) == gguf.GGML_QUANT_VERSION


@pytest.mark.parametrize("dtype", list(LARGE))
def test_blocks_of_256_of_the_real_model(quintic: Quintic, tmp_path: Path, dtype: str) -> None:
    """Both decoders read the same bits, and the error is what so many bits allow."""
    file = _convert(quintic, FLAN, tmp_path / "x.gguf", "--to", "gguf", "--dtype", dtype, "--tokenizer", SPIECE)
    original = load_file(FLAN / "model.safetensors")
    _check_tensors(file, original, dtype)
    reader = gguf.GGUFReader(file)
    file_types = {"q2_k": "Q2_K_S", "q6_k": "Q6_K"}
    expected = getattr(gguf.LlamaFileType, f"MOSTLY_{file_types.get(dtype, f'{dtype.upper()}_S')}")
    assert _value(reader, gguf.constants.Keys.General.FILE_TYPE) == expected
    back = load_file(_convert(quintic, file, tmp_path / "x.safetensors", "--to", "safetensors", "--dtype", "f32"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 8)
    theirs = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    matrix = LARGE[dtype][0]
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    errors, evenly = 0.0, 0.0
    for name, values in back.items():
        key = names.get_name(name, try_suffixes=(".weight",))
        found = values.numpy()
        assert np.array_equal(found.view(np.uint32), theirs[key].reshape(found.shape).view(np.uint32)), name
        if kinds[key] == matrix:
            exact = original[name].double().numpy()
            errors += float(((found - exact) ** 2).sum())
            evenly += _rounding_evenly(exact, dtype)
    assert 0.3 * evenly < errors < evenly, errors / evenly


def _rounding_evenly(values: np.ndarray, dtype: str) -> float:
    """Sum of squared errors in even steps over the range of each group: a twelfth of the squared step a value."""
    group, steps = {"q2_k": (16, 3), "q3_k": (16, 4), "q4_k": (32, 15), "q5_k": (32, 31), "q6_k": (16, 32)}[dtype]
    groups = values.reshape(-1, group)
    if dtype in ("q3_k", "q6_k"):  # No minimum: steps to the largest size.
        step = np.abs(groups).max(axis=1) / steps
    else:
        step = (groups.max(axis=1) - np.minimum(groups.min(axis=1), 0)) / steps
    return float((step**2).sum() * group / 12)


def test_the_vocabulary_of_a_gguf_file(quintic: Quintic, tmp_path: Path) -> None:
    """Pieces, scores and kinds are SentencePiece's; sentinels and unused rows stand above them."""
    arguments = ("--to", "gguf", "--dtype", "q8_0", "--tokenizer", SPIECE)
    reader = gguf.GGUFReader(_convert(quintic, FLAN, tmp_path / "x.gguf", *arguments))
    keys, kinds = gguf.constants.Keys.Tokenizer, gguf.TokenType
    processor = sentencepiece.SentencePieceProcessor(model_file=str(SPIECE))
    n_pieces = processor.get_piece_size()
    tokens, scores, types = (_value(reader, key) for key in (keys.LIST, keys.SCORES, keys.TOKEN_TYPE))
    assert len(tokens) == len(scores) == len(types) == 32128
    assert tokens[:n_pieces] == [processor.id_to_piece(id) for id in range(n_pieces)]
    assert scores[:n_pieces] == [processor.get_score(id) for id in range(n_pieces)]
    for id in range(n_pieces):
        expected = (
            kinds.UNKNOWN
            if processor.is_unknown(id)
            else kinds.CONTROL
            if processor.is_control(id)
            else kinds.UNUSED
            if processor.is_unused(id)
            else kinds.NORMAL
        )
        assert types[id] == expected, id
    assert tokens[32099] == "<extra_id_0>" and tokens[32000] == "<extra_id_99>"
    assert types[32000:32100] == [kinds.USER_DEFINED] * 100
    assert tokens[32100] == "[PAD32100]" and types[32127] == kinds.UNUSED
    charsmap = bytes(_value(reader, keys.PRECOMPILED_CHARSMAP))
    assert len(charsmap) == 237539 and charsmap in SPIECE.read_bytes()
    others = {keys.MODEL: "t5", keys.PRE: "default", keys.ADD_PREFIX: True, keys.REMOVE_EXTRA_WS: True}
    others |= {keys.EOS_ID: 1, keys.UNK_ID: 2, keys.PAD_ID: 0, keys.ADD_BOS: False, keys.ADD_EOS: True}
    for key, expected in others.items():
        assert _value(reader, key) == expected, key


@pytest.mark.parametrize("family", ["t5-v1_0", "umt5", "madlad", "mt5"])
def test_gguf_of_every_family(quintic: Quintic, tmp_path: Path, family: str) -> None:
    """Plain and gated, tied and not, a bias in every layer; rows that are no whole blocks."""
    for dtype in ("q4_0", "q8_0", "bf16", "q5_1", "q4_k"):
        out = _convert(quintic, GOLDENS / family, tmp_path / f"{dtype}.gguf", "--to", "gguf", "--dtype", dtype)
        _check_tensors(out, load_file(GOLDENS / family / "model.safetensors"), dtype)


def test_transformers_reads_the_gguf_file(quintic: Quintic, tmp_path: Path) -> None:
    """It has a T5 loader of its own, and gives what it gives on the original."""
    _convert(quintic, FLAN, tmp_path / "x.gguf", "--to", "gguf", "--dtype", "f32", "--tokenizer", SPIECE)
    original = transformers.T5ForConditionalGeneration.from_pretrained(FLAN, dtype=torch.float32).eval()
    read = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, gguf_file="x.gguf").eval()
    # Weights alone: the file cannot name the activation, and transformers takes ReLU, whatever the weights are.
    ids, labels = torch.tensor([[5, 900, 33, 1]]), torch.tensor([[0, 7, 8]])
    theirs = {name: parameter for name, parameter in read.named_parameters()}
    for name, parameter in original.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    with torch.no_grad():
        assert read(input_ids=ids, decoder_input_ids=labels).logits.shape == (1, 3, 32128)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_transformers_reads_the_safetensors(quintic: Quintic, tmp_path: Path, dtype: str) -> None:
    """In the type that they now have, in shards, with every value rounded as torch rounds it."""
    arguments = ("--to", "safetensors", "--dtype", dtype, "--max-shard-size", "50MB")
    out = _convert(quintic, FLAN, tmp_path / "out", *arguments)
    expected = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    stored = {}
    for shard in sorted(out.glob("model-*.safetensors")):
        stored |= load_file(shard)
    original = load_file(FLAN / "model.safetensors")
    assert stored.keys() == original.keys()
    for name, tensor in original.items():
        assert stored[name].dtype == expected
        assert torch.equal(stored[name], tensor.to(expected)), name
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(out, dtype=expected)
    assert torch.equal(model.lm_head.weight, original["lm_head.weight"].to(expected))
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("a cat").input_ids[-1] == 1
    shutil.rmtree(out)
