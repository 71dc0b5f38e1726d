"""Random checkpoints of real shapes, and the converted copies that some peers need.

    python checkpoints.py ROOT SHAPE FORM [FORM ...]
    python checkpoints.py ROOT NAME FORM [FORM ...] --source CHECKPOINT

A form is a folder below ``ROOT/SHAPE``, written beside its place and moved there when complete; ``FORMS``
lists them. With ``--source`` that checkpoint is converted, whose type may be any, in place of a random one.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import quantise
import torch
from safetensors.torch import load_file, save_file
from workloads import D_KV, SHAPES, VOCAB, Shape


# Of a form: the shape, the folder to fill, and the checkpoint, in f32 if it is a random one.
Writer = Callable[[Shape, Path, Path], None]


def shape_of(checkpoint: Path) -> Shape:
    """The encoder's, of any checkpoint that ``config.json`` calls a v1.1 one."""
    settings = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    expected = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "d_kv": D_KV, "vocab_size": VOCAB}
    for field, value in expected.items():
        if settings.get(field) != value:
            raise ValueError(f"{checkpoint / 'config.json'}: `{field}` is {settings.get(field)!r}, expected {value!r}")
    return Shape(settings["d_model"], settings["d_ff"], settings["num_layers"], settings["num_heads"])


def config(shape: Shape, dtype: str) -> dict[str, Any]:
    """config.json of a v1.1 encoder, or of a whole model."""
    return {
        "architectures": ["T5ForConditionalGeneration" if shape.has_decoder else "T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": VOCAB,
        "d_model": shape.d_model,
        "d_kv": D_KV,
        "d_ff": shape.d_ff,
        "num_layers": shape.n_layers,
        "num_decoder_layers": shape.n_layers,
        "num_heads": shape.n_heads,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "use_cache": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "dtype": {"f32": "float32", "bf16": "bfloat16"}[dtype],
    }


def matrices(shape: Shape) -> Iterator[tuple[str, tuple[int, int], float]]:
    """Name, size and standard deviation of every matrix, as T5 starts its training.

    The position bias is as large as the scores, so that an engine that gets it wrong shows.
    """
    d, ff, inner = shape.d_model, shape.d_ff, shape.inner
    yield "shared.weight", (VOCAB, d), 1.0
    yield "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, shape.n_heads), 1.0
    for layer in range(shape.n_layers):
        attention = f"encoder.block.{layer}.layer.0.SelfAttention"
        yield f"{attention}.q.weight", (inner, d), (d * D_KV) ** -0.5
        yield f"{attention}.k.weight", (inner, d), d**-0.5
        yield f"{attention}.v.weight", (inner, d), d**-0.5
        yield f"{attention}.o.weight", (d, inner), inner**-0.5
        feed_forward = f"encoder.block.{layer}.layer.1.DenseReluDense"
        yield f"{feed_forward}.wi_0.weight", (ff, d), d**-0.5
        yield f"{feed_forward}.wi_1.weight", (ff, d), d**-0.5
        yield f"{feed_forward}.wo.weight", (d, ff), ff**-0.5
    if not shape.has_decoder:
        return
    yield "lm_head.weight", (VOCAB, d), d**-0.5
    yield "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, shape.n_heads), 1.0
    for layer in range(shape.n_layers):
        block = f"decoder.block.{layer}"
        for attention in (f"{block}.layer.0.SelfAttention", f"{block}.layer.1.EncDecAttention"):
            yield f"{attention}.q.weight", (inner, d), (d * D_KV) ** -0.5
            yield f"{attention}.k.weight", (inner, d), d**-0.5
            yield f"{attention}.v.weight", (inner, d), d**-0.5
            yield f"{attention}.o.weight", (d, inner), inner**-0.5
        yield f"{block}.layer.2.DenseReluDense.wi_0.weight", (ff, d), d**-0.5
        yield f"{block}.layer.2.DenseReluDense.wi_1.weight", (ff, d), d**-0.5
        yield f"{block}.layer.2.DenseReluDense.wo.weight", (d, ff), ff**-0.5


def norms(shape: Shape) -> Iterator[str]:
    """Names of the gains."""
    stacks = [("encoder", 2), ("decoder", 3)] if shape.has_decoder else [("encoder", 2)]
    for stack, n_norms in stacks:
        for layer in range(shape.n_layers):
            for norm in range(n_norms):
                yield f"{stack}.block.{layer}.layer.{norm}.layer_norm.weight"
        yield f"{stack}.final_layer_norm.weight"


def write_f32(shape: Shape, folder: Path, _: Path) -> None:
    """The checkpoint all others are made from; gains lie around one."""
    source = torch.Generator().manual_seed(20)
    tensors = {name: torch.randn(size, generator=source).mul_(scale) for name, size, scale in matrices(shape)}
    tensors |= {name: 1 + 0.1 * torch.randn(shape.d_model, generator=source) for name in norms(shape)}
    assert sum(tensor.numel() for tensor in tensors.values()) == shape.parameters()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape, "f32"), indent=2))


def write_bf16(shape: Shape, folder: Path, f32: Path) -> None:
    """Every weight rounded to nearest."""
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(f32 / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(shape, "bf16"), indent=2))


class _Encoder(torch.nn.Module):
    """What is exported: ids and mask in, last hidden state out."""

    def __init__(self, folder: Path, attention: str) -> None:
        super().__init__()
        self.encoder = transformers_encoder(folder, attention)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def transformers_encoder(folder: Path, attention: str) -> Any:
    """transformers' encoder in float32."""
    from transformers import T5EncoderModel

    return T5EncoderModel.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows, one of them with padding, so that tracing keeps the mask."""
    mask = torch.ones(2, 48, dtype=torch.long)
    mask[1, 30:] = 0
    return torch.randint(100, 31_000, (2, 48)), mask


def write_openvino(shape: Shape, folder: Path, f32: Path) -> None:
    """A graph with both dimensions open; its weights stay f32."""
    import openvino

    sizes = [(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in ("input_ids", "attention_mask")]
    graph = openvino.convert_model(_Encoder(f32, "sdpa"), example_input=_example(), input=sizes)
    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)


def write_openvino_int8(shape: Shape, folder: Path, f32: Path) -> None:
    """Weights and activations in int8."""
    quantise.openvino_int8(folder, f32)


def openvino_weights(mode: str, group: int | None = None) -> Writer:
    """Weights alone in integers."""
    return lambda shape, folder, f32: quantise.openvino_weights(folder, mode, group)


def write_onnx(shape: Shape, folder: Path, f32: Path) -> None:
    """A graph with both dimensions open."""
    sizes = {0: torch.export.Dim("rows", max=256), 1: torch.export.Dim("tokens", min=2, max=512)}
    program = torch.onnx.export(
        _Encoder(f32, "eager"),
        _example(),
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
        opset_version=20,
    )
    program.save(folder / "model.onnx", external_data=True)


def write_onnx_int8(shape: Shape, folder: Path, f32: Path) -> None:
    """Weights in int8 by output, activations quantised as they come."""
    quantise.onnx_int8(folder)


def onnx_blocks(bits: int, block: int, is_symmetric: bool) -> Writer:
    """Weights alone in integers, in blocks."""
    return lambda shape, folder, f32: quantise.onnx_blocks(folder, bits, block, is_symmetric)


def _vocabulary() -> list[str]:
    """Ids go in as numbers or as these words, but a vocabulary has to be there."""
    return ["<pad>", "</s>", "<unk>", *(f"token{index}" for index in range(3, VOCAB))]


def write_ctranslate2(shape: Shape, folder: Path, f32: Path) -> None:
    """A whole model, or the encoder alone."""
    (_write_ctranslate2_whole if shape.has_decoder else _write_ctranslate2_encoder)(shape, folder, f32)


def _write_ctranslate2_whole(shape: Shape, folder: Path, f32: Path) -> None:
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    from transformers import T5ForConditionalGeneration

    model = T5ForConditionalGeneration.from_pretrained(f32, dtype=torch.float32).eval()
    # transformers 5 says True of every T5, and the loader would scale the decoder's output.
    model.config.tie_word_embeddings = False
    with torch.no_grad():
        spec = _MODEL_LOADERS["T5Config"].get_model_spec(model)
    spec.register_source_vocabulary(_vocabulary())
    spec.register_target_vocabulary(_vocabulary())
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<pad>", "</s>", "<unk>"
    spec.config.decoder_start_token, spec.config.add_source_eos = "<pad>", False
    spec.config.layer_norm_epsilon = 1e-6
    spec.validate()
    spec.optimize(quantization=None)
    spec.save(str(folder))


def _write_ctranslate2_encoder(shape: Shape, folder: Path, f32: Path) -> None:
    """CTranslate2 converts whole T5s only; its loader's encoder half is put into an encoder model here."""
    from ctranslate2.converters.transformers import _MODEL_LOADERS
    from ctranslate2.specs.common_spec import Activation
    from ctranslate2.specs.transformer_spec import TransformerEncoderModelSpec, TransformerEncoderSpec

    stack = TransformerEncoderSpec(
        shape.n_layers,
        shape.n_heads,
        pre_norm=True,
        activation=Activation.GELUTanh,
        ffn_glu=True,
        relative_attention_bias=True,
        rms_norm=True,
    )
    with torch.no_grad():
        _MODEL_LOADERS["T5Config"].set_stack(stack, transformers_encoder(f32, "eager").encoder)
    spec = TransformerEncoderModelSpec(stack)
    spec.register_vocabulary(_vocabulary())
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<pad>", "</s>", "<unk>"
    spec.config.layer_norm_epsilon = 1e-6
    spec.validate()
    spec.optimize(quantization=None)
    spec.save(str(folder))


FORMS: dict[str, Writer] = {
    "f32": write_f32,
    "bf16": write_bf16,
    "openvino": write_openvino,
    "openvino-int8": write_openvino_int8,
    "onnx": write_onnx,
    "onnx-int8": write_onnx_int8,
    "ctranslate2": write_ctranslate2,
    "openvino-int8-sym": openvino_weights("int8_sym"),
    "openvino-int8-asym": openvino_weights("int8_asym"),
    **{f"openvino-int4-sym-{group}": openvino_weights("int4_sym", group) for group in (32, 64, 128)},
    "openvino-int4-asym-32": openvino_weights("int4_asym", 32),
    **{
        f"onnx-int{bits}-{how}-32": onnx_blocks(bits, 32, how == "sym")
        for bits in (8, 4)
        for how in ("sym", "asym")
    },
}


def main() -> None:
    """Writes what is not there yet."""
    parser = argparse.ArgumentParser(description="Write random checkpoints and converted copies of them.")
    parser.add_argument("root", type=Path)
    parser.add_argument("name", help="a shape, or with --source a folder's name")
    parser.add_argument("forms", nargs="+", choices=FORMS)
    parser.add_argument("--source", type=Path, help="convert this checkpoint")
    options = parser.parse_args()
    if options.source is None and options.name not in SHAPES:
        parser.error(f"no shape is called `{options.name}`; there are {', '.join(SHAPES)}")
    source = options.source or options.root / options.name / "f32"
    np.random.seed(20)
    torch.manual_seed(20)
    for form in options.forms:
        place = options.root / options.name / form
        if place.is_dir():
            continue
        if options.source and form in ("f32", "bf16"):
            parser.error(f"`{form}` is a random checkpoint, which has no source")
        shape = shape_of(source) if options.source else SHAPES[options.name]
        unfinished = place.with_name(f"{form}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        FORMS[form](shape, unfinished, source)
        unfinished.rename(place)


if __name__ == "__main__":
    main()
