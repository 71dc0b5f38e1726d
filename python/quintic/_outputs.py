"""What a forward pass returns: Hugging Face's own class where it is installed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any


class EncoderOutput(OrderedDict):  # type: ignore[type-arg]
    """``BaseModelOutput`` for machines without transformers.

    Fields that are ``None`` are left out of indexing, iteration and the tuple.

    >>> from quintic import EncoderOutput
    >>> output = EncoderOutput(last_hidden_state=7, hidden_states=None)
    >>> output.last_hidden_state, output[0], output["last_hidden_state"], output.to_tuple(), list(output)
    (7, 7, 7, (7,), ['last_hidden_state'])
    >>> output.hidden_states is None
    True
    """

    def __init__(self, last_hidden_state: Any = None, hidden_states: Any = None, attentions: Any = None) -> None:
        self.last_hidden_state = last_hidden_state
        self.hidden_states = hidden_states
        self.attentions = attentions
        super().__init__((name, value) for name, value in vars(self).items() if value is not None)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there."""
        return tuple(self.values())

    def __reduce__(self) -> Any:
        return type(self), (self.last_hidden_state, self.hidden_states, self.attentions)


class NAIT5EncoderOutput:
    """Output of :class:`quintic.NAIT5EncoderModel`: iterating gives values, as in nai-t5-wrapper.

    >>> from quintic import NAIT5EncoderOutput
    >>> states, *_ = NAIT5EncoderOutput(7)
    >>> states
    7
    """

    def __init__(self, last_hidden_state: Any = None, hidden_states: Any = None, attentions: Any = None) -> None:
        self.last_hidden_state = last_hidden_state
        self.hidden_states = hidden_states
        self.attentions = attentions

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there."""
        fields = (self.last_hidden_state, self.hidden_states, self.attentions)
        return tuple(field for field in fields if field is not None)

    def __getitem__(self, key: Any) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())


def output_class() -> Any:
    """The class that programs expect."""
    try:
        from transformers.modeling_outputs import BaseModelOutput
    except ImportError:
        return EncoderOutput
    return BaseModelOutput
