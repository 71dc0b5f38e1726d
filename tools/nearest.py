"""Prints which captions a table of embeddings finds nearest to a handful of captions.

    python tools/nearest.py EMBEDDINGS.safetensors CAPTIONS [--column Prompt] [--query CAPTION ...]

EMBEDDINGS holds ``embeddings`` ``[rows, d_model]`` as written by ``quintic encode --pool mean``, a
row for each line of CAPTIONS: a text file with a caption a line, or a .tsv with a header row, of
which one column is read.

The mean of all embeddings is subtracted first. Pooled encoder outputs share a large common part,
which makes every cosine nearly 1 and hides the differences; without it the cosines spread out.
Needs NumPy and safetensors only.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

QUERIES = (
    "a whale",
    "Times Square at night",
    "a volcano erupting near a small town",
    "a glass of orange juice",
    "the words 'KEEP OFF THE GRASS'",
    "a giraffe eating the bark of a tree",
    "five red balls on a table",
    "gravity",
    "a stop sign knocked over on a sidewalk",
)
"""Captions of PartiPrompts of different kinds; the last one is kept because its neighbours are poor."""


class InputError(Exception):
    """The two files do not fit this tool or each other."""


def read_captions(path: Path, column: str) -> list[str]:
    """One caption a line, or a column of a .tsv file without quoting.

    Only a line feed ends a line, as for quintic, so that rows count alike in both.
    """
    lines = [line.removesuffix("\r") for line in path.read_bytes().decode("utf-8-sig").split("\n")]
    if lines[-1] == "":
        lines.pop()
    if path.suffix != ".tsv":
        return lines
    table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    if column not in (table.fieldnames or []):
        raise InputError(f"{path}: no column `{column}`, there are {table.fieldnames}")
    return [row[column] for row in table]


def read_embeddings(path: Path, rows: int) -> np.ndarray:
    """The embeddings, in float64; there must be one for every caption."""
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: {error}") from error
    if "embeddings" not in tensors:
        raise InputError(f"{path}: no tensor `embeddings`, only {sorted(tensors)}; was it made with --pool mean?")
    embeddings = tensors["embeddings"].astype(np.float64)
    if embeddings.ndim != 2 or len(embeddings) != rows:
        raise InputError(f"{path}: `embeddings` has shape {list(embeddings.shape)}, expected [{rows}, d_model]")
    if not np.isfinite(embeddings).all():
        raise InputError(f"{path}: `embeddings` has values that are not finite")
    return embeddings


def centred_directions(embeddings: np.ndarray) -> np.ndarray:
    """Differences from the mean embedding, each of length 1."""
    centred = embeddings - embeddings.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths > 0, lengths, 1)


def _key(caption: str) -> str:
    """Equal for captions that are the same but for case and white space."""
    return " ".join(caption.casefold().split())


def nearest(directions: np.ndarray, captions: Sequence[str], row: int, count: int) -> list[tuple[float, str]]:
    """Cosine and caption of the nearest rows; the caption itself and duplicates appear at most once."""
    cosines = directions @ directions[row]
    seen, found = {_key(captions[row])}, []
    for other in np.argsort(-cosines, kind="stable"):
        key = _key(captions[other])
        if key not in seen:
            seen.add(key)
            found.append((float(cosines[other]), captions[other]))
        if len(found) == count:
            break
    return found


def query_rows(captions: Sequence[str], wanted: Sequence[str], required: bool) -> list[int]:
    """Rows of the wanted captions; evenly spaced rows if the usual ones are in another file."""
    first_row = {_key(caption): row for row, caption in reversed(list(enumerate(captions)))}
    missing = [caption for caption in wanted if _key(caption) not in first_row]
    if required and missing:
        raise InputError(f"no caption reads `{missing[0]}`")
    rows = [first_row[_key(caption)] for caption in wanted if _key(caption) in first_row]
    return rows or list(range(0, len(captions), max(1, len(captions) // len(QUERIES))))


def shorten(text: str, width: int) -> str:
    """Cut to a width, with a mark where something was cut."""
    return text if len(text) <= width else text[: width - 1] + "…"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Print the captions nearest to a handful of captions.")
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--column", default="Prompt", help="of a .tsv file (default: Prompt)")
    parser.add_argument("--query", action="append", help="a caption of the file; can be repeated")
    parser.add_argument("--count", type=int, default=4, help="neighbours for each (default: 4)")
    parser.add_argument("--width", type=int, default=96, help="characters of a caption (default: 96)")
    options = parser.parse_args()
    try:
        captions = read_captions(options.captions, options.column)
        directions = centred_directions(read_embeddings(options.embeddings, len(captions)))
        rows = query_rows(captions, options.query or QUERIES, required=bool(options.query))
    except (InputError, OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(captions)} captions, {directions.shape[1]} numbers each; cosine after subtracting their mean")
    for row in rows:
        print(f"\n       {shorten(captions[row], options.width)}")
        for cosine, caption in nearest(directions, captions, row, options.count):
            print(f"{cosine:6.3f} {shorten(caption, options.width)}")


if __name__ == "__main__":
    main()
