"""``quintic verify`` and ``verify_transformers.py`` side by side, on the real FLAN-T5-small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import verify_transformers as tool
from safetensors.numpy import load_file, save_file

from oracle.cases import REPOSITORY
from oracle.engines import Quintic

TEXTS = "A photo of a red apple.\n\nEin gelbes Fahrrad lehnt an einer Mauer.\n" * 3
FLAN = REPOSITORY / ".cache" / "models" / "flan-t5-small"


def _quintic(quintic: Quintic, *arguments: object) -> str:
    command = [str(quintic.binary), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _check_same(ours: Any, theirs: Any, place: str = "") -> None:
    """Equal but for the rounding of sums taken in another order."""
    if isinstance(theirs, dict):
        for key in theirs:
            _check_same(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-10), place
    else:
        assert ours == theirs, place


@pytest.fixture(scope="module")
def states(quintic: Quintic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States of the reference, with what verify says of bf16 beside them."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "texts.txt").write_text(TEXTS)
    usual = ["--model", FLAN, "--input", folder / "texts.txt", "--quiet"]
    kept = ["--save-states", folder / "states.safetensors", "--compute", "bf16", "--json", "--new-tokens", "0"]
    (folder / "verify.json").write_text(_quintic(quintic, "verify", *usual, *kept))
    _quintic(quintic, "encode", *usual, "--dtype", "bf16", "-o", folder / "bf16.safetensors")
    return folder / "states.safetensors"


def test_both_measure_alike(states: Path) -> None:
    """The tool finds of quintic's own bf16 states what quintic finds."""
    ours = json.loads((states.parent / "verify.json").read_text())
    exact, ids, starts = tool.read_states(states)
    found = load_file(states.parent / "bf16.safetensors")["last_hidden_state"].astype(np.float64)
    result = tool.measure("bf16", exact, found, ids, starts)
    _check_same(ours["results"][0], result)
    assert ours["reference_rms"] == pytest.approx(np.sqrt(np.square(exact).mean()), rel=1e-12)


def test_transformers_joins_table_and_plot(quintic: Quintic, states: Path) -> None:
    """And its float32 is as near as float32 is: a wrong row or order would be far off."""
    out, plot = states.parent / "theirs.json", states.parent / "plot.svg"
    command = [sys.executable, tool.__file__, str(states), str(FLAN), "--compute", "f32,bf16", "-o", str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "transformers bf16" in printed and "least cosine" in printed
    usual = ["--model", FLAN, "--input", states.parent / "texts.txt", "--quiet", "--compute", "bf16"]
    merged = json.loads(_quintic(quintic, "verify", *usual, "--others", out, "--plot", plot, "--json"))
    ours, f32, bf16 = merged["results"]
    assert [each["name"] for each in merged["results"]] == ["bf16", "transformers f32", "transformers bf16"]
    # Measured: 5e-7 and 1e-2.
    assert f32["relative_rms"] < 5e-6
    assert 1e-4 < bf16["relative_rms"] < 5e-2 and 1e-4 < ours["relative_rms"] < 5e-2
    root = ElementTree.parse(plot).getroot()
    assert root.tag.endswith("}svg")
    texts = {element.text for element in root.iter() if element.text}
    assert {"bf16", "transformers f32", "transformers bf16"} <= texts


def test_figures_by_hand() -> None:
    """Quantiles, the worst token's place, and what JSON cannot hold."""
    exact = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    found = np.array([[3.0, 4.0], [0.0, 0.0], [2.0, 2.0]])
    result = tool.measure("x", exact, found, np.array([7, 1, 9]), np.array([0, 2, 3]))
    assert result["quantiles"]["0.5"] == 0.0 and result["quantiles"]["0.9"] == 2.0
    assert result["relative_rms"] == np.sqrt(4 / 29)
    place = {"row": 1, "position": 0, "id": 9}
    assert {key: result["cosine"][key] for key in place} == place
    assert result["cosine"]["least"] == pytest.approx(2 / np.sqrt(8), rel=1e-15)
    found[1, 1] = np.nan
    result = tool.measure("x", exact, found, np.array([7, 1, 9]), np.array([0, 2, 3]))
    assert result["max"] is None and result["cosine"]["least"] is None
    assert (result["cosine"]["row"], result["cosine"]["position"]) == (0, 1)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_starts": np.array([0, 3])}, "rise from 0 to 2"),
        ({"input_ids": np.array([1])}, "do not belong together"),
        ({"input_ids": None}, "there is no tensor 'input_ids'"),
    ],
)
def test_other_files_are_refused(change: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    """In a line that names the file."""
    tensors = {
        "last_hidden_state": np.zeros((2, 4), np.float32),
        "row_starts": np.array([0, 2]),
        "input_ids": np.array([5, 1]),
        **change,
    }
    path = tmp_path / "s.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(tool.InputError, match=message):
        tool.read_states(path)
