"""Writes `testdata/expected/buckets.json`: where transformers' position buckets begin, for many shapes.

    PYTHONPATH=tools python -m oracle.make_buckets

An entry is `[bidirectional, num_buckets, max_distance, starts]`; `starts` lists the distances into the past at which the bucket
differs from that of the distance before, up to `max_distance + 3`, with the bucket. For bidirectional maps the future mirrors the
past with half of the buckets added, which is checked here.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers.models.t5.modeling_t5 import T5Attention

OUT = Path(__file__).resolve().parents[2] / "testdata" / "expected" / "buckets.json"
NUM_BUCKETS = (4, 6, 7, 8, 12, 16, 20, 31, 32, 33, 40, 48, 64, 96, 128, 256)
MAX_DISTANCES = (5, 9, 17, 20, 33, 50, 64, 65, 100, 127, 128, 129, 200, 256, 300, 512, 1000, 1024, 2048, 4096, 8192)


def starts(bidirectional: bool, num_buckets: int, max_distance: int) -> list[tuple[int, int]]:
    """Distances into the past at which a bucket begins, with the bucket."""
    distances = torch.arange(max_distance + 4)
    buckets = T5Attention._relative_position_bucket(-distances, bidirectional, num_buckets, max_distance)
    if bidirectional:
        future = T5Attention._relative_position_bucket(distances, True, num_buckets, max_distance)
        assert torch.equal(future[1:], buckets[1:] + num_buckets // 2)
    changes = [0, *(torch.nonzero(buckets[1:] != buckets[:-1])[:, 0] + 1).tolist()]
    return [(int(distance), int(buckets[distance])) for distance in changes]


def main() -> None:
    torch.set_num_threads(1)
    entries = []
    for bidirectional in (True, False):
        for num_buckets in NUM_BUCKETS:
            for max_distance in MAX_DISTANCES:
                if max_distance <= num_buckets // 2:
                    continue
                entries.append([bidirectional, num_buckets, max_distance, starts(bidirectional, num_buckets, max_distance)])
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    OUT.write_text(f"[\n{lines}\n]\n")
    print(f"{len(entries)} shapes, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
