"""Models and CUDA devices: what can be shown without one, and the whole where there is one."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Pair
from test_forward import ids_of

from quintic import _arguments
from quintic.errors import QuinticError, UnsupportedError

HAS_CUDA = torch.cuda.is_available()


def test_a_device_that_is_not_there_leaves_the_model_as_it_was(gated: Pair) -> None:
    model = gated.our_class.from_pretrained(gated.folder)
    before = model(ids_of(2, 5)).last_hidden_state
    for move in (lambda: model.to("cuda:99"), lambda: model.cuda(99), lambda: model.to("cuda:99", torch.float16)):
        with pytest.raises(UnsupportedError, match="cuda:99"):
            move()
        assert model.device == torch.device("cpu") and model.dtype == torch.float32
        assert torch.equal(model(ids_of(2, 5)).last_hidden_state, before)
    assert model.cpu() is model and model.to("cpu:0") is model


def test_device_maps_name_one_device() -> None:
    def backend(device_map: Any, **arguments: Any) -> Any:
        arguments["device_map"] = device_map
        _arguments.take_device_map(arguments)
        return arguments.get("backend")

    assert backend(None) is None and backend("auto") is None and backend({"": "cpu"}) is None
    assert backend("cuda:1") == "cuda:1" and backend(1) == "cuda:1" and backend({"": torch.device("cuda", 2)}) == "cuda:2"
    assert backend({"encoder": "cuda:1", "shared": 1}) == "cuda:1"
    assert backend("cuda:1", backend="cuda:1") == "cuda:1"
    for wrong in (("mps",), ("disk",), ({"a": 0, "b": 1},), ({"a": "cpu", "b": "cuda:0"},)):
        with pytest.raises(UnsupportedError):
            backend(*wrong)
    with pytest.raises(UnsupportedError, match="but `backend` is `reference`"):
        backend("cuda:0", backend="reference")
    with pytest.raises(UnsupportedError, match="but `backend` is `cuda:1`"):
        backend("cpu", backend="cuda:1")


class OnDevice:
    """An engine on the CPU that says it is on a device, whose memory is the host's."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.device = "cuda:0"
        self.calls: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def forward_into(self, *, address: int, queue: int, **request: Any) -> None:
        self.calls.append({"address": address, "queue": queue})
        last, _, _ = self.engine.forward(**request, hidden_states=False, attentions=False)
        ctypes.memmove(address, last.ctypes.data, last.nbytes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_results_stay_where_the_model_is(gated: Pair, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    model = gated.our_class.from_pretrained(gated.folder, output_dtype=dtype)
    ids, mask = ids_of(2, 7), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    expected = model(ids, attention_mask=mask)
    engine = OnDevice(model._engine)
    empty, to = torch.empty, torch.Tensor.to
    moved: list[str] = []
    monkeypatch.setattr(model, "_engine", engine)
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: empty(*a, **k))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: moved.append(a[0]) or self if a == ("cuda:0",) else to(self, *a, **k))

    found = model(ids, attention_mask=mask)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    assert found.last_hidden_state.dtype == getattr(torch, dtype)
    assert engine.calls == [{"address": found.last_hidden_state.data_ptr(), "queue": 77}]
    # What is kept besides is moved there; NumPy's arrays are not.
    kept = model(ids, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(kept.last_hidden_state, expected.last_hidden_state) and len(moved) == len(kept.hidden_states)
    assert model.__reduce__()[1][3]["backend"] == "cuda:0" and repr(model).endswith(", cuda:0)")
    as_numpy = model(ids.numpy(), attention_mask=mask.numpy())
    assert isinstance(as_numpy.last_hidden_state, np.ndarray) and len(engine.calls) == 1


def test_on_a_device_as_on_the_cpu(gated: Pair) -> None:
    """The whole way, where there is a device; that there is none is an error with a reason."""
    model = gated.our_class.from_pretrained(gated.folder)
    ids, mask = ids_of(2, 7), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    expected = model(ids, attention_mask=mask).last_hidden_state
    if not HAS_CUDA:
        with pytest.raises(QuinticError, match="NVIDIA driver|CUDA|cuBLASLt"):
            model.to("cuda:0")
        return
    model.to("cuda:0")
    assert next(model.parameters()).device == torch.device("cuda", 0)
    for _ in range(3):
        found = model(ids.cuda(), attention_mask=mask.cuda()).last_hidden_state
        assert found.device == torch.device("cuda", 0)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        found = model(ids.cuda(), attention_mask=mask.cuda()).last_hidden_state * 2
    stream.synchronize()
    torch.testing.assert_close(found.cpu(), expected * 2, rtol=1e-5, atol=2e-5)
    assert model.cpu().device == torch.device("cpu")
