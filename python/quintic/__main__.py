"""The ``quintic`` command, as the wheel installs it."""

from __future__ import annotations

import signal
import sys

from quintic import _quintic


def main() -> int:
    """Runs the command line of this process."""
    # The command computes for seconds without asking Python: Ctrl-C ends it as it ends the binary.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _quintic.run_command(["quintic", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
