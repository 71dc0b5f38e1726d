"""Arguments of ``from_pretrained``: each is honoured or refused, none is ignored."""

from __future__ import annotations

import os
import sys
from typing import Any

from quintic import _arrays, _weights
from quintic.errors import InputError, UnsupportedError

ATTENTION = ("eager", "sdpa", "flex_attention")
PADDING = ("compute", "zero")

# What cannot be done here, and what to do instead.
REFUSED = {
    "adapter_kwargs": "there are no adapters",
    "from_flax": "convert the checkpoint to safetensors first",
    "from_tf": "convert the checkpoint to safetensors first",
    "gguf_file": "name the GGUF file itself as the model",
    "ignore_mismatched_sizes": "tensors must fit the config",
    "load_in_4bit": _weights.HINT,
    "load_in_8bit": _weights.HINT,
    "max_memory": "memory is not limited by device",
    "mirror": "set HF_ENDPOINT to another hub",
    "offload_folder": "weights are mapped from their files already",
    "offload_state_dict": "weights are mapped from their files already",
    "output_loading_info": "read `model.warnings`",
    "proxies": "set HTTPS_PROXY",
    "quantization_config": _weights.HINT,
    "state_dict": "load the tensors into a transformers model and use `from_hf`",
    "tp_plan": "there is no tensor parallelism",
}

# Arguments that change nothing here, with the values that ask for nothing else.
HARMLESS: dict[str, tuple[Any, ...]] = {
    # Memory is never more than the weights need.
    "low_cpu_mem_usage": (True, False),
    # Files are data here: nothing in them is run.
    "weights_only": (True, False),
    "trust_remote_code": (True, False),
    "resume_download": (True, False),
    "_fast_init": (True, False),
    "_from_auto": (True, False),
    "_from_pipeline": (),
    "_commit_hash": (),
}


def files(arguments: dict[str, Any]) -> dict[str, Any]:
    """Takes out what says which files to read."""
    cache_dir = arguments.pop("cache_dir", None)
    token = arguments.pop("token", None)
    old_token = arguments.pop("use_auth_token", None)
    token = old_token if token is None else token
    if token is False:
        raise UnsupportedError("`token` is False, but a token in the environment would be sent: remove it from there")
    return {
        "revision": arguments.pop("revision", None),
        "variant": arguments.pop("variant", None),
        # transformers and diffusers say "" for none.
        "subfolder": arguments.pop("subfolder", None) or None,
        "cache_dir": None if cache_dir is None else os.fspath(cache_dir),
        "token": token if isinstance(token, str) else None,
        "local_files_only": bool(arguments.pop("local_files_only", False)),
        "force_download": bool(arguments.pop("force_download", False)),
    }


def computing(arguments: dict[str, Any], default_dtype: str = "auto") -> dict[str, Any]:
    """Takes out what says how to compute."""
    backend = arguments.pop("backend", "cpu")
    return {
        "backend": backend,
        "dtype": _dtype(arguments, default_dtype),
        "matmul_precision": arguments.pop("matmul_precision", None),
        "threads": threads(arguments.pop("threads", None), backend),
        "fold_norm_gains": arguments.pop("fold_norm_gains", None),
        **_weights.chosen(arguments),
    }


def _dtype(arguments: dict[str, Any], default: str) -> str:
    old, new = arguments.pop("torch_dtype", None), arguments.pop("dtype", None)
    dtype = new if new is not None else old
    name = _arrays.dtype_name(default if dtype is None else dtype)
    return _arrays.DTYPES.get(name, name)


def threads(number: int | None, backend: str) -> int | None:
    """As many as asked for, else as PyTorch computes on, else as the backend chooses."""
    torch = sys.modules.get("torch")
    if number is None and torch is not None and backend == "cpu":
        return int(torch.get_num_threads())
    if number is not None and number < 1:
        raise InputError(f"`threads` is {number}, expected at least 1")
    return number


def place(device: Any, who: str = "the model") -> str:
    """``cpu`` or ``cuda:N``, for what PyTorch knows by several names; ``who`` is to be there."""
    name = f"cuda:{device}" if isinstance(device, int) else str(device)
    if name == "cuda":
        torch = sys.modules.get("torch")
        # PyTorch's current device, where there is one.
        current = torch.cuda.current_device() if torch is not None and torch.cuda.is_available() else 0
        return f"cuda:{current}"
    # PyTorch numbers the CPU, too, of which there is one.
    if name in ("cpu", "cpu:0"):
        return "cpu"
    if name.startswith("cuda:") and name[5:].isdecimal():
        return name
    raise UnsupportedError(f"{who} cannot be on device `{name}`, expected `cpu`, `cuda` or a device such as `cuda:1`")


def take_device_map(arguments: dict[str, Any]) -> None:
    """Takes ``device_map`` out and puts what it means for ``backend`` in: one device for all weights."""
    device_map = arguments.pop("device_map", None)
    places = list(device_map.values()) if isinstance(device_map, dict) else [device_map]
    # Left to the package: where `backend` says, which is the CPU.
    chosen = [where for where in places if where is not None and str(where) not in ("auto", "balanced", "sequential")]
    named = {place(where, "what `device_map` names") for where in chosen}
    if len(named) > 1:
        raise UnsupportedError(f"`device_map` names devices {', '.join(sorted(named))}: all weights are on one")
    for where in named:
        backend = arguments.get("backend")
        if where != "cpu" and backend not in (None, "cuda", where):
            raise UnsupportedError(f"`device_map` names device `{where}`, but `backend` is `{backend}`")
        if where == "cpu" and str(backend).startswith("cuda"):
            raise UnsupportedError(f"`device_map` names device `cpu`, but `backend` is `{backend}`")
        if where != "cpu":
            arguments["backend"] = where


def check_rest(arguments: dict[str, Any]) -> None:
    """Refuses whatever is left after everything known was taken out."""
    attention = arguments.pop("attn_implementation", None)
    if attention not in (None, *ATTENTION):
        raise UnsupportedError(
            f"`attn_implementation` is `{attention}`, expected one of {', '.join(ATTENTION)}: all give the same "
            "numbers here, by one fused kernel"
        )
    for name, value in list(arguments.items()):
        harmless = HARMLESS.get(name)
        if value is None or (harmless is not None and (not harmless or value in harmless)):
            del arguments[name]
        elif name in REFUSED and value is not False:
            raise UnsupportedError(f"`{name}` cannot be used: {REFUSED[name]}")
        elif name in REFUSED:
            del arguments[name]
    if arguments:
        names = ", ".join(f"`{name}`" for name in arguments)
        raise TypeError(f"from_pretrained() got unexpected keyword arguments: {names}")


def check_format(use_safetensors: Any, found: str | None) -> None:
    """Refuses files of the other format than asked for."""
    if use_safetensors is None or found is None:
        return
    if bool(use_safetensors) != (found == "safetensors"):
        raise UnsupportedError(
            f"`use_safetensors` is {use_safetensors}, but the weights found are in {found}: "
            "leave it out, or name a `variant` or `revision` that has the other format"
        )
