#!/usr/bin/env python3
"""Writes the PyTorch files in testdata/pytorch. Needs torch (made with 2.15.0).

    python tools/make_pytorch_files.py testdata/pytorch

Values are small integers and halves, exact in every float type, so that the tests can
state them: `ramp(n)` is 0, 0.5, 1, ... All files come out the same every time but the
legacy ones, whose storages are named after memory addresses.
"""

import collections
import pickle
import sys
from pathlib import Path

import torch


def ramp(*shape, dtype=torch.float32, start=0.0):
    count = 1
    for extent in shape:
        count *= extent
    return (torch.arange(count, dtype=torch.float32) * 0.5 + start).reshape(shape).to(dtype)


def encoder(d_model=4, inner=4, d_ff=6, heads=2, vocab=10, buckets=4):
    """The tensors of a one-layer T5 v1.0 encoder."""
    block = "encoder.block.0.layer"
    return collections.OrderedDict([
        ("shared.weight", ramp(vocab, d_model)),
        (f"{block}.0.SelfAttention.q.weight", ramp(inner, d_model, start=1)),
        (f"{block}.0.SelfAttention.k.weight", ramp(inner, d_model, start=2)),
        (f"{block}.0.SelfAttention.v.weight", ramp(inner, d_model, start=3)),
        (f"{block}.0.SelfAttention.o.weight", ramp(d_model, inner, start=4)),
        (f"{block}.0.SelfAttention.relative_attention_bias.weight", ramp(buckets, heads)),
        (f"{block}.0.layer_norm.weight", torch.ones(d_model)),
        (f"{block}.1.DenseReluDense.wi.weight", ramp(d_ff, d_model, start=5)),
        (f"{block}.1.DenseReluDense.wo.weight", ramp(d_model, d_ff, start=6)),
        (f"{block}.1.layer_norm.weight", torch.ones(d_model)),
        ("encoder.final_layer_norm.weight", torch.ones(d_model)),
    ])


class Evil:
    """Unpickled by Python, this would run a command."""

    def __reduce__(self):
        import os
        return (os.system, ("echo a pickle ran a command",))


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    save = lambda name, value, **options: torch.save(value, folder / name, **options)

    save("plain.bin", encoder())
    save("legacy.bin", encoder(), _use_new_zipfile_serialization=False)
    save("nested_state_dict.bin", {"state_dict": encoder(), "epoch": 3, "lr": 1e-4})
    save("nested_model.pt", {"model": encoder(), "args": {"name": "tiny", "sizes": [1, 2]}})
    save("dtypes.bin", {
        "f32": ramp(2, 3),
        "f16": ramp(2, 3, dtype=torch.float16),
        "bf16": ramp(2, 3, dtype=torch.bfloat16),
        "f64": ramp(2, 3, dtype=torch.float64),
        "i64": torch.tensor([-1, 2, 3]),
        "i32": torch.tensor([-1, 2, 3], dtype=torch.int32),
        "i8": torch.tensor([-1, 2, 3], dtype=torch.int8),
        "u8": torch.tensor([1, 2, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
    })
    base = ramp(4, 6)
    save("views.bin", {
        "base": base,
        "transposed": base.t(),
        "columns": base[:, 1:3],
        "every_other_row": base[::2],
        "row": base[2],
        "expanded": base[0, :3].expand(4, 3),
        "permuted": ramp(2, 3, 4).permute(2, 0, 1),
    })
    shared = ramp(3, 2)
    save("shared.bin", {"shared.weight": shared, "encoder.embed_tokens.weight": shared})
    save("parameter.bin", {"w": torch.nn.Parameter(ramp(2, 2))})
    linear = torch.nn.Linear(3, 2)
    linear.weight.data, linear.bias.data = ramp(2, 3), ramp(2)
    save("module.pt", linear)
    save("evil.bin", {"w": ramp(2, 2), "config": Evil()})
    save("broadcast.bin", {"w": torch.zeros(1).expand(1 << 20, 512)})
    (folder / "evil_plain.bin").write_bytes(pickle.dumps({"w": Evil()}, protocol=2))
    save("no_tensors.bin", {"epoch": 3})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
