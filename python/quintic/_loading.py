"""From a call of ``from_pretrained`` or ``from_hf`` to an engine and the config beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quintic import _arguments, _arrays, _names
from quintic._installed import hf_class
from quintic._quintic import Encoder
from quintic.errors import ConfigError, InputError

if TYPE_CHECKING:
    from quintic._models import EncoderModel

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
    choices = choices_of(defaults, arguments)
    files = _arguments.files(arguments)
    computing = _arguments.computing(arguments, defaults._default_dtype)
    _arguments.check_rest(arguments)

    engine = Encoder.load(name, files, computing)
    _arguments.check_format(use_safetensors, engine.weights_format)
    cls = class_for(engine)
    cls._check_family(engine)
    model = cls.__new__(cls)
    model._set(engine, lambda other: Encoder.load(name, files, other), config_of(cls, engine, given_config))
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


def choices_of(cls: type[EncoderModel], arguments: dict[str, Any]) -> dict[str, Any]:
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


def config_of(cls: type[EncoderModel], engine: Encoder, given: Any) -> Any:
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
    theirs = hf_class({"t5": "T5Config", "mt5": "MT5Config", "umt5": "UMT5Config"}.get(family, "T5Config"))
    if theirs is None:
        return Config(fields)
    config = theirs.from_dict({name: value for name, value in fields.items() if name != "model_type"})
    if family != "umt5":
        # As transformers' own encoder classes leave the config that they are given.
        config.use_cache = False
        config.is_encoder_decoder = False
    config.name_or_path = engine.path
    return config


def borrow(model: Any) -> list[dict[str, Any]]:
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
