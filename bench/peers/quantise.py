"""Graphs with weights, or weights and activations, in integers, made from other forms of a checkpoint.

Each writer gets the folder that it fills, beside which the other forms stand, and the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from workloads import caption_ids

# Rows that ranges of activations are taken from, where a checkpoint has no tokenizer.
RANDOM_ROWS = 8


def calibration_rows(checkpoint: Path) -> list[list[int]]:
    """What NNCF takes ranges from: captions that no case holds, or random ids if there is no tokenizer."""
    if (checkpoint / "tokenizer.json").is_file():
        return caption_ids(checkpoint, offset=6)
    vocab = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    ids = torch.Generator().manual_seed(21)
    return [torch.randint(2, vocab, (128,), generator=ids).tolist() for _ in range(RANDOM_ROWS)]


def _dataset(checkpoint: Path) -> Any:
    import nncf

    tensors = [torch.tensor([row]) for row in calibration_rows(checkpoint)]
    rows = [{"input_ids": row.numpy(), "attention_mask": torch.ones_like(row).numpy()} for row in tensors]
    return nncf.Dataset(rows), len(rows)


def _openvino_graph(folder: Path) -> Any:
    import openvino

    return openvino.Core().read_model(folder.parent / "openvino" / "model.xml")


def _save(graph: Any, folder: Path) -> None:
    import openvino

    openvino.save_model(graph, folder / "model.xml", compress_to_fp16=False)


def openvino_int8(folder: Path, checkpoint: Path) -> None:
    """Weights and activations in int8, whose ranges NNCF takes from calibration rows."""
    import nncf

    rows, count = _dataset(checkpoint)
    graph = nncf.quantize(
        _openvino_graph(folder),
        rows,
        subset_size=count,
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
    )
    _save(graph, folder)


def openvino_weights(folder: Path, mode: str, group: int | None) -> None:
    """The weights of all products, and nothing else, in NNCF's ``mode``; the embedding stays as it is.

    Per output column, or with ``group`` per so many values of a column.
    """
    import nncf

    more = {} if group is None else {"group_size": group, "all_layers": True}
    graph = nncf.compress_weights(
        _openvino_graph(folder),
        mode=nncf.CompressWeightsMode(mode),
        ignored_scope=nncf.IgnoredScope(types=["Gather"]),
        **more,
    )
    _save(graph, folder)


def onnx_int8(folder: Path) -> None:
    """Weights in int8 by output, activations quantised as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        folder.parent / "onnx" / "model.onnx",
        folder / "model.onnx",
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True},
    )


def onnx_blocks(folder: Path, bits: int, block: int, is_symmetric: bool) -> None:
    """Weights of all products in blocks of a column, by ONNX Runtime's MatMulNBits."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantiser = MatMulNBitsQuantizer(
        onnx.load(folder.parent / "onnx" / "model.onnx"),
        bits=bits,
        block_size=block,
        is_symmetric=is_symmetric,
        op_types_to_quantize=("MatMul",),
    )
    quantiser.process()
    quantiser.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)
