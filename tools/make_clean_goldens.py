#!/usr/bin/env python3
"""Writes testdata/expected/clean_text.jsonl. Needs ftfy (made with 6.3.1, Python 3.11).

    python tools/make_clean_goldens.py testdata/expected/clean_text.jsonl

A line has a text and what Python makes of it in each way of cleaning; a result that equals
the text is left out. `null` says that a glyph encoder gets nothing to encode.
"""

import html
import json
import random
import re
import sys

import ftfy
from ftfy.chardata import CHARMAP_ENCODINGS

WORDS = [
    "café", "naïve", "über", "“so”", "it’s", "—", "…", "™", "€5", "5°", "à la mode", "às",
    "日本語", "Привет", "Ελληνικά", "مرحبا", "हिन्दी", "한국어", "😀", "š", "ž", "ő", "fácil",
]

FIXED = [
    # White space and case.
    "", " ", "\n", "\t\x0b\x0c\r\x1c\x1d\x1e\x1f\x20\x85\xa0", " A\u1680B\u2003C\u202fD\u205f\u3000",
    "x\u200by\u2060z\ufeff", "ΟΔΥΣΣΕΥΣ", "ΑΣ Σ Σ.", "İSTANBUL ıI", "STRASSE ẞß", "Ǆ ǅ ǆ", "ﬀ Ŀ ŉ",
    # Lines, controls, escapes.
    "a\r\nb\rc\u2028d\u2029e", "\x1b[31;1mred\x1b[0m \x1b[x \x1b[?25l", "\x00a\x07b\x7fc\ufff9d\ufffce",
    "soft\u00adhyphen", "\u202abidi\u202c \u2066x\u2069 \u206a", "\ufeffbom", "a\x1ab \ufffd",
    # Ligatures, widths, quotes, composition.
    "ﬂuﬃeﬆ ĳ Ŋ ŉ", "ＬＯＵＤ　ＮＯＩＳＥＳ ｶﾞﾊﾟ ￥￡ ﾡ", "‘a’ ‚b‛ “c” „d‟ ʼe′ «f»", "e\u0301 A\u030a \u212b \u1e9b\u0323",
    "\u0958 \u1100\u1161\u11a8", "ﬁ\u0301",
    # References.
    "&amp;amp;lt; &amp;lt; &lt; &amp;", "fish & chips & &", "&notit; &notin; &not", "P&EACUTE;REZ &eacute &NTILDE;",
    "&hellip; &HELLIP; &SZLIG; &Jscr; &fjlig; &NotEqualTilde;", "&#65; &#65 &#x41 &#X41; &#x; &#; &#abc;",
    "&#0; &#13; &#128; &#129; &#150; &#x9f; &#127; &#1; &#11;", "&#xd800; &#xdfff; &#xfffe; &#xfdd0; &#x10ffff; &#x110000;",
    "&#99999999999999999999; &#00000065;", "<b>&lt;bold&gt;</b>", "a &lt;\nb < c &lt;\nd &lt;", "&#59; &semi; &amp;semi;",
    "&abcdefghijklmnopqrstuvwxyzabcdefghijkl; &CounterClockwiseContourIntegral; &é;", "&#x1F600; &#128512",
    # Wrong encodings.
    "sÃ³", "âœ” No problems", "voilÃ  le travail", "voilÃ le travail", "Ã  la mode", "Ã\xa0 quele", "Ã s vezes",
    "l\x92humanit\xe9", "â€œ like this â€\ufffd", "â€œ lost â€? x", "ï»¿bom", "Ã¢â‚¬â„¢", "ÃƒÂ©", "ðŸ˜€", "ð\x9f˜ \x80",
    "вЂњРїСЂРёРІРµС‚вЂќ", "РџСЂРёРІРµС‚", "β€™", "ā€“", "Å¼Ã³Å‚w", "√© MacRoman ‚Äî", "caf├⌐", "a Â£5 and 5Â°",
    "日本語 Ã© mixed", "(â\x97\x95â\x80¿â\x97\x95)", "ÙØ±Ø­Ø¨Ø§", "à¤¹à¤¿", "Ãé no", "© 2020 ® ™ ½ × 3", "œuvre Œ ",
    "\xc0\x80é\x85", "Ã©À\n", "í\xa0½í²©Ã©", "í\xa0½í°\nÃ©", "\x81\x8d\x90 \x80", "\u0192\u2020",
    "Ünïcödé is fine", "AHÅ™, the new sofa from IKEA®", "“Everybody’s asking”", "┌─┐ │x│ └─┘", "ಠ_ಠ ヽ༼ຈل͜ຈ༽ﾉ",
    # Quoted texts.
    'a sign saying "OPEN"', "“你好” and \"bye\" and “你好”", "it's Bob's 'shop'", "‘x’ “y” 'z' \"w\"", '"" “”', '"a\nb" "c"',
    '"“a”" “"b"”', '"unclosed', "'\"'\"'", "“a\"b”c\"",
]


def garbled(rng):
    """Words read in a wrong encoding, once or twice, perhaps with losses."""
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 4)))
    for _ in range(rng.choice([1, 1, 1, 2])):
        data = text.encode()
        if rng.random() < 0.2:
            data = data.replace(b"\xa0", b" ")
        if rng.random() < 0.1:
            data = data[:-1]
        text = data.decode(rng.choice(CHARMAP_ENCODINGS), errors="replace")
    if rng.random() < 0.15:
        text = re.sub("[\x80-\x9f]", "\ufffd", text)
    return rng.choice(["", "", "日本 ", "ok, "]) + text + rng.choice(["", "", "\n", " end"])


def prompt_clean(text):
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def worded(texts):
    return "".join(f'Text "{text}". ' for text in texts) or None


def glyph_video(prompt):
    found = re.findall(r'"(.*?)"|“(.*?)”', prompt)
    return worded(dict.fromkeys(straight or curly for straight, curly in found))


def glyph_image(prompt):
    kinds = ["''", '""', "‘’", "“”"]
    return worded(text for a, b in kinds for text in re.findall(f"{a}(.*?){b}", prompt))


CLEANINGS = {
    "fix_text": ftfy.fix_text,
    "unescape": html.unescape,
    "lower-strip": lambda text: text.lower().strip(),
    "prompt": prompt_clean,
    "glyph-video": glyph_video,
    "glyph-image": glyph_image,
}


def main():
    rng = random.Random(5)
    texts = list(dict.fromkeys(FIXED + [garbled(rng) for _ in range(260)]))
    with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as out:
        for text in texts:
            line = {"text": text}
            for name, clean in CLEANINGS.items():
                result = clean(text)
                if result != text:
                    line[name] = result
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(len(texts), "texts")


if __name__ == "__main__":
    main()
