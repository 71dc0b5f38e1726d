"""Options, fixtures and the summary of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from oracle.cases import MODELS, REPOSITORY, Model
from oracle.compare import Row, family_table, write_summary
from oracle.engines import Engine, Quintic, StandIn
from oracle.make_models import write_model
from oracle.run_reference import Reference

SUMMARY = REPOSITORY / ".cache" / "parity" / "summary.md"
ROWS: list[Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--self-check``."""
    parser.addoption(
        "--self-check",
        action="store_true",
        help="put a NumPy stand-in in the place of the quintic binary, to test the harness",
    )


def pytest_configure(config: pytest.Config) -> None:
    """One thread, so that transformers' own float32 results do not depend on the machine's load."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def self_check(request: pytest.FixtureRequest) -> bool:
    """Whether the stand-in is used."""
    return bool(request.config.getoption("--self-check"))


@pytest.fixture(scope="session")
def engine(self_check: bool, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """What is tested."""
    return StandIn() if self_check else Quintic(tmp_path_factory.mktemp("quintic"))


@pytest.fixture(scope="session")
def quintic(self_check: bool, tmp_path_factory: pytest.TempPathFactory) -> Quintic:
    """The binary, for tests that make no sense with the stand-in."""
    if self_check:
        # Only where the harness checks itself, by `--self-check`: there is no binary to test.
        pytest.skip("needs the binary")
    return Quintic(tmp_path_factory.mktemp("quintic"))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Model], Path]:
    """Writes a model's folder the first time it is asked for."""
    root = tmp_path_factory.mktemp("models")

    def write_once(model: Model) -> Path:
        folder = root / model.name
        return folder if folder.exists() else write_model(model, folder)

    return write_once


@pytest.fixture(scope="session")
def reference_of(folder_of: Callable[[Model], Path]) -> Callable[[str], Reference]:
    """Loads a model's reference; the cases come model by model, so one is kept."""
    by_name = {model.name: model for model in MODELS}

    @lru_cache(maxsize=1)
    def load(name: str) -> Reference:
        return Reference(folder_of(by_name[name]), by_name[name].oracle)

    return load


@pytest.fixture(scope="session")
def summary(engine: Engine) -> Iterator[list[Row]]:
    """Collects a row for every run and writes the tables at the end."""
    yield ROWS
    if ROWS:
        write_summary(ROWS, engine.name, SUMMARY)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the worst ratio of each family."""
    if ROWS:
        terminalreporter.write_sep("=", f"parity, every run in {SUMMARY.relative_to(REPOSITORY)}")
        terminalreporter.write_line(family_table(ROWS))
