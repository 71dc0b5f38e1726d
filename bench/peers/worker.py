"""One Python peer as an engine of the benchmark; see ``protocol.py`` for what it says.

    python worker.py PEER --model FOLDER --dtype f32 --ids-json FILE [--form FOLDER] [--loop] [--compile] [--save-output FILE.npy]

A ragged batch is padded to its longest row, or with ``--loop`` encoded row by row without padding.
With ``--new-tokens`` a peer generates (see ``generators.py``) and saves its tokens as JSON.
"""

from __future__ import annotations

import abc
import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

THREADS = int(os.environ.get("BENCH_THREADS", os.cpu_count() or 1))


@dataclass
class Feed:
    """One call's input: ids and, if some of it is padding, the mask."""

    ids: np.ndarray
    mask: np.ndarray | None
    lengths: list[int]

    @property
    def full_mask(self) -> np.ndarray:
        """For graphs whose mask is not optional."""
        return np.ones_like(self.ids) if self.mask is None else self.mask


def feeds(rows: list[list[int]], is_loop: bool) -> list[Feed]:
    """The calls that one run makes."""
    if is_loop:
        return [Feed(np.array([row], np.int64), None, [len(row)]) for row in rows]
    lengths = [len(row) for row in rows]
    ids = np.zeros((len(rows), max(lengths)), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    positions = np.arange(max(lengths))[None, :] < np.array(lengths)[:, None]
    return [Feed(ids, None if positions.all() else positions.astype(np.int64), lengths)]


class Peer(abc.ABC):
    """Loaded in ``__init__``; ``encode`` is what is timed, ``to_numpy`` is not."""

    @abc.abstractmethod
    def __init__(self, options: argparse.Namespace, calls: list[Feed]) -> None: ...

    @abc.abstractmethod
    def encode(self, index: int) -> Any:
        """The hidden states of one call, in whatever the peer returns."""

    def to_numpy(self, states: Any) -> np.ndarray:
        """The same as an array."""
        return np.array(states, np.float32)


class Torch(Peer):
    """What the peers on PyTorch share."""

    def __init__(self, options: argparse.Namespace, calls: list[Feed]) -> None:
        import torch

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[options.dtype]
        self.inputs = [
            (torch.from_numpy(call.ids), None if call.mask is None else torch.from_numpy(call.mask)) for call in calls
        ]
        self.model = self.load(options, max(call.ids.shape[1] for call in calls))

    @abc.abstractmethod
    def load(self, options: argparse.Namespace, width: int) -> Any:
        """The model, compiled if wanted."""

    def encode(self, index: int) -> Any:
        ids, mask = self.inputs[index]
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def to_numpy(self, states: Any) -> np.ndarray:
        return states.float().numpy()


class Transformers(Torch):
    """transformers' T5EncoderModel with PyTorch's own attention; compiled, its weights are constants."""

    def load(self, options: argparse.Namespace, width: int) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        model = transformers.T5EncoderModel.from_pretrained(
            options.model, dtype=self.dtype, attn_implementation="sdpa"
        ).eval()
        if not options.compile:
            return model
        import torch._inductor.config as inductor

        inductor.freezing = True
        return self.torch.compile(model, dynamic=False)


class QuinticPython(Torch):
    """quintic's drop-in class: padding computed as transformers does, or skipped."""

    def load(self, options: argparse.Namespace, width: int) -> Any:
        from quintic import T5EncoderModel

        padding = "zero" if options.padding_zero else "compute"
        return T5EncoderModel.from_pretrained(options.model, dtype=self.dtype, padding=padding)


class Nai(Torch):
    """nai-t5-wrapper. Its flex attention asks for CUDA to build a mask, so it is off."""

    def load(self, options: argparse.Namespace, width: int) -> Any:
        from nai_t5_wrapper import NAIT5EncoderModel

        model = NAIT5EncoderModel.from_pretrained(
            str(options.model), dtype=self.dtype, device_map="cpu", max_seq_len=width, use_flex_attention=False
        )
        if options.compile:
            model.compile()
        return model

    def encode(self, index: int) -> Any:
        ids, mask = self.inputs[index]
        return self.model(ids, attention_mask=mask).last_hidden_state


class OpenVino(Peer):
    """The exported graph on the CPU plugin, for one request at a time."""

    def __init__(self, options: argparse.Namespace, calls: list[Feed]) -> None:
        import openvino

        # What is not in integers is computed in the faster of the other types.
        dtype = options.dtype
        if dtype in ("int8", "int4"):
            dtype = "bf16" if "amx_bf16" in Path("/proc/cpuinfo").read_text() else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": dtype,
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if options.whole_activations:
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        compiled = openvino.Core().compile_model(options.form / "model.xml", "CPU", settings)
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if hint != dtype:
            sys.exit(f"asked for {dtype}, OpenVINO computes in {hint} here")
        self.request = compiled.create_infer_request()
        self.calls = calls

    def encode(self, index: int) -> Any:
        call = self.calls[index]
        return self.request.infer({0: call.ids, 1: call.full_mask}, share_outputs=True)[0]


class OnnxRuntime(Peer):
    """The exported graph; the type is the graph's."""

    def __init__(self, options: argparse.Namespace, calls: list[Feed]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = THREADS, 1
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(
            str(options.form / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )
        names = [argument.name for argument in self.session.get_inputs()]
        self.inputs = [dict(zip(names, (call.ids, call.full_mask), strict=True)) for call in calls]

    def encode(self, index: int) -> Any:
        return self.session.run(None, self.inputs[index])[0]


class CTranslate2(Peer):
    """CTranslate2's encoder; it takes lists of ids and pads them itself."""

    def __init__(self, options: argparse.Namespace, calls: list[Feed]) -> None:
        import ctranslate2

        compute_type = {"f32": "float32"}.get(options.dtype, options.dtype)
        self.encoder = ctranslate2.Encoder(
            str(options.form), device="cpu", compute_type=compute_type, intra_threads=THREADS, inter_threads=1
        )
        self.rows = [
            [row[:length].tolist() for row, length in zip(call.ids, call.lengths, strict=True)] for call in calls
        ]

    def encode(self, index: int) -> Any:
        return self.encoder.forward_batch(self.rows[index]).last_hidden_state


PEERS: dict[str, Callable[[argparse.Namespace, list[Feed]], Peer]] = {
    "transformers": Transformers,
    "quintic-python": QuinticPython,
    "nai": Nai,
    "openvino": OpenVino,
    "onnxruntime": OnnxRuntime,
    "ctranslate2": CTranslate2,
}


def status_mb(key: str) -> float:
    """A line of ``/proc/self/status`` in MB of 2^20 bytes, 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:")), 0.0)


def say(**message: Any) -> None:
    """One message of the protocol."""
    print("@" + json.dumps(message), flush=True)


def timed(action: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def real_rows(peer: Peer, calls: list[Feed]) -> Iterator[np.ndarray]:
    """Every row's hidden states without padding."""
    for index, call in enumerate(calls):
        for row, length in zip(peer.to_numpy(peer.encode(index)), call.lengths, strict=True):
            yield row[:length]


def main() -> None:
    """Loads, warms up, and then does as it is told."""
    parser = argparse.ArgumentParser(description="Run one peer of the benchmark.")
    parser.add_argument("peer")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--form", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--ids-json", type=Path, required=True)
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--padding-zero", action="store_true")
    parser.add_argument("--whole-activations", action="store_true", help="OpenVINO: no rounding of them to 8 bits")
    parser.add_argument("--save-output", type=Path)
    parser.add_argument("--new-tokens", type=int, default=0)
    parser.add_argument("--num-beams", type=int, default=1)
    options = parser.parse_args()
    rows = json.loads(options.ids_json.read_text())
    serve(*(generator(options, rows) if options.new_tokens else encoder(options, rows)))


def encoder(options: argparse.Namespace, rows: list[list[int]]) -> tuple[float, Callable[[], Any], Callable[[], None]]:
    """Seconds of loading, what is timed, and what saves its result."""
    calls = feeds(rows, options.loop)
    start = time.perf_counter()
    peer = PEERS[options.peer](options, calls)
    load = time.perf_counter() - start

    def run() -> None:
        for index in range(len(calls)):
            peer.encode(index)

    def save() -> None:
        np.save(options.save_output, np.concatenate(list(real_rows(peer, calls))))

    return load, run, save if options.save_output else run


def generator(
    options: argparse.Namespace, rows: list[list[int]]
) -> tuple[float, Callable[[], Any], Callable[[], None]]:
    """The same for a peer that generates."""
    from generators import GENERATORS

    start = time.perf_counter()
    peer = GENERATORS[options.peer](options, rows, THREADS)
    load = time.perf_counter() - start

    def save() -> None:
        options.save_output.write_text(json.dumps(peer.tokens(peer.run())))

    return load, peer.run, save if options.save_output else peer.run


def serve(load: float, run: Callable[[], Any], save: Callable[[], None]) -> None:
    """Warms up, saves, and runs when told to."""
    first = timed(run)
    save()
    say(ready=True, load=load, first=first)
    for line in sys.stdin:
        word = line.strip()
        if word == "quit":
            break
        if word != "run":
            sys.exit(f"no command `{word}`: expected `run` or `quit`")
        say(ms=timed(run) * 1e3)
    say(rss_mb=status_mb("VmRSS"), peak_mb=status_mb("VmHWM"))
    sys.stdout.flush()
    # Some peers' threads do not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main()
