"""Checks a built wheel: one file, small enough, for every Python from 3.10 on, and complete.

    python tools/check_wheel.py [--max-mb 8] dist
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

WANTED = ("quintic/__init__.py", "quintic/_quintic.pyi", "quintic/py.typed", "quintic/_quintic.abi3.so")


def problems(folder: Path, max_mb: float) -> list[str]:
    """What is wrong with the wheel in ``folder``."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        return [f"{folder}: found {len(wheels)} wheels, expected one"]
    wheel = wheels[0]
    found = []
    size = wheel.stat().st_size / 1e6
    if size > max_mb:
        found.append(f"{wheel.name}: {size:.1f} MB, expected at most {max_mb:g}")
    if "-cp310-abi3-" not in wheel.name:
        found.append(f"{wheel.name}: expected one for the stable interface of Python 3.10 and later")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        scripts = [name for name in names if name.endswith("entry_points.txt")]
        found += [f"{wheel.name}: `{name}` is missing" for name in WANTED if name not in names]
        if not scripts or "quintic=quintic.__main__:main" not in archive.read(scripts[0]).decode().replace(" ", ""):
            found.append(f"{wheel.name}: the `quintic` command is missing")
        licences = [name for name in names if name.endswith(("/LICENSE", "/NOTICE"))]
        if len(licences) < 2:
            found.append(f"{wheel.name}: LICENSE and NOTICE are missing")
        strange = [name for name in names if not name.startswith(("quintic/", "quintic-"))]
        found += [f"{wheel.name}: `{name}` does not belong there" for name in strange]
    print(f"{wheel.name}: {size:.1f} MB, {len(names)} files")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-mb", type=float, default=8)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    found = problems(arguments.folder, arguments.max_mb)
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
