"""Makes the public classes: with transformers installed they are subclasses of transformers'
classes, as pipelines check; else of ``torch.nn.Module``; else of nothing.

What a base class brings and this engine does not do is refused by name: a method that would
look for layers in vain must not do something else in silence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from quintic import _outputs
from quintic._installed import Absent, hf_class, torch_module
from quintic._loading import load
from quintic._models import EncoderModel
from quintic._quintic import Encoder
from quintic.errors import UnsupportedError

# Methods of the base classes that do the right thing for a module without submodules.
KEPT = frozenset(
    {
        "add_model_tags",
        "apply",
        "buffers",
        "can_generate",
        "children",
        "extra_repr",
        "get_extended_attention_mask",
        "get_extra_state",
        "get_submodule",
        "gradient_checkpointing_disable",
        "invert_attention_mask",
        "is_backend_compatible",
        "is_custom_code",
        "is_remote_code",
        "modules",
        "named_buffers",
        "named_children",
        "named_modules",
        "register_backward_hook",
        "register_buffer",
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_parameter",
        "register_state_dict_post_hook",
        "register_state_dict_pre_hook",
        "smart_apply",
        "warn_if_padding_and_no_attention_mask",
    }
)


class _NAIMethods(EncoderModel):
    """Output and defaults of nai-t5-wrapper."""

    _default_dtype = "bfloat16"
    _default_padding = "zero"
    _default_max_seq_len = 512

    @property
    def model_type(self) -> str | None:
        """``t5``, ``mt5`` or ``umt5``."""
        found = self._engine.config["model_type"]
        return None if found is None else str(found)

    def _output_class(self) -> Any:
        return _outputs.NAIT5EncoderOutput


_EXAMPLE = """

    >>> import quintic
    >>> quintic.{name}.from_pretrained("no/such/folder")
    Traceback (most recent call last):
    quintic.errors.ModelNotFoundError: no/such/folder: there is no such file or folder
"""

SPECIFICATIONS: dict[str, tuple[type[EncoderModel], str, tuple[str, ...], str]] = {
    # mT5 is T5 in all but its config: programs load either with either class.
    "T5EncoderModel": (EncoderModel, "T5EncoderModel", ("t5", "mt5"), "Drop-in for transformers' T5EncoderModel."),
    "MT5EncoderModel": (EncoderModel, "MT5EncoderModel", ("t5", "mt5"), "Drop-in for transformers' MT5EncoderModel."),
    "UMT5EncoderModel": (EncoderModel, "UMT5EncoderModel", ("umt5",), "Drop-in for transformers' UMT5EncoderModel."),
    "NAIT5EncoderModel": (
        _NAIMethods,
        "T5EncoderModel",
        ("t5", "mt5", "umt5"),
        "Drop-in for nai-t5-wrapper's NAIT5EncoderModel: any family, bfloat16, at most 512 tokens, padding skipped.",
    ),
}


def build(name: str) -> type[EncoderModel]:
    """The public class of this name."""
    methods, hf_name, families, summary = SPECIFICATIONS[name]
    bases: list[type] = [methods]
    namespace: dict[str, Any] = {
        "__module__": "quintic",
        "__qualname__": name,
        "__doc__": f"{summary}\n\nSee `from_pretrained` and `forward`.{_EXAMPLE.format(name=name)}",
        "_families": families,
        "_hf_name": hf_name,
        # What a base class says of its layers does not hold for this one.
        "supports_gradient_checkpointing": False,
        "_can_compile_fullgraph": False,
        "_keep_in_fp32_modules": frozenset(),
        "_keep_in_fp32_modules_strict": frozenset(),
    }
    base = hf_class(hf_name) or torch_module()
    if base is Absent:
        namespace["__call__"] = methods.forward
    else:
        bases.append(base)
        namespace.update(_refusals(name, methods, base))
    if base.__name__ == name:
        namespace["_saved_as"] = base.__module__
    return type(name, tuple(bases), namespace)


def _refusals(name: str, methods: type, base: type) -> dict[str, Any]:
    own = set(dir(methods)) - set(dir(object))
    names = {inherited for inherited in dir(base) if not inherited.startswith("_")} - own - KEPT
    found = {inherited: getattr(base, inherited, None) for inherited in names}
    # Classes are callable, too: that of the config is nothing to refuse.
    refused = {inherited for inherited, value in found.items() if callable(value) and not isinstance(value, type)}
    return {inherited: _refusal(name, inherited) for inherited in sorted(refused)}


def _refusal(name: str, method: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            f"`{name}.{method}` has no meaning for a model that runs outside PyTorch and never changes"
        )

    refuse.__name__ = method
    refuse.__doc__ = "Refused: the model has no layers in PyTorch and does not change."
    return refuse


class AutoT5Encoder:
    """Loads any model of the family with the class of its kind.

    >>> from quintic import AutoT5Encoder
    >>> AutoT5Encoder.from_pretrained("no/such/folder")
    Traceback (most recent call last):
    quintic.errors.ModelNotFoundError: no/such/folder: there is no such file or folder
    """

    def __init__(self) -> None:
        raise TypeError("AutoT5Encoder is no model: call AutoT5Encoder.from_pretrained")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **arguments: Any) -> Any:
        """As :meth:`quintic.T5EncoderModel.from_pretrained`; the class follows the config."""
        import quintic

        def class_for(engine: Encoder) -> Any:
            return getattr(quintic, class_of(engine.config["model_type"]))

        return load(EncoderModel, os.fspath(pretrained_model_name_or_path), arguments, class_for)

    @classmethod
    def from_hf(cls, model: Any, **arguments: Any) -> Any:
        """As :meth:`quintic.T5EncoderModel.from_hf`; the class follows the config."""
        import quintic

        return getattr(quintic, class_of(model.config.model_type)).from_hf(model, **arguments)


def class_of(family: str | None) -> str:
    """Name of the class of a ``model_type``."""
    return {"mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}.get(family or "t5", "T5EncoderModel")
