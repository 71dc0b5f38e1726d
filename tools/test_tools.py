"""Tests of the tools that stand alone. Nothing is downloaded here."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import build_cubins
import fetch_flan_t5_small as fetch
import gpu_check
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


PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attend_64_bf16' for 'sm_90a'
ptxas info    : Function properties for attend_64_bf16
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
ptxas info    : Compiling entry function 'gate_f16' for 'sm_90a'
ptxas info    : Function properties for gate_f16
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 65 registers, used 0 barriers, 128 bytes smem
"""


def test_what_a_kernel_uses_is_read_and_judged() -> None:
    """Spills, stacks, too many registers and kernels that are missing are problems; the rest is none."""
    usage = build_cubins.parse_usage(PTXAS)
    assert usage == {
        "attend_64_bf16": {"registers": 168, "spilled": 0, "stack": 0, "shared": 0},
        "gate_f16": {"registers": 65, "spilled": 12, "stack": 16, "shared": 128},
    }
    problems = build_cubins.usage_problems("sm_90a", usage, {"gate_f16", "embed_f32"})
    assert len(problems) == 3 and all(problem.startswith("sm_90a: ") for problem in problems)
    assert "`embed_f32` was not compiled" in problems[0]
    assert "spills 12 bytes" in problems[1] and "65 registers, expected at most 64" in problems[2]


def test_the_manifest_is_of_the_kernels_that_there_are() -> None:
    """Without a compiler: names and the hash of the sources. With it, `make test-cubins` compares the bytes."""
    manifest = json.loads((build_cubins.CUBINS / build_cubins.MANIFEST).read_text())
    assert manifest["sources"] == build_cubins.sources_hash()
    for image in manifest["images"]:
        assert set(image["kernels"]) == build_cubins.kernel_names()
        assert build_cubins.usage_problems(image["architecture"], image["kernels"], set()) == []


def test_bounds_of_a_gpu_are_those_of_the_roofline() -> None:
    """One token is bound by reading 9.26 GB, 4,096 by arithmetic."""
    assert gpu_check.bound_ms(1) == pytest.approx(2.764, abs=0.001)
    assert gpu_check.bound_ms(512) == pytest.approx(4.90, abs=0.01)
    assert gpu_check.bound_ms(4096) == pytest.approx(45.0, abs=0.1)


def test_without_a_gpu_nothing_is_reported(tmp_path: Path) -> None:
    """A machine without one is told so, and leaves no file that looks like a result."""
    fake = tmp_path / "quintic"
    fake.write_text("#!/bin/sh\necho 'error: backend `cuda:0`: there is no NVIDIA driver here' >&2\nexit 9\n")
    fake.chmod(0o755)
    done = _run("gpu_check.py", "--binary", fake, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "nothing was checked" in done.stderr and "NVIDIA driver" in done.stdout
    assert not (tmp_path / "out").exists()


def test_wrong_results_have_no_speed(tmp_path: Path) -> None:
    """A suite that fails ends the check: nothing is timed."""
    fake = tmp_path / "quintic"
    fake.write_text('#!/bin/sh\n[ "$1" = check ] || touch timed\necho "1 of 341 failed"\nexit 1\n')
    fake.chmod(0o755)
    done = subprocess.run(
        [sys.executable, TOOLS / "gpu_check.py", "--binary", fake, "--out", tmp_path / "out"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    (report,) = (tmp_path / "out").iterdir()
    assert "FAILED (exit code 1)" in report.read_text() and "Nothing was timed" in report.read_text()
    assert not (tmp_path / "timed").exists()
