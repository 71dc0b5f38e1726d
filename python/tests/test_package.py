"""What is said about the package is true: docstrings, types, and names."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

import quintic

MODULES = ["errors", "_arguments", "_arrays", "_classes", "_copies", "_installed", "_loading", "_masks", "_models", "_module", "_names", "_outputs", "_texts", "_weights"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"quintic.{name}")
    results = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert results.failed == 0


def test_examples_of_public_classes() -> None:
    """Classes are made when they are asked for, so that doctest does not find them by itself."""
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    for name in quintic.__all__:
        for test in finder.find(getattr(quintic, name), name, module=False, globs={"quintic": quintic}):
            if test.examples:
                runner.run(test)
    assert runner.summarize().attempted > 0
    assert runner.failures == 0


def test_every_public_name_is_there_and_documented() -> None:
    for name in quintic.__all__:
        value = getattr(quintic, name)
        assert value.__doc__, name
    assert set(quintic.__all__) <= set(dir(quintic))
    with pytest.raises(AttributeError, match="no attribute 'T5Model'"):
        quintic.T5Model  # noqa: B018


def test_types() -> None:
    """mypy, strictly, over the sources and the stubs of the native half."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(REPOSITORY / "pyproject.toml")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_stubs_are_what_the_native_half_has(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy.stubtest", "quintic._quintic", "--ignore-missing-stub"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_is_typed() -> None:
    assert (Path(quintic.__file__).parent / "py.typed").is_file()
