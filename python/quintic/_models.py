"""Hugging Face's encoder classes, computed by the engine."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from quintic import _arguments, _arrays, _masks, _names, _outputs, _parameters, _weights
from quintic._quintic import Encoder
from quintic._texts import TextMethods
from quintic.errors import ConfigError, InputError, UnsupportedError

# Fields of a config that decide what is computed.
SHAPE_FIELDS = (
    "vocab_size",
    "d_model",
    "d_kv",
    "d_ff",
    "num_layers",
    "num_heads",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
    "feed_forward_proj",
)


NO_CACHE = ("use_cache", False)


class EncoderModel(TextMethods):
    """What all encoder classes share; see :class:`quintic.T5EncoderModel`.

    Immutable weights, no gradients. A call computes on the engine's own threads without the
    GIL; calls from several threads take turns.
    """

    main_input_name: ClassVar[str] = "input_ids"
    # Families whose checkpoints the class takes.
    _families: ClassVar[tuple[str, ...]] = ("t5", "mt5", "umt5")
    _hf_name: ClassVar[str] = "T5EncoderModel"
    _default_dtype: ClassVar[str] = "auto"
    _default_padding: ClassVar[str] = "compute"
    _default_max_seq_len: ClassVar[int | None] = None
    # Module of the transformers class that is its namesake.
    _saved_as: ClassVar[str | None] = None

    def __init__(self, config: Any = None, *unexpected: Any, **more: Any) -> None:
        """A model of random weights, as transformers initialises them.

        For weights that mean something: :meth:`from_pretrained` or :meth:`from_hf`.
        """
        hf_class = _hf_class(self._hf_name)
        if unexpected or more or config is None or hf_class is None:
            raise UnsupportedError(
                f"{type(self).__name__} is made by `from_pretrained` or `from_hf`; from a config alone only where "
                "transformers is installed"
            )
        made = type(self).from_hf(hf_class(config))
        self._set(made._engine, made._remake, config)

    def _set(self, engine: Encoder, remake: Callable[[dict[str, Any]], Encoder], config: Any) -> None:
        """Sets every field. ``remake`` loads the same weights to be computed in another way."""
        if isinstance(self, _torch_module()):
            import torch

            torch.nn.Module.__init__(self)
            # Whoever holds the model in a module of its own asks that module's parameters for device
            # and type. This one stands for all, and has no values.
            self._stand_in = torch.nn.Parameter(
                _nothing(_arrays.LONG_NAMES[engine.dtype], engine.device), requires_grad=False
            )
        if self._saved_as is not None:
            # Pipelines write down this module and the class's name; what they save can then be
            # loaded by whoever has transformers alone.
            self.__dict__["__module__"] = self._saved_as
        self._engine = engine
        self._remake = remake
        self._source: tuple[str, dict[str, Any]] | None = None
        self.config = config
        self.name_or_path: str = engine.path
        self.training = False
        self.padding = self._default_padding
        self.max_seq_len = self._default_max_seq_len
        self._output_dtype: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *unexpected: Any, **arguments: Any) -> Any:
        """Loads the encoder of a folder, a weight file or a repository id.

        Weights go straight from the memory-mapped files into the layout that the machine's
        kernels read: no PyTorch model is made on the way.

        Arguments as in transformers: ``dtype`` (or ``torch_dtype``; ``float32``, ``bfloat16``,
        ``float16``, default ``"auto"``: that of the files), ``device_map``, ``subfolder``,
        ``variant``, ``revision``, ``cache_dir``, ``local_files_only``, ``force_download``,
        ``token``, ``use_safetensors``, ``attn_implementation``, ``config``,
        ``output_hidden_states``, ``output_attentions``, ``return_dict``. As in nai-t5-wrapper:
        ``max_seq_len`` (longer inputs are refused) and ``use_flex_attention`` (attention is
        fused either way). Besides:

        padding : ``"compute"`` gives padding positions the values of Hugging Face, ``"zero"``
            skips them and returns zeros there, which costs nothing.
        output_dtype : type of the results, if not ``dtype``: ``float32`` keeps what the
            residual stream has beyond bfloat16.
        weights : ``"int8"``, ``"int4"`` or ``"w8a8"`` keeps the weights of products as integers of
            8 or 4 bits, or has 8 bits flow into products, too: less memory and less precise.
        keep : products whose weights ``weights`` leaves as they are, such as ``("wo", "qkv")``:
            ``qkv``, ``o``, ``wi``, ``wo``, ``head``.
        threads, matmul_precision, fold_norm_gains, backend : see ``quintic encode --help``.

        An argument that cannot be honoured raises :class:`quintic.errors.UnsupportedError`.
        """
        if unexpected:
            raise TypeError("from_pretrained() takes one positional argument")
        if pretrained_model_name_or_path is None:
            raise UnsupportedError(
                "`pretrained_model_name_or_path` is None, expected a path or a repository id\n\n"
                "hint: for tensors in memory, load them into a transformers model and use `from_hf`"
            )
        return load(cls, os.fspath(pretrained_model_name_or_path), arguments, lambda _: cls)

    @classmethod
    def from_hf(cls, model: Any, **arguments: Any) -> Any:
        """The encoder of a ``transformers`` model in memory: an encoder model, or the encoder
        of an encoder-decoder model.

        The embedding and the norms are shared with it, and with ``backend="reference"`` all
        weights are; products are packed. The model must not change while this one lives.

        ``dtype`` (default: the model's), ``padding``, ``output_dtype``, ``threads``,
        ``matmul_precision``, ``fold_norm_gains``, ``weights``, ``keep``, ``backend``,
        ``max_seq_len`` as in :meth:`from_pretrained`.
        """
        choices = _choices(cls, arguments)
        own_dtype = _arrays.dtype_name(model.dtype)
        computing = _arguments.computing(arguments, own_dtype)
        _arguments.check_rest(arguments)
        config = copy.deepcopy(model.config)
        text = json.dumps({**config.to_dict(), "model_type": config.model_type})
        tensors = _borrow(model)

        def make(how: dict[str, Any]) -> Encoder:
            return Encoder.from_tensors(text, tensors, how)

        engine = make(computing)
        cls._check_family(engine)
        made = cls.__new__(cls)
        made._set(engine, make, config)
        made._choose(choices)
        return made

    @classmethod
    def _check_family(cls, engine: Encoder) -> None:
        found = engine.config["model_type"]
        if found is not None and found not in cls._families:
            raise ConfigError(
                f"{engine.path}: the model is of type `{found}`, expected {' or '.join(cls._families)} "
                f"for {cls.__name__}\n\nhint: use AutoT5Encoder"
            )

    def _choose(self, choices: dict[str, Any]) -> None:
        for name, value in choices.items():
            setattr(self, name, value)

    # What is computed.

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """Hidden states ``[rows, len, d_model]``, as transformers' encoder models give them.

        ``input_ids`` ``[rows, len]`` (or ``inputs_embeds`` ``[rows, len, d_model]``) may be
        PyTorch tensors, NumPy arrays or lists; what comes back is PyTorch's if any of the
        inputs is, and NumPy's else. ``attention_mask``: :mod:`quintic._masks`. ``head_mask``
        ``[heads]`` or ``[layers, heads]`` multiplies attention weights, as in transformers 4. A
        list of indices as ``output_hidden_states`` keeps those, and has ``None`` where the
        others would stand.
        """
        # An encoder has no cache to use.
        unknown = {name: value for name, value in unknown.items() if value is not None and (name, value) != NO_CACHE}
        if unknown:
            raise TypeError(f"forward() got unexpected keyword arguments: {', '.join(unknown)}")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        as_torch = any(map(_arrays.is_torch, (input_ids, inputs_embeds, attention_mask)))
        if inputs_embeds is not None:
            _refuse_gradients(inputs_embeds)
        if self._on_cuda:
            input_ids, inputs_embeds, attention_mask, head_mask = map(
                _arrays.fetched, (input_ids, inputs_embeds, attention_mask, head_mask)
            )
        config = self._engine.config
        embeddings = None
        if inputs_embeds is not None:
            shape = (None, None, config["d_model"])
            meaning = f"[rows, len, {config['d_model']}]"
            embeddings = _arrays.floats(inputs_embeds, "inputs_embeds", shape, meaning)
            ids = np.zeros((embeddings.shape[0], embeddings.shape[1]), np.int64)
        else:
            ids = _arrays.integers(input_ids, "input_ids")
        rows, length = ids.shape[0], ids.shape[1]
        if self.max_seq_len is not None and length > self.max_seq_len:
            raise InputError(f"the input has {length} tokens, expected at most `max_seq_len` = {self.max_seq_len}")
        wants_states = self._kept("output_hidden_states", output_hidden_states, config["num_layers"] + 1)
        wants_attentions = self._switch("output_attentions", output_attentions)
        dtype = self._result_dtype(as_torch)
        request = {
            "ids": ids,
            "embeddings": embeddings,
            "mask": _masks.flags(attention_mask, rows, length),
            "pad_rows": self.padding,
            "head_gains": _head_gains(head_mask, config["num_layers"], config["num_heads"]),
            "output": _arrays.DTYPES[dtype],
        }

        def states(values: Any) -> Any:
            return self._placed(_arrays.from_flat(values, (rows, length, config["d_model"]), dtype, as_torch))

        def weights(values: Any) -> Any:
            return self._placed(_arrays.from_flat(values, (rows, config["num_heads"], length, length), dtype, as_torch))

        inner: list[Any] = []
        attentions: list[Any] = []
        if self._on_cuda and as_torch and wants_states is None and not wants_attentions:
            last = self._forward_there(request, (rows, length, config["d_model"]), dtype)
        else:
            last, inner, attentions = self._engine.forward(
                **request, hidden_states=wants_states is not None, attentions=wants_attentions
            )
            last = states(last)
        output = self._output_class()(
            last_hidden_state=last,
            hidden_states=_only(wants_states, (*map(states, inner), last)),
            attentions=tuple(map(weights, attentions)) if wants_attentions else None,
        )
        is_dict = self._switch("return_dict", return_dict, default=True)
        return output if is_dict else output.to_tuple()

    def _forward_there(self, request: dict[str, Any], shape: tuple[int, ...], dtype: str) -> Any:
        """The last states in a tensor on the model's device, in the order of PyTorch's current stream."""
        import torch

        result = torch.empty(shape, dtype=_arrays.torch_dtype(dtype), device=self._engine.device)
        queue = torch.cuda.current_stream(result.device).cuda_stream
        self._engine.forward_into(**request, address=result.data_ptr(), queue=queue)
        return result

    def _placed(self, result: Any) -> Any:
        """A result from host memory, on the model's device if PyTorch's tensors are."""
        return result.to(self._engine.device) if self._on_cuda and _arrays.is_torch(result) else result

    @property
    def _on_cuda(self) -> bool:
        return self._engine.device != "cpu"

    def _switch(self, name: str, argument: bool | None, default: bool = False) -> bool:
        if argument is not None:
            return bool(argument)
        set_to = getattr(self.config, name, None)
        return default if set_to is None else bool(set_to)

    def _kept(self, name: str, argument: bool | list[int] | None, number: int) -> set[int] | None:
        """Which of ``number`` results to return; ``None`` for no tuple at all."""
        wanted = getattr(self.config, name, None) if argument is None else argument
        if wanted is None or isinstance(wanted, bool):
            return set(range(number)) if wanted else None
        if isinstance(wanted, int):
            # As in transformers 5: one of them, but 0 is false.
            wanted = [wanted] if wanted else []
        if not isinstance(wanted, list | tuple):
            raise InputError(f"`{name}` is {wanted!r}, expected True, False or indices")
        if not wanted:
            return None
        for index in wanted:
            if not isinstance(index, int) or not -number <= index < number:
                raise InputError(f"`{name}` holds {index!r}, expected indices from {-number} to {number - 1}")
        return {index % number for index in wanted}

    def _output_class(self) -> Any:
        return _outputs.output_class()

    def _result_dtype(self, as_torch: bool) -> str:
        dtype = self._output_dtype or self._dtype_name
        # NumPy has no bfloat16.
        return "float32" if dtype == "bfloat16" and not as_torch else dtype

    # Where it is and what it computes in.

    @property
    def _dtype_name(self) -> str:
        return _arrays.LONG_NAMES[self._engine.dtype]

    @property
    def dtype(self) -> Any:
        """The type that weights are kept in: PyTorch's if it is installed, else NumPy's name."""
        return self._dtype_name if _torch_module() is _Absent else _arrays.torch_dtype(self._dtype_name)

    @property
    def device(self) -> Any:
        """The CPU, or the CUDA device that the weights are on."""
        if _torch_module() is _Absent:
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
    def weights(self) -> str | None:
        """``int8``, ``int4`` or ``w8a8`` where weights of products are integers, else None."""
        return _weights.type_of(self._engine)

    @property
    def keep(self) -> tuple[str, ...]:
        """Products whose weights :attr:`weights` leaves as they are."""
        return tuple(self._engine.keep)

    @property
    def warnings(self) -> list[str]:
        """What is odd about the model's files."""
        return self._engine.warnings

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Changes the type that is computed in and the device, in place; weights are prepared
        again from where they came, so that nothing of them is lost on the way to a wider type.

        Devices are the CPU and those of CUDA. If the move fails, the model is what it was.
        """
        device, dtype = _parse_to(args, kwargs)
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
            if isinstance(self, _torch_module()):
                self._stand_in.data = self._stand_in.data.to(device=self.device, dtype=self.dtype)
        return self

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Any:
        """How a module that holds this one moves and casts it."""
        moved = fn(_nothing(self._dtype_name, self._engine.device))
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

    # Copies.

    def __copy__(self) -> Any:
        made = type(self).__new__(type(self))
        made._set(self._engine, self._remake, self.config)
        made._source = self._source
        made.name_or_path = self.name_or_path
        made._choose(self._choices())
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = copy.copy(self)
        # Weights never change, so copies share them.
        made.config = copy.deepcopy(self.config, memo)
        memo[id(self)] = made
        return made

    def __reduce__(self) -> Any:
        """Pickles a model of files by its path, one of tensors with its tensors."""
        engine = self._engine
        how = {
            "backend": engine.device if self._on_cuda else engine.backend,
            "dtype": self._dtype_name,
            "matmul_precision": engine.matmul_precision,
            "fold_norm_gains": engine.fold_norm_gains or None,
            **_weights.asked_for(engine),
        }
        source: tuple[str, Any, dict[str, Any]]
        if self._source is not None:
            name, files = self._source
            source = ("path", os.path.abspath(name) if os.path.exists(name) else name, files)
        else:
            source = ("tensors", dict(self.state_dict()), {})
        return _unpickle, (type(self).__name__, source, self.config, how, self._choices())

    def _choices(self) -> dict[str, Any]:
        return {
            "padding": self.padding,
            "max_seq_len": self.max_seq_len,
            "_output_dtype": self._output_dtype,
        }

    def __repr__(self) -> str:
        config = self._engine.config
        where = self._engine.device if self._on_cuda else f"{self.isa or self._engine.backend}, {self.threads} threads"
        return (
            f"{type(self).__name__}({self.name_or_path!r}, {config['num_layers']} layers of {config['d_model']}, "
            f"{self._dtype_name}{_weights.described(self._engine)}, {where})"
        )


def load(
    defaults: type[EncoderModel], name: str, arguments: dict[str, Any], class_for: Callable[[Encoder], type[EncoderModel]]
) -> Any:
    """:meth:`EncoderModel.from_pretrained`, for a class that the loaded engine decides."""
    _arguments.take_device_map(arguments)
    given_config = arguments.pop("config", None)
    use_safetensors = arguments.pop("use_safetensors", None)
    attention = arguments.get("attn_implementation")
    switches = {
        switch: arguments.pop(switch)
        for switch in ("output_hidden_states", "output_attentions", "return_dict")
        if switch in arguments
    }
    choices = _choices(defaults, arguments)
    files = _arguments.files(arguments)
    computing = _arguments.computing(arguments, defaults._default_dtype)
    _arguments.check_rest(arguments)

    engine = Encoder.load(name, files, computing)
    _arguments.check_format(use_safetensors, engine.weights_format)
    cls = class_for(engine)
    cls._check_family(engine)
    model = cls.__new__(cls)
    model._set(engine, lambda other: Encoder.load(name, files, other), _config_of(cls, engine, given_config))
    # Without the token, which is nobody's business who reads a pickle.
    model._source = (name, {**files, "token": None})
    model.name_or_path = name
    if hasattr(model.config, "name_or_path"):
        model.config.name_or_path = name
    if attention is not None:
        model.config._attn_implementation = attention
    for switch, value in switches.items():
        setattr(model.config, switch, value)
    model._choose(choices)
    return model


def _nothing(dtype: str, device: str) -> Any:
    """An empty tensor on that device, whatever PyTorch's default device is."""
    import torch

    return torch.empty(0, dtype=_arrays.torch_dtype(dtype), device=device)


class _Absent:
    """Stands for ``torch.nn.Module`` where PyTorch is not installed: nothing is one."""


def _torch_module() -> Any:
    try:
        from torch.nn import Module
    except ImportError:
        return _Absent
    return Module


def _only(kept: set[int] | None, results: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if kept is None:
        return None
    return tuple(result if index in kept else None for index, result in enumerate(results))


def _hf_class(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        return None
    return getattr(transformers, name, None)


def _choices(cls: type[EncoderModel], arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes out what is a matter of calling, not of loading."""
    flex = arguments.pop("use_flex_attention", None)
    if flex not in (None, True, False):
        raise InputError(f"`use_flex_attention` is {flex!r}, expected True, False or None")
    output = arguments.pop("output_dtype", None)
    max_seq_len = arguments.pop("max_seq_len", cls._default_max_seq_len)
    if max_seq_len is not None and max_seq_len < 1:
        raise InputError(f"`max_seq_len` is {max_seq_len}, expected at least 1")
    return {
        "padding": arguments.pop("padding", cls._default_padding),
        "max_seq_len": max_seq_len,
        "_output_dtype": None if output is None else _arrays.dtype_name(output),
    }


class Config:
    """The fields of ``config.json`` as attributes, where transformers is not installed.

    >>> Config({"d_model": 8}).d_model
    8
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields."""
        return dict(self.__dict__)

    def __repr__(self) -> str:
        return f"Config({self.__dict__})"


def _config_of(cls: type[EncoderModel], engine: Encoder, given: Any) -> Any:
    """A config of transformers' own class for the files, or the caller's if it says the same."""
    fields = dict(engine.config)
    if engine.config_path is not None:
        with open(engine.config_path, encoding="utf-8") as file:
            fields = json.load(file)
    if given is not None:
        for name in SHAPE_FIELDS:
            found = getattr(given, name, None)
            if name in engine.config and name in fields and found != fields[name]:
                raise ConfigError(
                    f"field `{name}` of the `config` given is {found}, expected {fields[name]}, as {engine.path} has it"
                )
        return given
    family = fields.get("model_type") or engine.config["model_type"] or cls._families[0]
    hf_class = _hf_class({"t5": "T5Config", "mt5": "MT5Config", "umt5": "UMT5Config"}.get(family, "T5Config"))
    if hf_class is None:
        return Config(fields)
    config = hf_class.from_dict({name: value for name, value in fields.items() if name != "model_type"})
    if family != "umt5":
        # As transformers' own encoder classes leave the config that they are given.
        config.use_cache = False
        config.is_encoder_decoder = False
    config.name_or_path = engine.path
    return config


def _borrow(model: Any) -> list[dict[str, Any]]:
    """The tensors of a model's encoder: names, types, shapes, addresses, and who owns them."""
    import torch

    short = {getattr(torch, long): name for long, name in _arrays.DTYPES.items()}
    borrowed = []
    for name, tensor in model.state_dict().items():
        if not name.startswith("encoder.") and name != _names.EMBEDDING:
            continue
        if tensor.device.type == "meta":
            raise InputError(f"tensor `{name}` is on device `meta`: it has no values")
        tensor = tensor.detach().to("cpu").contiguous()
        borrowed.append(
            {
                "name": name,
                "dtype": short.get(tensor.dtype, str(tensor.dtype)),
                "shape": list(tensor.shape),
                "address": tensor.data_ptr(),
                "owner": tensor,
            }
        )
    if not borrowed:
        raise InputError(f"{type(model).__name__} has no encoder of the T5 family")
    return borrowed


def _head_gains(head_mask: Any, layers: int, heads: int) -> Any:
    if head_mask is None:
        return None
    array = _arrays.to_numpy(head_mask, "head_mask")
    # As transformers 4 spells it out for its own layers.
    if array.ndim == 5 and array.shape[1] == array.shape[3] == array.shape[4] == 1:
        array = array.reshape(array.shape[0], array.shape[2])
    if array.shape not in ((heads,), (layers, heads)):
        raise InputError(f"`head_mask` has shape {list(array.shape)}, expected [{heads}] or [{layers}, {heads}]")
    return np.ascontiguousarray(np.broadcast_to(array, (layers, heads)), dtype=np.float32)


def _refuse_gradients(embeddings: Any) -> None:
    if _arrays.is_torch(embeddings) and embeddings.requires_grad:
        import torch

        if torch.is_grad_enabled():
            raise UnsupportedError(
                "`inputs_embeds` requires gradients, which do not flow through this model\n\n"
                "hint: call it under `torch.no_grad()`, or detach them"
            )


def _parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str | None, Any]:
    """Device and type of ``Module.to``'s many forms."""
    if _torch_module() is not _Absent:
        import torch

        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return (None if device is None else str(device)), dtype
    places = [*args, kwargs.get("device")]
    devices = [place for place in places if isinstance(place, str) and place.split(":")[0] in ("cpu", "cuda", "mps")]
    dtypes = [place for place in [*args, kwargs.get("dtype")] if place is not None and place not in devices]
    return (devices[0] if devices else None), (dtypes[0] if dtypes else None)


def _unpickle(
    name: str, source: tuple[str, Any, dict[str, Any]], config: Any, how: dict[str, Any], choices: dict[str, Any]
) -> Any:
    import quintic

    cls = getattr(quintic, name)
    kind, value, files = source
    choices = dict(choices)
    choices["output_dtype"] = choices.pop("_output_dtype")
    if kind == "path":
        model = cls.from_pretrained(value, **files, **how, **choices)
        model.config = config
        return model

    class Holder:
        dtype = how["dtype"]

        def state_dict(self) -> Any:
            return value

    holder = Holder()
    holder.config = config  # type: ignore[attr-defined]
    return cls.from_hf(holder, **how, **choices)
