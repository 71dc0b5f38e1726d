"""Many threads, Ctrl-C, and bugs that must not end the interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import Pair, make_hf
from test_forward import ids_of, key_masks

import quintic


def test_eight_threads_share_a_model(pair: Pair) -> None:
    batches = [(ids_of(rows, length, seed=rows * length), key_masks(rows, length)["right"])
               for rows, length in ((1, 1), (2, 33), (5, 64), (3, 17), (1, 200), (4, 7), (2, 96), (6, 30))]
    expected = [pair.ours(ids, mask)[0] for ids, mask in batches]
    start = threading.Barrier(8)

    def work(worker: int) -> bool:
        start.wait()
        same = True
        for turn in range(20):
            which = (worker + turn) % len(batches)
            ids, mask = batches[which]
            same &= torch.equal(pair.ours(ids, mask)[0], expected[which])
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_gil_is_free_during_a_pass(gated: Pair) -> None:
    """Another thread gets on while a pass runs: it counts, far beyond what the gaps between two
    passes would allow."""
    ids = ids_of(16, 512)
    counted = 0
    done = threading.Event()

    def count() -> None:
        nonlocal counted
        while not done.is_set():
            counted += 1

    counter = threading.Thread(target=count)
    counter.start()
    gated.ours(ids)
    done.set()
    counter.join()
    assert counted > 1000


def test_a_class_is_one_object_for_all_threads() -> None:
    code = """
import threading, quintic
start, found = threading.Barrier(8), []
def get():
    start.wait()
    found.append(quintic.T5EncoderModel)
threads = [threading.Thread(target=get) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(set(map(id, found))) == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Who runs in the background has inherited that Ctrl-C is ignored.
INTERRUPTED = """
import signal, sys, threading, time, numpy as np, quintic
signal.signal(signal.SIGINT, signal.default_int_handler)
from quintic import _texts
model = _texts.load(sys.argv[1], "float32")
rows = [[5] * 500] * 100_000
print("ready", flush=True)
start = time.monotonic()
try:
    from quintic import _quintic
    if sys.argv[2] == "rows":
        _quintic.encode_rows(model._engine, rows, batch_tokens=4096, pool="mean", normalize=False, progress=None)
    else:
        ids = np.full((200, 500), 5, np.int64)
        model._engine.forward(ids=ids, embeddings=None, mask=None, pad_rows="zero", head_gains=None,
                              hidden_states=False, attentions=False, output="f32")
except KeyboardInterrupt:
    print("interrupted", flush=True)
    small = _quintic.encode_rows(
        model._engine, [[5, 6]], batch_tokens=64, pool="mean", normalize=False, progress=None)
    print("usable", len(small[0][0]), flush=True)
"""


@pytest.mark.parametrize("what", ["rows", "pass"])
def test_ctrl_c_ends_a_long_batch(tmp_path: Path, what: str) -> None:
    # Layers enough for a pass of many seconds.
    make_hf("t5-gated", num_layers=100).save_pretrained(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path), what], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
        assert output == "interrupted\nusable 64\n"
    finally:
        # Else one that goes on computes for hours.
        process.kill()


def test_an_exception_of_a_progress_callback_comes_back(gated: Pair) -> None:
    from quintic import _quintic

    def fail(done: int) -> None:
        raise ZeroDivisionError(f"after {done}")

    with pytest.raises(ZeroDivisionError, match="after"):
        _quintic.encode_rows(
            gated.ours._engine, [[3, 4]] * 9, batch_tokens=2, pool="mean", normalize=False, progress=fail
        )


def test_a_panic_is_an_exception_with_its_message(gated: Pair) -> None:
    """Reached by an impossible call of the private half: a head mask of another model's shape is
    refused, so only a broken caller can panic; this checks the net below."""
    from quintic import _quintic

    assert issubclass(quintic.errors.InternalError, Exception)
    with pytest.raises(quintic.errors.InternalError, match="internal error: asked to panic"):
        _quintic.panic_for_tests()
