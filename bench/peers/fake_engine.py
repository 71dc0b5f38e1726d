"""An engine that computes nothing, to test the harness: it obeys the protocol, or breaks it as told.

    python fake_engine.py MODE [OUTPUT.npy TRUTH.npy]
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def say(text: str) -> None:
    """One line, at once."""
    print(text, flush=True)


def main() -> None:
    """``good``, ``wrong-output``, ``no-output``, or the name of a fault."""
    mode = sys.argv[1]
    if len(sys.argv) > 3 and mode != "no-output":
        output = np.load(sys.argv[3]).astype(np.float32)
        np.save(sys.argv[2], -output if mode == "wrong-output" else output)
    if mode == "dies-at-load":
        sys.exit("no weights here")
    if mode == "hangs":
        time.sleep(600)
    say("loading, which belongs in the log")
    say("@not json" if mode == "garbage" else '@{"ready": true, "load": 0.5, "first": 0.001}')
    n_runs = 0
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        n_runs += 1
        if mode == "dies-at-run" and n_runs == 2:
            sys.exit(3)
        say('@{"ms": null}' if mode == "no-time" else "@" + json.dumps({"ms": 10.0 + n_runs}))
    say('@{"rss_mb": 1.0, "peak_mb": 2.0}')


if __name__ == "__main__":
    main()
