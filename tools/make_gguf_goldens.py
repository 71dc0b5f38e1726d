"""Writes testdata/gguf: tiny models as GGUF files and, with the same values, as safetensors.

The GGUF files are written by the package `gguf` under the keys and names that llama.cpp's
converter uses; weights are quantised by it, and the safetensors files hold in f32 what it
dequantises them to.

    pip install gguf==0.19.0 safetensors
    python tools/make_gguf_goldens.py
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import MODEL_ARCH, MODEL_TENSOR, MODEL_TENSORS, TENSOR_NAMES
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

D_MODEL, D_KV, HEADS, D_FF, VOCAB, BUCKETS = 32, 16, 2, 64, 40, 8
# Weights take these in turn.
TYPES = [Type.Q8_0, Type.Q4_0, Type.F16, Type.Q4_1, Type.BF16, Type.Q5_0, Type.F32, Type.Q5_1]
PLAIN_F32 = {"norm", "rel_b"}

# Part of a GGUF name to the name in transformers, `{F}` the feed-forward's number.
PARTS = {
    "ATTN_NORM": "layer.0.layer_norm",
    "ATTN_Q": "layer.0.SelfAttention.q",
    "ATTN_K": "layer.0.SelfAttention.k",
    "ATTN_V": "layer.0.SelfAttention.v",
    "ATTN_OUT": "layer.0.SelfAttention.o",
    "ATTN_REL_B": "layer.0.SelfAttention.relative_attention_bias",
    "CROSS_ATTN_NORM": "layer.1.layer_norm",
    "CROSS_ATTN_Q": "layer.1.EncDecAttention.q",
    "CROSS_ATTN_K": "layer.1.EncDecAttention.k",
    "CROSS_ATTN_V": "layer.1.EncDecAttention.v",
    "CROSS_ATTN_OUT": "layer.1.EncDecAttention.o",
    "FFN_NORM": "layer.{F}.layer_norm",
    "FFN_GATE": "layer.{F}.DenseReluDense.wi_0",
    "FFN_UP": "layer.{F}.DenseReluDense.{UP}",
    "FFN_DOWN": "layer.{F}.DenseReluDense.wo",
}
INNER = D_KV * HEADS
SHAPES = {
    "Q": (INNER, D_MODEL),
    "K": (INNER, D_MODEL),
    "V": (INNER, D_MODEL),
    "OUT": (D_MODEL, INNER),
    "B": (BUCKETS, HEADS),
    "NORM": (D_MODEL,),
    "GATE": (D_FF, D_MODEL),
    "UP": (D_FF, D_MODEL),
    "DOWN": (D_MODEL, D_FF),
}


def names(arch: MODEL_ARCH, layers: dict[str, int], gated: bool, bias_per_layer: bool):
    """(GGUF name, transformers name, shape) of every tensor, from the package's own tables."""
    for tensor in MODEL_TENSORS[arch]:
        name, theirs = tensor.name, TENSOR_NAMES[tensor]
        if tensor == MODEL_TENSOR.TOKEN_EMBD:
            yield theirs, "shared", (VOCAB, D_MODEL)
        elif tensor == MODEL_TENSOR.OUTPUT:
            continue
        elif name.endswith("OUTPUT_NORM"):
            stack = {"ENC": "encoder", "DEC": "decoder"}[name[:3]]
            yield theirs, f"{stack}.final_layer_norm", (D_MODEL,)
        else:
            stack = {"ENC": "encoder", "DEC": "decoder"}[name[:3]]
            part = name[4:]
            if part == "CROSS_ATTN_REL_B" or (part == "FFN_GATE" and not gated):
                continue
            for layer in range(layers[stack]):
                if part == "ATTN_REL_B" and layer > 0 and not bias_per_layer:
                    continue
                ours = PARTS[part].format(
                    F=1 if stack == "encoder" else 2, UP="wi_1" if gated else "wi"
                )
                shape = SHAPES[part.rsplit("_", 1)[1]]
                yield theirs.format(bid=layer), f"{stack}.block.{layer}.{ours}", shape


def write(folder: Path, arch: MODEL_ARCH, layers: dict[str, int], gated: bool, umt5: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.name))
    name = gguf.MODEL_ARCH_NAMES[arch]
    writer = gguf.GGUFWriter(folder / "model.gguf", name)
    writer.add_name(folder.name)
    writer.add_context_length(512)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FF)
    writer.add_block_count(layers["encoder"])
    if layers["decoder"]:
        writer.add_decoder_block_count(layers["decoder"])
        writer.add_decoder_start_token_id(0)
    writer.add_head_count(HEADS)
    writer.add_key_length(D_KV)
    writer.add_value_length(D_KV)
    writer.add_layer_norm_eps(1e-6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_relative_attn_buckets_count(BUCKETS)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    tokens = ["<pad>", "</s>", "<unk>", "\u2581", "a", "b", "\u2581ab", "ab"]
    kinds = [3, 3, 2, 1, 1, 1, 1, 1]
    scores = [0.0, 0.0, 0.0, -2.0, -3.0, -3.5, -1.0, -1.5]
    for token in range(len(tokens), VOCAB):
        tokens.append(f"[PAD{token}]")
        kinds.append(5)
        scores.append(-10000.0)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(True)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(True)

    values = {}
    for idx, (theirs, ours, shape) in enumerate(names(arch, layers, gated, umt5)):
        plain = theirs.endswith(tuple(PLAIN_F32))
        weight = rng.standard_normal(shape).astype(np.float32) * (0.2 if len(shape) == 2 else 1)
        kind = Type.F32 if plain else TYPES[idx % len(TYPES)]
        stored = quantize(weight, kind)
        writer.add_tensor(f"{theirs}.weight", stored, raw_dtype=kind)
        values[f"{ours}.weight"] = np.ascontiguousarray(dequantize(stored, kind).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(values, folder / "model.safetensors")
    config = {
        "model_type": "umt5" if umt5 else "t5",
        "vocab_size": VOCAB,
        "d_model": D_MODEL,
        "d_kv": D_KV,
        "d_ff": D_FF,
        "num_heads": HEADS,
        "num_layers": layers["encoder"],
        "num_decoder_layers": layers["decoder"],
        "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "layer_norm_epsilon": 1e-6,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(folder: Path) -> None:
    write(folder / "umt5", MODEL_ARCH.T5ENCODER, {"encoder": 2, "decoder": 0}, True, True)
    write(folder / "t5", MODEL_ARCH.T5, {"encoder": 2, "decoder": 1}, False, False)


if __name__ == "__main__":
    default = Path(__file__).resolve().parent.parent / "testdata" / "gguf"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
