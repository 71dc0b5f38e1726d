"""The native half: see crates/quintic-python. Private."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str
__all__ = [
    "Encoder",
    "Seq2Seq",
    "Tokenizer",
    "__version__",
    "embedding_width",
    "encode_rows",
    "panic_for_tests",
    "prepare",
    "preset_names",
    "resolve",
    "run_command",
    "sentence_max_length",
]

@final
class Seq2Seq:
    @staticmethod
    def load(model: str, files: dict[str, Any], computing: dict[str, Any]) -> Seq2Seq: ...
    def decode(
        self,
        *,
        given: dict[str, Any],
        rows: list[list[int]],
        targets: list[list[int | None]] | None,
        logits: bool,
        hidden_states: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], list[NDArray[np.float32]], NDArray[np.float32]]: ...
    def generate(
        self,
        *,
        given: dict[str, Any],
        prefixes: list[list[int]] | None,
        options: str,
        max_rows: int,
        listener: Callable[[int], None] | None,
        stop: Callable[[list[int]], bool] | None,
    ) -> list[list[tuple[list[int], float, list[float], str]]]: ...
    def encode(self, rows: list[list[int]]) -> NDArray[np.float32]: ...
    def generation_facts(self, options: str) -> tuple[int | None, int, bool, int, int]: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def folder(self) -> str | None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def family(self) -> str | None: ...
    @property
    def path(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def keep(self) -> list[str]: ...

@final
class Encoder:
    @staticmethod
    def load(model: str, files: dict[str, Any], computing: dict[str, Any]) -> Encoder: ...
    @staticmethod
    def from_tensors(config_json: str, tensors: list[dict[str, Any]], computing: dict[str, Any]) -> Encoder: ...
    def forward(
        self,
        *,
        ids: NDArray[np.int64],
        embeddings: NDArray[np.float32] | None,
        mask: NDArray[np.bool_] | None,
        pad_rows: str,
        head_gains: NDArray[np.float32] | None,
        hidden_states: bool,
        attentions: bool,
        output: str,
    ) -> tuple[NDArray[Any], list[NDArray[Any]], list[NDArray[Any]]]: ...
    def forward_into(
        self,
        *,
        ids: NDArray[np.int64],
        embeddings: NDArray[np.float32] | None,
        mask: NDArray[np.bool_] | None,
        pad_rows: str,
        head_gains: NDArray[np.float32] | None,
        output: str,
        address: int,
        queue: int,
    ) -> None: ...
    @property
    def device(self) -> str: ...
    def tensor(self, name: str) -> tuple[str, list[int], NDArray[np.uint8]]: ...
    def has_tensor(self, name: str) -> bool: ...
    @property
    def is_packed(self) -> bool: ...
    @property
    def weights_format(self) -> str | None: ...
    @property
    def config_path(self) -> str | None: ...
    @property
    def tokenizer_folder(self) -> str | None: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def is_gated(self) -> bool: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def path(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def isa(self) -> str | None: ...
    @property
    def threads(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def matmul_precision(self) -> str: ...
    @property
    def fold_norm_gains(self) -> bool: ...
    @property
    def weights(self) -> str: ...
    @property
    def keep(self) -> list[str]: ...

@final
class Tokenizer:
    @staticmethod
    def open(path: str, kind: str) -> Tokenizer: ...
    @staticmethod
    def inside(encoder: Encoder) -> Tokenizer | None: ...
    def encode(self, texts: list[str], max_length: int | None) -> list[list[int]]: ...
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str: ...
    @property
    def model_max_length(self) -> int | None: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def description(self) -> str: ...

def encode_rows(
    encoder: Encoder,
    rows: list[list[int]],
    *,
    batch_tokens: int,
    pool: str,
    normalize: bool,
    progress: Callable[[int], object] | None,
) -> tuple[list[NDArray[np.float32]], int]: ...
def embedding_width(encoder: Encoder, pool: str) -> int: ...
def sentence_max_length(encoder: Encoder) -> int | None: ...
def prepare(
    encoder: Encoder, preset: str, prompts: list[str], max_length: int | None, tokenizer: str | None
) -> tuple[
    NDArray[np.int64],
    tuple[int, int],
    NDArray[np.bool_] | None,
    str,
    list[int],
    int,
    NDArray[np.bool_] | None,
]: ...
def preset_names() -> list[str]: ...
def resolve(model: str, options: dict[str, Any]) -> str: ...
def run_command(args: list[str]) -> int: ...
def panic_for_tests() -> None: ...
