"""What of PyTorch and transformers is installed."""

from __future__ import annotations

from typing import Any

from quintic import _arrays


class Absent:
    """Stands for ``torch.nn.Module`` where PyTorch is not installed: nothing is one."""


def torch_module() -> Any:
    """``torch.nn.Module``, or what stands for it."""
    try:
        from torch.nn import Module
    except ImportError:
        return Absent
    return Module


def hf_class(name: str) -> Any:
    """The class of transformers of this name; None if there is none."""
    try:
        import transformers
    except ImportError:
        return None
    return getattr(transformers, name, None)


def empty_tensor(dtype: str, device: str) -> Any:
    """An empty tensor on that device, whatever PyTorch's default device is."""
    import torch

    return torch.empty(0, dtype=_arrays.torch_dtype(dtype), device=device)
