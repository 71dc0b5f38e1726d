"""Copies of a model, and pickles."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

from quintic import _weights
from quintic._module import ModuleMethods


class CopyMethods(ModuleMethods):
    """Weights never change, so copies share them; pickles hold paths where there are files."""

    name_or_path: str
    max_seq_len: int | None
    _source: tuple[str, dict[str, Any]] | None
    _output_dtype: str | None
    _set: Callable[..., None]
    _choose: Callable[[dict[str, Any]], None]

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
