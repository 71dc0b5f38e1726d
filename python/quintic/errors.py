"""What can go wrong, one class a kind. Messages are those of the command line: where, what was
found, what was expected, and sometimes a hint.

Each class is also the built-in exception that programs written for Hugging Face catch.

>>> from quintic.errors import InputError, ModelNotFoundError
>>> issubclass(ModelNotFoundError, OSError) and issubclass(InputError, ValueError)
True
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "DownloadError",
    "FileError",
    "InputError",
    "InternalError",
    "ModelNotFoundError",
    "QuinticError",
    "TokenizerError",
    "UnsupportedError",
]


class QuinticError(Exception):
    """Any error of the engine."""


class FileError(QuinticError, OSError):
    """A file could not be opened, read or written."""


class ModelNotFoundError(QuinticError, OSError):
    """A model, file or cached repository is not where it was looked for."""


class ConfigError(QuinticError, ValueError):
    """``config.json`` is damaged, incomplete or contradicts itself or the request."""


class CheckpointError(QuinticError, ValueError):
    """A weight file is damaged, or its tensors do not fit the config."""


class TokenizerError(QuinticError, ValueError):
    """A tokenizer file is damaged or does not fit its model."""


class InputError(QuinticError, ValueError):
    """Texts, token ids, masks or options given by the caller are not usable."""


class UnsupportedError(QuinticError, NotImplementedError):
    """A well-formed request for something that this build does not do."""


class DownloadError(QuinticError, OSError):
    """A download from a model hub failed."""


class DeviceError(QuinticError, RuntimeError):
    """A device failed, or its memory gave out."""


class InternalError(QuinticError, RuntimeError):
    """A bug in the engine, caught before it could take the interpreter down."""
