"""Tests of the tools that stand alone. Nothing is downloaded here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import fetch_flan_t5_small as fetch
import nearest
import numpy as np
import pytest
from safetensors.numpy import save_file

TOOLS = Path(__file__).parent
PARTI = TOOLS.parent / "testdata" / "prompts" / "PartiPrompts.tsv"


def _run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_usual_query_is_a_caption_of_parti_prompts() -> None:
    """All 1,632 captions are read, quotes and all, and every query is among them."""
    captions = nearest.read_captions(PARTI, "Prompt")
    assert len(captions) == 1632
    assert any(caption.endswith('"The Rumbury Wanderers"') for caption in captions)
    assert [captions[row] for row in nearest.query_rows(captions, nearest.QUERIES, required=True)] == list(
        nearest.QUERIES
    )


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """Rows have to count as they do in quintic: no other separator, empty lines kept, a mark at the start not."""
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeffone\u2028still one\r\n\n three\x0b\n".encode())
    assert nearest.read_captions(path, "Prompt") == ["one\u2028still one", "", " three\x0b"]


def test_neighbours_are_ranked_and_duplicates_left_out() -> None:
    """The nearest first; neither the caption itself nor its twins, and a twin of a neighbour once."""
    captions = ["a cat", "A  cat", "a kitten", "a car", "a Kitten", "the sea"]
    embeddings = np.array([[1, 0.1], [1, 0.1], [1, 0.3], [-1, 1], [1, 0.31], [-1, -1]]) + 100
    directions = nearest.centred_directions(embeddings)
    found = nearest.nearest(directions, captions, 0, 3)
    assert [caption for _, caption in found] == ["a kitten", "the sea", "a car"]
    assert found == sorted(found, reverse=True)


def test_without_the_usual_captions_rows_are_spread_evenly() -> None:
    """And a query that somebody asked for must exist."""
    captions = [f"caption {number}" for number in range(90)]
    assert nearest.query_rows(captions, nearest.QUERIES, required=False)[:3] == [0, 10, 20]
    with pytest.raises(nearest.InputError, match="a whale"):
        nearest.query_rows(captions, ["a whale"], required=True)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embeddings": np.zeros((3, 4), np.float32)}, "expected [2, d_model]"),
        ({"last_hidden_state": np.zeros((2, 4), np.float32)}, "--pool mean"),
        ({"embeddings": np.full((2, 4), np.nan, np.float32)}, "not finite"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(
    tensors: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    """In one line that names the file."""
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    save_file(tensors, tmp_path / "e.safetensors")
    done = _run("nearest.py", tmp_path / "e.safetensors", tmp_path / "captions.txt")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "e.safetensors" in done.stderr


def test_fetching_leaves_a_folder_with_other_things_alone(tmp_path: Path) -> None:
    """And downloads nothing."""
    (tmp_path / "something").write_text("of somebody")
    done = _run("fetch_flan_t5_small.py", tmp_path)
    assert done.returncode == 1
    assert "move it away" in done.stderr
    assert (tmp_path / "something").exists()


def test_fetching_again_does_nothing(tmp_path: Path) -> None:
    """A folder with all three files is complete, because it got its name last."""
    for name in fetch.FILES:
        (tmp_path / name).write_text("")
    done = _run("fetch_flan_t5_small.py", tmp_path)
    assert done.returncode == 0
    assert "complete already" in done.stdout


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    """With the name of what is missing."""
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/data", "x")
    with pytest.raises(fetch.FetchError, match=r"other\.whl has no .*encoder\.onnx"):
        fetch.unpack(tmp_path / "other.whl", tmp_path)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """One changed number is enough, whatever the file's layout."""
    tensors = {f"tensor {number}": np.zeros(2, np.float32) for number in range(fetch.N_TENSORS)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / fetch.TOKENIZER).write_text("{}")
    with pytest.raises(fetch.FetchError, match="sha256"):
        fetch.check(tmp_path)
    first = fetch.contents_sha256(tensors)
    assert first == fetch.contents_sha256(dict(reversed(tensors.items())))
    tensors["tensor 7"][1] = np.nextafter(np.float32(0), np.float32(1))
    assert first != fetch.contents_sha256(tensors)


def test_a_failed_fetch_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the destination nor the scratch folder beside it."""

    def fail(folder: Path) -> Path:
        raise fetch.FetchError("no network")

    monkeypatch.setattr(fetch, "download", fail)
    with pytest.raises(fetch.FetchError):
        fetch.fetch(tmp_path / "deep" / "model")
    assert list((tmp_path / "deep").iterdir()) == []
