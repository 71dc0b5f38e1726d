"""The manners of a ``torch.nn.Module``: where a model is, what it computes in, what it is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from quintic import _arguments, _arrays, _names, _parameters, _weights
from quintic._installed import Absent, empty_tensor, torch_module
from quintic._quintic import Encoder
from quintic.errors import InputError, UnsupportedError


class ModuleMethods(_weights.WeightProperties[Encoder]):
    """What users of modules ask a model for, and how modules that hold one move it."""

    config: Any
    _remake: Callable[[dict[str, Any]], Encoder]
    _stand_in: Any
    _padding: str

    # Where it is and what it computes in.

    @property
    def _on_cuda(self) -> bool:
        return self._engine.device != "cpu"

    @property
    def _dtype_name(self) -> str:
        return _arrays.LONG_NAMES[self._engine.dtype]

    @property
    def dtype(self) -> Any:
        """The type that weights are kept in: PyTorch's if it is installed, else NumPy's name."""
        return self._dtype_name if torch_module() is Absent else _arrays.torch_dtype(self._dtype_name)

    @property
    def device(self) -> Any:
        """The CPU, or the CUDA device that the weights are on."""
        if torch_module() is Absent:
            return self._engine.device
        import torch

        return torch.device(self._engine.device)

    @property
    def padding(self) -> str:
        """``compute`` or ``zero``: what stands at padding positions of the result."""
        return self._padding

    @padding.setter
    def padding(self, padding: str) -> None:
        if padding not in _arguments.PADDING:
            raise InputError(f"`padding` is {padding!r}, expected {' or '.join(map(repr, _arguments.PADDING))}")
        self._padding = padding

    @property
    def threads(self) -> int:
        """Threads that the engine computes on."""
        return self._engine.threads

    @property
    def isa(self) -> str | None:
        """The instruction set of the kernels."""
        return self._engine.isa

    @property
    def warnings(self) -> list[str]:
        """What is odd about the model's files."""
        return self._engine.warnings

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Changes the type that is computed in and the device, in place; weights are prepared
        again from where they came, so that nothing of them is lost on the way to a wider type.

        Devices are the CPU and those of CUDA. If the move fails, the model is what it was.
        """
        device, dtype = parse_to(args, kwargs)
        return self._recompute(self._dtype_name if dtype is None else dtype, device)

    def _recompute(self, dtype: Any, device: str | None = None) -> Any:
        name = _arrays.dtype_name(dtype)
        old = self._engine
        place = old.device if device is None else _arguments.place(device)
        if name != self._dtype_name or place != old.device:
            stays = place == old.device
            backend = place if place != "cpu" else old.backend if stays else "cpu"
            self._engine = self._remake(
                {
                    "backend": backend,
                    "dtype": _arrays.DTYPES.get(name, name),
                    "matmul_precision": None,
                    "threads": old.threads if stays and backend == "cpu" else _arguments.threads(None, backend),
                    "fold_norm_gains": old.fold_norm_gains or None,
                    **_weights.asked_for(old),
                }
            )
            if isinstance(self, torch_module()):
                self._stand_in.data = self._stand_in.data.to(device=self.device, dtype=self.dtype)
        return self

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        """How a module that holds this one moves and casts it."""
        moved = fn(empty_tensor(self._dtype_name, self._engine.device))
        return self.to(moved.device, moved.dtype)

    def cpu(self) -> Any:
        """As ``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Any:
        """As ``to("cuda")``, or to the device of that number."""
        return self.to("cuda" if device is None else f"cuda:{device}" if isinstance(device, int) else device)

    def float(self) -> Any:
        """As ``to(torch.float32)``."""
        return self._recompute("float32")

    def half(self) -> Any:
        """As ``to(torch.float16)``."""
        return self._recompute("float16")

    def bfloat16(self) -> Any:
        """As ``to(torch.bfloat16)``."""
        return self._recompute("bfloat16")

    def double(self) -> Any:
        """Refused: there is no float64."""
        return self._recompute("float64")

    def type(self, dst_type: Any) -> Any:
        """As ``to(dst_type)``."""
        return self._recompute(dst_type)

    def eval(self) -> Any:
        """The model, which knows nothing else: there is no dropout."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Refuses training; ``train(False)`` is :meth:`eval`."""
        if mode:
            raise UnsupportedError("there are no gradients and no dropout here: train with transformers")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Refuses gradients; ``requires_grad_(False)`` is how things are."""
        if requires_grad:
            raise UnsupportedError("there are no gradients here: train with transformers")
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: there are no gradients."""

    def set_attn_implementation(self, attn_implementation: str) -> None:
        """Notes the name in the config: all of transformers' implementations give the same numbers,
        and here one fused kernel computes them.
        """
        if attn_implementation not in _arguments.ATTENTION:
            raise InputError(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported, expected one of '
                f"{', '.join(_arguments.ATTENTION)}"
            )
        self.config._attn_implementation = attn_implementation

    def compile(self, *args: Any, **kwargs: Any) -> Any:
        """The model: its kernels were compiled before it was installed."""
        return self

    # What it is made of.

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Weights under Hugging Face's names, in :attr:`dtype`: copies, read from where they
        came."""
        from collections import OrderedDict

        state = OrderedDict() if destination is None else destination
        for name, tensor in _parameters.tensors(self._engine, self._dtype_name):
            state[prefix + name] = tensor
            if name == _names.EMBEDDING:
                state[prefix + _names.TIED_EMBEDDING] = tensor
        return state

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        """Names and parameters: copies without gradients, made one at a time."""
        from torch.nn import Parameter

        dot = "." if prefix else ""
        for name, tensor in _parameters.tensors(self._engine, self._dtype_name):
            parameter = Parameter(tensor, requires_grad=False)
            yield prefix + dot + name, parameter
            if name == _names.EMBEDDING and not remove_duplicate:
                yield prefix + dot + _names.TIED_EMBEDDING, parameter

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Parameters: copies without gradients, made one at a time."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of weights; none can be trained."""
        if only_trainable:
            return 0
        engine = self._engine
        return _names.count(engine.config, engine.is_gated, self._has_bias_per_layer, not exclude_embeddings)

    @property
    def _has_bias_per_layer(self) -> bool:
        return _parameters.bias_per_layer(self._engine) or self._engine.config["model_type"] == "umt5"

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the weights in :attr:`dtype`, and those of products in integers if they are kept so."""
        value_bytes = 4 if self._dtype_name == "float32" else 2
        shapes = _names.shapes(self._engine.config, self._engine.is_gated, self._has_bias_per_layer)
        return sum(_weights.stored_bytes(self._engine, name, shape, value_bytes) for name, shape in shapes)

    def get_input_embeddings(self) -> Any:
        """A frozen ``torch.nn.Embedding`` with a copy of the table."""
        from torch.nn import Embedding

        return Embedding.from_pretrained(_parameters.embedding(self._engine, self._dtype_name))

    def get_output_embeddings(self) -> None:
        """None: an encoder has none."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the embedding is one."""

    @property
    def shared(self) -> Any:
        """As :meth:`get_input_embeddings`."""
        return self.get_input_embeddings()

    def save_pretrained(
        self,
        save_directory: Any,
        *,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **arguments: Any,
    ) -> None:
        """Writes ``config.json`` and ``model.safetensors`` in :attr:`dtype`, to be read by
        transformers or by this package. Each file appears when it is complete.
        """
        from quintic import _saving

        # One file is what every reader takes, and its size has no limit: no shards are made.
        _saving.save(self, os.fspath(save_directory), variant, arguments)


def parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """Device and type of ``Module.to``'s many forms."""
    if torch_module() is not Absent:
        import torch

        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return (None if device is None else str(device)), dtype
    places = [*args, kwargs.get("device")]
    devices = [place for place in places if isinstance(place, str) and place.split(":")[0] in ("cpu", "cuda", "mps")]
    dtypes = [place for place in [*args, kwargs.get("dtype")] if place is not None and place not in devices]
    return (devices[0] if devices else None), (dtypes[0] if dtypes else None)
