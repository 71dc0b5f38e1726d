"""Hugging Face's encoder classes, computed by the engine."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from quintic import _arguments, _arrays, _masks, _outputs, _weights
from quintic._copies import CopyMethods
from quintic._installed import empty_tensor, hf_class, torch_module
from quintic._loading import borrow, choices_of, load
from quintic._quintic import Encoder
from quintic._texts import TextMethods
from quintic.errors import ConfigError, InputError, UnsupportedError

NO_CACHE = ("use_cache", False)


class EncoderModel(TextMethods, CopyMethods):
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
        theirs = hf_class(self._hf_name)
        if unexpected or more or config is None or theirs is None:
            raise UnsupportedError(
                f"{type(self).__name__} is made by `from_pretrained` or `from_hf`; from a config alone only where "
                "transformers is installed"
            )
        made = type(self).from_hf(theirs(config))
        self._set(made._engine, made._remake, config)

    def _set(self, engine: Encoder, remake: Callable[[dict[str, Any]], Encoder], config: Any) -> None:
        """Sets every field. ``remake`` loads the same weights to be computed in another way."""
        if isinstance(self, torch_module()):
            import torch

            torch.nn.Module.__init__(self)
            # Whoever holds the model in a module of its own asks that module's parameters for device
            # and type. This one stands for all, and has no values.
            self._stand_in = torch.nn.Parameter(
                empty_tensor(_arrays.LONG_NAMES[engine.dtype], engine.device), requires_grad=False
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
        plan : a file of ``quintic calibrate`` for this model, which says ``weights``, ``keep`` and ``dtype``.
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
        choices = choices_of(cls, arguments)
        own_dtype = _arrays.dtype_name(model.dtype)
        computing = _arguments.computing(arguments, own_dtype)
        _arguments.check_rest(arguments)
        config = copy.deepcopy(model.config)
        text = json.dumps({**config.to_dict(), "model_type": config.model_type})
        tensors = borrow(model)

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

    def __repr__(self) -> str:
        config = self._engine.config
        where = self._engine.device if self._on_cuda else f"{self.isa or self._engine.backend}, {self.threads} threads"
        return (
            f"{type(self).__name__}({self.name_or_path!r}, {config['num_layers']} layers of {config['d_model']}, "
            f"{self._dtype_name}{_weights.described(self._engine)}, {where})"
        )


def _only(kept: set[int] | None, results: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if kept is None:
        return None
    return tuple(result if index in kept else None for index, result in enumerate(results))


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
