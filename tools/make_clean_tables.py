#!/usr/bin/env python3
"""Writes the tables of the text cleaning. Needs Python 3.11 or newer and ftfy 6.3.1.

    python tools/make_clean_tables.py crates/quintic/src/preset/clean

`entities.txt` holds Python's HTML 5 references and the upper-case ones that ftfy adds;
`tables.rs` holds ftfy's single-byte encodings and character classes.
"""

import html
import re
import sys
from pathlib import Path

import ftfy
from ftfy import badness, chardata, fixes

HEADER = """//! Single-byte encodings and character classes of ftfy {version}; written by
//! `tools/make_clean_tables.py`.
//!
//! ftfy is by Robyn Speer and others, Apache-2.0; these are its facts about which
//! characters occur in text that was decoded with the wrong encoding.

"""


def entities():
    """One line each, sorted: name with `&` left out, tab, text as code points; a `!` in
    front marks the ones that only ftfy knows."""
    lines = []
    for name, text in html.entities.html5.items():
        lines.append((name, "", text))
    for name, text in chardata.HTML_ENTITIES.items():
        name = name[1:]
        if name in html.entities.html5:
            assert html.entities.html5[name] == text, name
        else:
            lines.append((name, "!", text))
    lines.sort(key=lambda line: line[0].encode())
    return "".join(
        f"{name}\t{mark}{' '.join(f'{ord(char):x}' for char in text)}\n"
        for name, mark, text in lines
    )


def members(pattern):
    """The characters of the inside of a regular expression's class."""
    compiled = re.compile(f"[{pattern}]")
    return [code for code in range(0x110000) if compiled.match(chr(code))]


def ranges(codes):
    """Code points as the inside of a class for the `regex` crate, without its brackets."""
    runs = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(
        f"\\u{{{first:x}}}" if first == last else f"\\u{{{first:x}}}-\\u{{{last:x}}}"
        for first, last in runs
    )


def wrapped(text, width=80):
    """A Rust raw string cut into lines by `concat!`."""
    pieces = re.findall(r"\\u\{[0-9a-f]+\}-?", text)
    lines, line = [], ""
    for piece in pieces:
        if len(line) + len(piece) > width:
            lines.append(line)
            line = ""
        line += piece
    lines.append(line)
    assert "".join(lines) == text
    if len(lines) == 1:
        return f'r"{lines[0]}"'
    inner = "".join(f'    r"{line}",\n' for line in lines)
    return f"concat!(\n{inner})"


def constant(name, doc, text):
    return f"/// {doc}\npub(super) const {name}: &str = {wrapped(text)};\n\n"


def tables():
    out = HEADER.format(version=ftfy.__version__)
    for encoding in chardata.CHARMAP_ENCODINGS + ["windows-1252"]:
        name = re.sub(r"\W", "_", encoding).upper()
        # Bytes 00..7F are ASCII in all of them, but for byte 1A of the sloppy ones.
        upper = bytes(range(0x80, 0x100)).decode(encoding, errors="replace")
        lines = [upper[i : i + 16] for i in range(0, 128, 16)]
        inner = "".join(
            '    "' + "".join(f"\\u{{{ord(char):x}}}" for char in line) + '",\n' for line in lines
        )
        out += f"/// What bytes 80..FF stand for in {encoding}; U+FFFD if nothing.\n"
        out += "#[rustfmt::skip]\n"
        out += f"pub(super) const {name}: &str = concat!(\n{inner});\n\n"
    for name, pattern in badness.MOJIBAKE_CATEGORIES.items():
        out += constant(name.upper(), f"Category `{name}` of the badness heuristic.",
                        ranges(members(pattern)))
    for name, pattern in chardata.UTF8_CLUES.items():
        out += constant(name.upper(), f"Class `{name}` of the search for embedded UTF-8.",
                        ranges(members(pattern)))
    ligatures = ", ".join(
        f"('\\u{{{code:x}}}', \"{''.join(f'{chr(92)}u{{{ord(c):x}}}' if ord(c) > 126 else c for c in text)}\")"
        for code, text in sorted(chardata.LIGATURES.items())
    )
    out += "/// Latin ligatures and digraphs with their letters.\n"
    out += f"pub(super) const LIGATURES: &[(char, &str)] = &[{ligatures}];\n"
    assert fixes.C1_CONTROL_RE.pattern == r"[\x80-\x9f]"
    return out


def main():
    folder = Path(sys.argv[1])
    (folder / "entities.txt").write_text(entities(), encoding="ascii")
    (folder / "tables.rs").write_text(tables(), encoding="ascii")


if __name__ == "__main__":
    main()
