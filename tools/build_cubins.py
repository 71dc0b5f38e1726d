"""Compiles the CUDA kernels for each architecture, and checks what came out.

    python tools/build_cubins.py            writes crates/quintic-cuda/cubins
    python tools/build_cubins.py --check    fails if what is committed is not what the sources make

Needs no GPU. The compiler is the one of ``requirements-cuda.txt``, beside the Python that runs this.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

CRATE = Path(__file__).resolve().parent.parent / "crates" / "quintic-cuda"
SOURCES = CRATE / "kernels"
CUBINS = CRATE / "cubins"
MANIFEST = "manifest.json"

# sm_80's serves every device of compute capability 8.x; sm_90a's serves 9.0 alone.
ARCHITECTURES = ("sm_80", "sm_90a")

# A multiprocessor has 65,536 registers, given out in lots of 256 a warp. Blocks of 128 threads:
# three fit with up to 168 registers a thread, two with up to 255. Two blocks are what keeps the
# matrix units busy while one of them waits at a barrier.
REGISTERS = {"attend_64": 168, "attend_128": 255}
# Blocks of 256 threads: four fit with 64.
OTHER_REGISTERS = 64
# One query and head a block of 128: speed is not its purpose, but five blocks should fit.
PLAIN_REGISTERS = 96


def compiler() -> Path:
    """nvcc of the wheels, made executable: archives of wheels do not always say so."""
    root = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13"
    nvcc = root / "bin" / "nvcc"
    if not nvcc.is_file():
        sys.exit(f"{nvcc} is missing: install tools/requirements-cuda.txt")
    for folder in (root / "bin", root / "nvvm" / "bin"):
        for program in folder.iterdir():
            program.chmod(program.stat().st_mode | 0o111)
    return nvcc


def sources_hash() -> str:
    """One hash of all sources, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.cu*")):
        total.update(f"{path.name}\0{len(path.read_bytes())}\0".encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def parse_usage(text: str) -> dict[str, dict[str, int]]:
    """What ptxas says of each kernel: registers, spilled bytes, stack, shared memory."""
    kernels: dict[str, dict[str, int]] = {}
    name = None
    for line in text.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels[name] = {"registers": 0, "spilled": 0, "stack": 0, "shared": 0}
        if name is None:
            continue
        if found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            kernels[name]["stack"] = int(found[1])
            kernels[name]["spilled"] = int(found[2]) + int(found[3])
        if found := re.search(r"Used (\d+) registers", line):
            kernels[name]["registers"] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name]["shared"] = int(shared[1]) if shared else 0
    return dict(sorted(kernels.items()))


def allowed_registers(kernel: str) -> int:
    if kernel.startswith("attend_plain"):
        return PLAIN_REGISTERS
    for start, registers in REGISTERS.items():
        if kernel.startswith(start):
            return registers
    return OTHER_REGISTERS


def usage_problems(architecture: str, kernels: dict[str, dict[str, int]], names: set[str]) -> list[str]:
    """What a kernel uses that it should not."""
    problems = [f"{architecture}: `{name}` was not compiled" for name in sorted(names - set(kernels))]
    for name, usage in kernels.items():
        if usage["spilled"] or usage["stack"]:
            problems.append(
                f"{architecture}: `{name}` spills {usage['spilled']} bytes and has a stack of {usage['stack']}, expected none"
            )
        if usage["registers"] > allowed_registers(name):
            problems.append(
                f"{architecture}: `{name}` uses {usage['registers']} registers, expected at most {allowed_registers(name)}"
            )
    return problems


def kernel_names() -> set[str]:
    """The kernels that the sources define."""
    return set(re.findall(r"^KERNEL\((\w+),", (SOURCES / "quintic.cu").read_text(), re.MULTILINE))


def compile_all(nvcc: Path, folder: Path) -> tuple[dict, list[str]]:
    """Compiles into ``folder``; the manifest, and what is wrong."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V([\d.]+)", version)
    manifest = {"compiler": f"nvcc {release[1] if release else '?'}", "sources": sources_hash(), "images": []}
    problems = []
    # Paths inside a cubin would differ from checkout to checkout.
    environment = dict(os.environ, TMPDIR=str(folder))
    for architecture in ARCHITECTURES:
        out = folder / f"{architecture}.cubin"
        done = subprocess.run(
            [nvcc, "-std=c++17", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings", "-o", out, "quintic.cu"],
            cwd=SOURCES,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{architecture}: nvcc ended with {done.returncode}\n{done.stdout}{done.stderr}")
        kernels = parse_usage(done.stderr + done.stdout)
        problems += usage_problems(architecture, kernels, kernel_names())
        manifest["images"].append(
            {
                "architecture": architecture,
                "bytes": out.stat().st_size,
                "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
                "kernels": kernels,
            }
        )
    return manifest, problems


def differences(new: Path, manifest: dict) -> list[str]:
    """Where what is committed is not what was just made."""
    path = CUBINS / MANIFEST
    if not path.is_file():
        return [f"{path} is missing"]
    old = json.loads(path.read_text())
    problems = []
    if old.get("sources") != manifest["sources"]:
        problems.append("the kernels have changed since the cubins were made")
    for image in manifest["images"]:
        name = f"{image['architecture']}.cubin"
        committed = CUBINS / name
        if not committed.is_file():
            problems.append(f"{committed} is missing")
        elif committed.read_bytes() != (new / name).read_bytes():
            problems.append(f"{name}: {committed.stat().st_size} bytes are committed, the sources make {image['bytes']} others")
    if not problems and old != manifest:
        problems.append(f"{MANIFEST} does not describe the cubins")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    nvcc = compiler()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, problems = compile_all(nvcc, folder)
        for image in manifest["images"]:
            most = max(image["kernels"].items(), key=lambda kernel: kernel[1]["registers"])
            print(
                f"{image['architecture']}: {len(image['kernels'])} kernels, {image['bytes']:,} bytes, "
                f"none spills, most registers: {most[1]['registers']} ({most[0]})"
                if not problems
                else f"{image['architecture']}: {len(image['kernels'])} kernels"
            )
        if arguments.check:
            if stale := differences(folder, manifest):
                problems += [*stale, "`make cubins` makes them anew"]
        elif not problems:
            CUBINS.mkdir(exist_ok=True)
            for image in manifest["images"]:
                file = f"{image['architecture']}.cubin"
                (CUBINS / file).write_bytes((folder / file).read_bytes())
            (CUBINS / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    print("\n".join(problems), end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
