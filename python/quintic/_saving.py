"""Writing a model for others to read."""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from quintic import _names
from quintic.errors import InputError, UnsupportedError

# Arguments of transformers' save_pretrained that ask for what happens anyway.
HARMLESS = {"safe_serialization": (True, None), "push_to_hub": (False, None), "save_peft_format": (True, False, None)}


def save(model: Any, folder: str, variant: str | None, arguments: dict[str, Any]) -> None:
    """Writes config and weights into ``folder``, which is made if need be."""
    for name, value in arguments.items():
        if value not in HARMLESS.get(name, (None,)):
            raise UnsupportedError(f"`{name}` = {value!r} cannot be used in save_pretrained")
    if os.path.isfile(folder):
        raise InputError(f"{folder}: expected a folder, found a file")
    from safetensors.torch import save_file

    tensors = model.state_dict()
    # Written once: readers tie it.
    tensors.pop(_names.TIED_EMBEDDING)
    os.makedirs(folder, exist_ok=True)
    weights = "model.safetensors" if variant is None else f"model.{variant}.safetensors"
    _write(folder, weights, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _write(folder, "config.json", lambda path: _write_config(model, path))


def _write_config(model: Any, path: str) -> None:
    fields = dict(model.config.to_dict())
    fields.setdefault("model_type", getattr(model.config, "model_type", None))
    fields["architectures"] = [model._hf_name]
    fields.pop("torch_dtype", None)
    fields["dtype"] = model._dtype_name
    with open(path, "w", encoding="utf-8") as file:
        json.dump(fields, file, indent=2, sort_keys=True, default=str)
        file.write("\n")


def _write(folder: str, name: str, write: Any) -> None:
    """Under another name first: what is there is replaced by something complete or not at all."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    os.close(handle)
    try:
        write(path)
        os.chmod(path, 0o666 & ~_umask())
        os.replace(path, os.path.join(folder, name))
    except BaseException:
        os.unlink(path)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
