"""A module for ``sentence_transformers.SentenceTransformer``."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from quintic import _arrays, _quintic
from quintic._classes import AutoT5Encoder
from quintic._texts import BATCH_TOKENS
from quintic.errors import InputError, UnsupportedError

try:
    from sentence_transformers.sentence_transformer.modules import InputModule as _Base
except ImportError:
    try:
        from torch.nn import Module as _Base
    except ImportError as error:
        raise ImportError("SentenceTransformerModule needs the packages sentence-transformers and torch") from error

# What this module adds to a saved folder.
SETTINGS = "quintic_module.json"

# Files beside the weights that say how texts become tokens and tokens one vector.
COPIED = (
    "added_tokens.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
)


class SentenceTransformerModule(_Base):  # type: ignore[misc]
    """Texts to vectors as the only module of a ``SentenceTransformer``::

        model = SentenceTransformer(modules=[quintic.SentenceTransformerModule("sentence-t5-base")])

    ``pool`` is ``"sentence"`` (the folder's own modules; the default where it has any),
    ``"mean"``, ``"first"`` or ``"last"``; ``normalize`` scales vectors to length 1, beyond what
    the folder's own modules do. Other arguments are those of
    :meth:`quintic.T5EncoderModel.from_pretrained`.

    Padding that ``sentence_transformers`` puts between rows is taken out again before anything
    is computed.
    """

    # A saved model keeps a folder of its own: sentence_transformers writes its own modules.json
    # into the root, over that of the folder's modules.
    save_in_root = False
    forward_kwargs: set[str] = set()
    config_keys: list[str] = ["pool", "normalize", "max_seq_length"]

    def __init__(
        self,
        model_name_or_path: str,
        pool: str | None = None,
        normalize: bool = False,
        max_seq_length: int | None = None,
        tokenizer: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.model = AutoT5Encoder.from_pretrained(model_name_or_path, **arguments)
        folder = self.model._engine.path
        has_modules = os.path.isfile(os.path.join(folder, "modules.json"))
        self.pool = pool or ("sentence" if has_modules else "mean")
        if self.pool == "none":
            raise InputError("`pool` is `none`, expected one that makes vectors")
        self.normalize = normalize
        self._tokenizer_path = tokenizer
        self.max_seq_length = self._own_length() if max_seq_length is None else max_seq_length
        self._width = _quintic.embedding_width(self.model._engine, self.pool)

    @property
    def tokenizer(self) -> _quintic.Tokenizer:
        """The engine's tokenizer."""
        found: _quintic.Tokenizer = self.model._tokenizer(self._tokenizer_path)
        return found

    def _own_length(self) -> int | None:
        """Longest text in tokens that the modules' files name, else those of the tokenizer."""
        named = _quintic.sentence_max_length(self.model._engine)
        return self.tokenizer.model_max_length if named is None else named

    def get_embedding_dimension(self) -> int:
        """Width of a vector."""
        return self._width

    def preprocess(self, inputs: list[str], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Ids and mask ``[rows, len]`` of texts, ``prompt`` put before each."""
        import torch

        for row, text in enumerate(inputs):
            if not isinstance(text, str):
                raise InputError(f"text {row} is of type {type(text).__name__}, expected str")
        if not inputs:
            return {}
        rows = self.tokenizer.encode([(prompt or "") + text for text in inputs], self.max_seq_length)
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.tokenizer.pad_id or 0, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for row, row_ids in enumerate(rows):
            ids[row, : len(row_ids)] = torch.tensor(row_ids)
            mask[row, : len(row_ids)] = 1
        return {"input_ids": ids, "attention_mask": mask, "modality": "text"}

    def tokenize(self, texts: list[str], **kwargs: Any) -> dict[str, Any]:
        """The older name of :meth:`preprocess`."""
        return self.preprocess(texts, **kwargs)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds ``sentence_embedding`` ``[rows, width]`` in float32 to ``features``."""
        import torch

        ids = _arrays.integers(features["input_ids"], "input_ids")
        mask = _arrays.integers(features["attention_mask"], "attention_mask").astype(bool)
        rows = [row_ids[row_mask].tolist() for row_ids, row_mask in zip(ids, mask, strict=True)]
        arrays, width = _quintic.encode_rows(
            self.model._engine,
            rows,
            batch_tokens=BATCH_TOKENS,
            pool=self.pool,
            normalize=self.normalize,
            progress=None,
        )
        features["sentence_embedding"] = torch.from_numpy(arrays[0].reshape(-1, width))
        return features

    def get_config_dict(self) -> dict[str, Any]:
        """What :meth:`load` needs beside the files."""
        return {"pool": self.pool, "normalize": self.normalize, "max_seq_length": self.max_seq_length}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Writes weights, tokenizer and the folder's own modules into ``output_path``."""
        if not safe_serialization:
            raise UnsupportedError("`safe_serialization` is False, but weights are written to safetensors alone")
        if self._tokenizer_path is not None:
            raise UnsupportedError("a tokenizer from elsewhere is not saved with the model: put it into its folder")
        if self.model._engine.tokenizer_folder is None:
            raise UnsupportedError(
                f"{self.model._engine.path}: the tokenizer is inside the weight file, and no files are made of it"
            )
        source = self.model._engine.path
        source = source if os.path.isdir(source) else os.path.dirname(source)
        os.makedirs(output_path, exist_ok=True)
        for name in COPIED:
            if os.path.isfile(os.path.join(source, name)):
                shutil.copyfile(os.path.join(source, name), os.path.join(output_path, name))
        for folder in _module_folders(source):
            shutil.copytree(os.path.join(source, folder), os.path.join(output_path, folder), dirs_exist_ok=True)
        self.model.save_pretrained(output_path)
        with open(os.path.join(output_path, SETTINGS), "w", encoding="utf-8") as file:
            json.dump(self.get_config_dict(), file, indent=2)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> SentenceTransformerModule:
        """Reads what :meth:`save` wrote."""
        folder = os.path.join(model_name_or_path, subfolder)
        settings: dict[str, Any] = {}
        if os.path.isfile(os.path.join(folder, SETTINGS)):
            with open(os.path.join(folder, SETTINGS), encoding="utf-8") as file:
                settings = json.load(file)
        return cls(folder, **settings, **(kwargs.get("model_kwargs") or {}))

    def __repr__(self) -> str:
        return f"SentenceTransformerModule({self.model!r}, pool={self.pool!r}, normalize={self.normalize})"


def _module_folders(folder: str) -> list[str]:
    """Folders that a modules.json names, the encoder's own root left out."""
    path = os.path.join(folder, "modules.json")
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        modules = json.load(file)
    folders = [module["path"] for module in modules if module.get("path")]
    for name in folders:
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise InputError(f"{path}: module folder `{name}` is outside the model's folder")
    return folders
