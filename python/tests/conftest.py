"""Random models of every family, saved by transformers, and their twins in quintic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[2]
VOCAB = 103

# Odd on purpose: heads wider than the model, sizes that are no multiple of a vector.
SHAPES: dict[str, dict[str, Any]] = {
    "t5-relu": {"d_model": 33, "d_kv": 8, "d_ff": 50, "num_layers": 3, "num_heads": 5, "feed_forward_proj": "relu"},
    "t5-gated": {
        "d_model": 64,
        "d_kv": 64,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 2,
        "feed_forward_proj": "gated-gelu",
    },
    "mt5": {"d_model": 40, "d_kv": 16, "d_ff": 72, "num_layers": 2, "num_heads": 3},
    "umt5": {"d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 3},
}


def hf_classes(kind: str) -> tuple[Any, Any]:
    """transformers' config and model class of a kind."""
    import transformers

    family = {"mt5": "MT5", "umt5": "UMT5"}.get(kind, "T5")
    return getattr(transformers, f"{family}Config"), getattr(transformers, f"{family}EncoderModel")


def make_hf(kind: str, seed: int = 0, **fields: Any) -> Any:
    """A random model of transformers, with eager attention: the one that defines every result."""
    import torch

    config_class, model_class = hf_classes(kind)
    torch.manual_seed(seed)
    config = config_class(**{"vocab_size": VOCAB, **SHAPES[kind], **fields})
    config._attn_implementation = "eager"
    return model_class(config).eval()


class Pair:
    """A model of transformers, its folder, and ours loaded from there."""

    def __init__(self, kind: str, folder: Path) -> None:
        import quintic

        self.kind = kind
        self.folder = folder
        self.theirs = make_hf(kind)
        self.theirs.save_pretrained(folder)
        self.class_name = type(self.theirs).__name__
        self.our_class = getattr(quintic, self.class_name)
        self.ours = self.our_class.from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="session", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Every kind."""
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One kind, where kinds do not matter."""
    return Pair("t5-gated", tmp_path_factory.mktemp("one"))
