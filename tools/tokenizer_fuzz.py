#!/usr/bin/env python3
"""Compares Quintic's tokenizers with the ones they follow, on real and random text.

    tokenizer_fuzz.py --binary tokenize_lines --tokenizers DIR [--set-ups NAME …]
                      [--random N] [--seed S] [--text FILE …]

`--binary` is the built example `tokenize_lines`. `--tokenizers` holds the fetched models
(see fetch_tokenizers.py). Needs transformers 4.57.6, tokenizers 0.22.2 and sentencepiece
0.2.3, which are the named references; other versions may disagree with themselves.

Every text goes through both sides: ids, ids truncated to a random length, and the text
decoded from the ids (special tokens kept and skipped). The first disagreements are
printed; the exit status is 1 if there is any.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(ROOT, "testdata", "tokenizers")
SENTINELS = [f"<extra_id_{n}>" for n in (0, 1, 2, 9, 10, 31, 99, 100, 299, 300)]
SPECIAL = ["</s>", "<s>", "<unk>", "<pad>", "<mask>", "▁", "▁▁", "⁇", "<0x0A>", "<0xE2>"]
SPACES = list(" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u200b\u2028\u2029\u202f\u3000\ufeff")
COMBINING = list("\u0301\u0327\u0308\u20e3\ufe0f\u200d\u0e31\u093f\u3099\u1160\U0001f3fb")
WORDS = """the a of and photo cat dog house running translate English German summarize 3.14 2,000
    don't can't it's naïve façade Straße 日本語 テキスト 안녕 Привет مرحبا 你好 ｶﾞ ﬁ ² ½ ™ 🍕 👩‍👩‍👧 🇫🇷 \\frac{a}{b}
    x**2 __init__ lora:foo:0.8 (best:1.2) http://a.b/c?d=e user@example.com #tag -- – — … “q” 'q'""".split()


class SetUp:
    """A named tokenizer: arguments for the binary, and a function that makes the reference."""

    def __init__(self, name, arguments, reference):
        self.name, self.arguments, self.reference = name, arguments, reference


class RawReference:
    def __init__(self, path):
        import sentencepiece

        self.model = sentencepiece.SentencePieceProcessor(model_file=path)

    def encode(self, text):
        return self.model.encode(text)

    def truncated(self, text, length):
        return self.model.encode(text)[:length]

    def decode(self, ids, skip):
        return self.model.decode(ids)


class SlowReference:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, text):
        return self.tokenizer.encode(text)

    def truncated(self, text, length):
        return self.tokenizer.encode(text, truncation=True, max_length=length)

    def decode(self, ids, skip):
        return self.tokenizer.decode(ids, skip_special_tokens=skip)


class FastReference:
    def __init__(self, path):
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_file(path)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def truncated(self, text, length):
        self.tokenizer.enable_truncation(length)
        ids = self.tokenizer.encode(text).ids
        self.tokenizer.no_truncation()
        return ids

    def decode(self, ids, skip):
        return self.tokenizer.decode(ids, skip_special_tokens=skip)


def folder(base, name, files, **changes):
    """Makes a model folder out of links, with some flags changed."""
    path = os.path.join(base, name)
    os.makedirs(path)
    for target, source in files.items():
        if target == "tokenizer_config.json" and changes:
            with open(source, encoding="utf-8") as file:
                config = json.load(file)
            config.update(changes)
            with open(os.path.join(path, target), "w", encoding="utf-8") as file:
                json.dump(config, file)
        elif os.path.exists(source):
            os.symlink(os.path.abspath(source), os.path.join(path, target))
    return path


def set_ups(base, fetched):
    from transformers import AutoTokenizer, ByT5Tokenizer, LlamaTokenizer, T5Tokenizer

    def data(*parts):
        return os.path.join(DATA, *parts)

    t5 = data("t5", "spiece.model")
    mt5 = os.path.join(fetched, "mt5", "spiece.model")
    umt5 = os.path.join(fetched, "umt5", "spiece.model")
    pile = os.path.join(fetched, "pile-t5", "tokenizer.model")
    result = []

    def raw(name, path):
        result.append(SetUp(name, ["raw", path], lambda: RawReference(path)))

    def bare(name, path, legacy, extra):
        result.append(SetUp(
            name, ["spiece", path, str(legacy).lower(), str(extra)],
            lambda: SlowReference(T5Tokenizer(path, legacy=legacy, extra_ids=extra))))

    def published(name, cls, files, **changes):
        path = folder(base, name, files, **changes)
        result.append(SetUp(
            name, ["dir", path, "slow"], lambda: SlowReference(cls.from_pretrained(path))))

    def fast(name, path):
        result.append(SetUp(name, ["file", path], lambda: FastReference(path)))

    def auto(name, files, **changes):
        path = folder(base, name, files, **changes)
        result.append(SetUp(
            name, ["dir", path, "auto"],
            lambda: SlowReference(AutoTokenizer.from_pretrained(path))))

    def flags(kind, *more):
        names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
        return {name: data(*kind, name) for name in names} | dict(more)

    raw("sp_t5", t5)
    raw("sp_mt5", mt5)
    raw("sp_llama", pile)
    raw("sp_umt5", umt5)
    for name in ("seqio_sentencepiece", "test_model", "test_ja_model"):
        raw("sp_" + name, data("spm-small", name + ".model"))
    bare("t5_slow_legacy", t5, True, 100)
    bare("t5_slow", t5, False, 100)
    bare("mt5_slow_legacy", mt5, True, 0)
    bare("mt5_slow", mt5, False, 0)
    bare("umt5_bare", umt5, False, 300)
    result.append(SetUp("byt5", ["bytes", "125"], lambda: SlowReference(ByT5Tokenizer())))
    published("byt5_published", ByT5Tokenizer, flags(["byt5"]))
    for name in ("flux", "sd3", "cogvideox"):
        published("t5_slow_" + name, T5Tokenizer, flags(["t5", name], ("spiece.model", t5)))
    published("t5_slow_flux_legacy_false", T5Tokenizer,
              flags(["t5", "flux"], ("spiece.model", t5)), legacy=False)
    published("mt5_slow_hunyuan", T5Tokenizer, flags(["mt5"], ("spiece.model", mt5)))
    published("umt5_slow_legacy", T5Tokenizer, flags(["umt5"], ("spiece.model", umt5)))
    published("umt5_slow", T5Tokenizer, flags(["umt5"], ("spiece.model", umt5)), legacy=False)
    published("pile_t5_slow", LlamaTokenizer, flags(["pile-t5"], ("tokenizer.model", pile)))
    published("pile_t5_slow_legacy", LlamaTokenizer,
              flags(["pile-t5"], ("tokenizer.model", pile)), legacy=True, add_bos_token=True)
    for name in ("flan", "flux", "sd3"):
        path = os.path.join(fetched, "t5", name, "tokenizer.json")
        if os.path.exists(path):
            fast("t5_fast_" + name, path)
            if name != "flan":
                auto("t5_auto_" + name, flags(["t5", name], ("spiece.model", t5),
                                              ("tokenizer.json", path)))
    path = os.path.join(fetched, "umt5", "tokenizer.json")
    if os.path.exists(path):
        fast("umt5_fast", path)
        auto("umt5_auto", flags(["umt5"], ("tokenizer.json", path)))
    return result


def random_text(rng, charset):
    """One text of a random kind; `charset` holds every assigned character."""
    kind = rng.randrange(9)
    length = rng.choice((1, 2, 3, 5, 8, 13, 30, 80))
    if kind == 0:
        parts = [rng.choice(charset) for _ in range(length)]
    elif kind == 1:
        block = rng.randrange(0, 0x3100)
        parts = [chr(block + rng.randrange(64)) for _ in range(length)]
    elif kind == 2:
        parts = [chr(rng.randrange(0x110000)) for _ in range(length)]
    elif kind == 3:
        parts = [rng.choice(SENTINELS + SPECIAL + SPACES + ["a", ".", ",", "I"])
                 for _ in range(length)]
    elif kind == 4:
        parts = [rng.choice("ab") + rng.choice(COMBINING + SPACES + [""]) for _ in range(length)]
    elif kind == 5:
        parts = [rng.choice(WORDS) + rng.choice([" ", " ", "", "  ", "\n", rng.choice(SPACES)])
                 for _ in range(length)]
    elif kind == 6:
        unit = "".join(rng.choice(WORDS + SPACES + SENTINELS + list("abc")) for _ in range(rng.randrange(1, 3)))
        parts = [unit] * rng.choice((2, 10, 100, 400))
    elif kind == 7:
        text = rng.choice(SENTINELS + SPECIAL)
        parts = [text[:rng.randrange(len(text) + 1)], rng.choice(SPACES + [""]),
                 rng.choice(WORDS), rng.choice(SENTINELS), rng.choice(SPACES + [""]), text[1:]]
    else:
        text = " ".join(rng.choice(WORDS) for _ in range(length))
        text = unicodedata.normalize(rng.choice(("NFC", "NFD", "NFKC", "NFKD")), text)
        parts = list(text)
        for _ in range(rng.randrange(4)):
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(SENTINELS + SPACES + COMBINING))
    text = "".join(part for part in parts)
    return "".join(c for c in text if not 0xD800 <= ord(c) < 0xE000)


def real_texts(paths):
    for path in paths:
        with open(path, encoding="utf-8", newline="") as file:
            for line in file.read().split("\n"):
                yield line


def compare(set_up, binary, texts, rng, report):
    """Returns the number of comparisons and of disagreements."""
    reference = set_up.reference()
    questions, expected = [], []
    for text in texts:
        ids = reference.encode(text)
        questions.append(text)
        expected.append(ids)
        extra = rng.random()
        if extra < 0.1:
            length = rng.randrange(3, 12)
            questions.append({"text": text, "max_length": length})
            expected.append(reference.truncated(text, length))
        elif extra < 0.3:
            skip = extra < 0.2
            questions.append({"ids": ids, "skip": skip})
            expected.append(reference.decode(ids, skip))
        elif extra < 0.35:
            ids = [rng.choice(ids + [rng.randrange(380)]) for _ in range(rng.randrange(1, 8))]
            try:
                text = reference.decode(ids, False)
            except Exception:  # ids that the reference has no text for
                continue
            questions.append({"ids": ids, "skip": False})
            expected.append(text)
    process = subprocess.run(
        [binary, *set_up.arguments], input="\n".join(map(json.dumps, questions)) + "\n",
        capture_output=True, text=True, encoding="utf-8")
    answers = [json.loads(line) for line in process.stdout.split("\n")[:-1]]
    if len(answers) != len(questions):
        print(f"{set_up.name}: the binary stopped: {process.stderr[-2000:]}")
        return len(questions), len(questions)
    wrong = 0
    for question, want, found in zip(questions, expected, answers):
        if want != found:
            wrong += 1
            if wrong <= report:
                print(f"{set_up.name}: {question!r}\n   expected {want}\n   found    {found}")
    return len(questions), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", required=True)
    parser.add_argument("--tokenizers", default=os.path.join(ROOT, ".cache", "tokenizers"))
    parser.add_argument("--set-ups", nargs="*")
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--random", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=3)
    arguments = parser.parse_args()

    import transformers

    transformers.logging.set_verbosity_error()
    # An unbounded default length makes every long text a warning.
    import warnings

    warnings.filterwarnings("ignore")
    charset = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs")]
    total = total_wrong = 0
    with tempfile.TemporaryDirectory() as base:
        for set_up in set_ups(base, arguments.tokenizers):
            if arguments.set_ups and set_up.name not in arguments.set_ups:
                continue
            rng = random.Random(f"{arguments.seed} {set_up.name}")
            texts = list(real_texts(arguments.text))
            texts += [random_text(rng, charset) for _ in range(arguments.random)]
            count, wrong = compare(set_up, arguments.binary, texts, rng, arguments.report)
            print(f"{set_up.name}: {count} comparisons, {wrong} disagreements", flush=True)
            total += count
            total_wrong += wrong
    print(f"total: {total} comparisons, {total_wrong} disagreements")
    return 1 if total_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
