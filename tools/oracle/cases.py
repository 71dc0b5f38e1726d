"""What is compared: the table of models, the table of batches, and which model meets which batch.

Pure data and NumPy, so the table can be read and listed without torch.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "testdata" / "configs"

Config = dict[str, Any]
Storage = Literal["f32", "f16", "bf16"]
Layout = Literal["single", "sharded", "bin"]
Contents = Literal["encoder", "full"]

SHARED = ("shared.weight",)
SHARED_AND_ENCODER = ("shared.weight", "encoder.embed_tokens.weight")
ENCODER_ONLY = ("encoder.embed_tokens.weight",)
DECODER_ONLY = ("decoder.embed_tokens.weight",)


# --- batches -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One input: ids and at most one of a mask and document ids."""

    name: str
    contract: str
    input_ids: np.ndarray
    attention_mask: np.ndarray | None = None
    document_ids: np.ndarray | None = None

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors of the file that ``quintic encode --input-ids`` reads."""
        named = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "document_ids": self.document_ids,
        }
        return {name: np.ascontiguousarray(value) for name, value in named.items() if value is not None}

    def allowed(self) -> np.ndarray | None:
        """Which key each query may read: bool ``[rows, len, len]``, or None for all."""
        if self.document_ids is not None:
            same = self.document_ids[:, :, None] == self.document_ids[:, None, :]
            return same & (self.document_ids >= 0)[:, None, :]
        if self.attention_mask is None:
            return None
        mask = self.attention_mask != 0
        if mask.ndim == 3:
            return mask
        return np.broadcast_to(mask[:, None, :], (*mask.shape, mask.shape[1]))

    def real(self) -> np.ndarray:
        """Which positions hold a token rather than padding: bool ``[rows, len]``.

        A 2-D mask says so itself. In a 3-D mask a real position is one that reads something.
        Padding belongs to a negative document.
        """
        if self.document_ids is not None:
            return self.document_ids >= 0
        if self.attention_mask is None:
            return np.ones(self.input_ids.shape, dtype=bool)
        mask = self.attention_mask != 0
        return mask if mask.ndim == 2 else mask.any(axis=2)


Builder = Callable[[np.random.Generator, Config], Batch]


def _ids(rng: np.random.Generator, config: Config, rows: int, length: int) -> np.ndarray:
    """Random ids, none of them padding, each row closed by the config's end of sequence."""
    pad, eos = config.get("pad_token_id", 0), config.get("eos_token_id", 1)
    choices = np.array([i for i in range(config["vocab_size"]) if i not in (pad, eos)])
    ids = rng.choice(choices, size=(rows, length)).astype(np.int64)
    ids[:, -1] = eos
    return ids


def _unmasked(rows: int, length: int) -> Builder:
    def build(rng: np.random.Generator, config: Config) -> Batch:
        return Batch(f"len_{length}", "none", _ids(rng, config, rows, length))

    return build


def _padded(name: str, lengths: tuple[int, ...], side: str) -> Builder:
    """Rows of the given lengths, padded on one side to the longest (or to one more, if all are equal)."""

    def build(rng: np.random.Generator, config: Config) -> Batch:
        width = max(lengths)
        ids = np.full((len(lengths), width), config.get("pad_token_id", 0), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, length in enumerate(lengths):
            where = slice(0, length) if side == "right" else slice(width - length, width)
            if length:
                ids[row, where] = _ids(rng, config, 1, length)[0]
            mask[row, where] = 1
        return Batch(name, "2-D", ids, attention_mask=mask)

    return build


def _all_ones(rng: np.random.Generator, config: Config) -> Batch:
    ids = _ids(rng, config, 3, 21)
    return Batch("all_ones", "2-D", ids, attention_mask=np.ones_like(ids))


def _holes(rows: int, length: int) -> Builder:
    """Masked positions in the middle of rows; what stands there is a real id, not padding."""

    def build(rng: np.random.Generator, config: Config) -> Batch:
        ids = _ids(rng, config, rows, length)
        mask = (rng.random(ids.shape) < 0.6).astype(np.int64)
        mask[0, :2], mask[-1, -3:] = 0, 0
        mask[rows // 2, length // 3 : 2 * length // 3] = 0
        mask[:, 5] = 1
        return Batch("holes", "2-D", ids, attention_mask=mask)

    return build


def _packed(width: int, *rows: tuple[int, ...]) -> Builder:
    """Several texts in a row, each reading itself; positions at the end read nothing and are read by nothing."""

    def build(rng: np.random.Generator, config: Config) -> Batch:
        ids = np.full((len(rows), width), config.get("pad_token_id", 0), dtype=np.int64)
        mask = np.zeros((len(rows), width, width), dtype=np.int64)
        for row, lengths in enumerate(rows):
            start = 0
            for length in lengths:
                end = start + length
                ids[row, start:end] = _ids(rng, config, 1, length)[0]
                mask[row, start:end, start:end] = 1
                start = end
        return Batch("packed_3d", "3-D", ids, attention_mask=mask)

    return build


def _free_form(rows: int, length: int) -> Builder:
    """A 3-D mask without any structure, not symmetric, with queries that read nothing."""

    def build(rng: np.random.Generator, config: Config) -> Batch:
        ids = _ids(rng, config, rows, length)
        mask = (rng.random((rows, length, length)) < 0.4).astype(np.int64)
        mask[0, 4] = 0
        mask[0, :, 9] = 0
        mask[-1, -3:] = 0
        return Batch("free_3d", "3-D", ids, attention_mask=mask)

    return build


def _documents(length: int, padding: bool = False) -> Builder:
    """Document ids: in runs, interleaved, in falling order and far apart, all one; perhaps with padding."""

    def build(rng: np.random.Generator, config: Config) -> Batch:
        ids = _ids(rng, config, 4, length)
        runs = np.sort(rng.integers(0, 4, size=length))
        interleaved = rng.integers(0, 3, size=length)
        falling = -np.sort(-rng.choice([900_000_000_000, 7, 2], size=length))
        documents = np.stack([runs, interleaved, falling, np.full(length, 5)]).astype(np.int64)
        if padding:
            documents[0, -length // 3 :], documents[1, :4], documents[2, 2::7] = -1, -1, -100
        return Batch("documents", "documents", ids, document_ids=documents)

    return build


_BUILDERS: dict[str, Builder] = {
    "ragged": _padded("ragged", (1, 2, 7, 16, 17, 33, 40, 40), "right"),
    "ragged_long": _padded("ragged_long", (600, 3, 129, 256), "right"),
    "padded_far": _padded("padded_far", (64, 9, 30, 0), "right"),
    "left": _padded("left", (33, 1, 12, 20, 33), "left"),
    "empty_row": _padded("empty_row", (11, 0, 26), "right"),
    "all_ones": _all_ones,
    "holes": _holes(4, 45),
    "packed_3d": _packed(40, (7, 12, 1, 20), (40,), (3, 3, 3)),
    "free_3d": _free_form(3, 37),
    "documents": _documents(48),
    "documents_padded": _documents(50, padding=True),
}

_ROWS_OF_LENGTH = {1: 24, 2: 12, 3: 8}

MASKS = tuple(_BUILDERS)
EVERYDAY = ("len_1", "len_33", "ragged")
DISTANCES = ("len_1", "ragged", "len_300", "ragged_long")
CROWDED = ("ragged", "len_300", "holes")
"""For models with outliers, whose largest error sits in one channel: many tokens make it less of a draw."""
LENGTHS = tuple(
    f"len_{n}" for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 511, 600)
)
EVERYTHING = LENGTHS + MASKS


def make_batch(name: str, config: Config, seed: int) -> Batch:
    """Builds a batch by name for a model; the same arguments give the same batch."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.startswith("len_"):
        length = int(name.removeprefix("len_"))
        return _unmasked(_ROWS_OF_LENGTH.get(length, 2), length)(rng, config)
    return _BUILDERS[name](rng, config)


# --- models ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A random checkpoint: its config.json and how its tensors are stored."""

    name: str
    family: str
    config: Config
    stored: Storage = "f32"
    layout: Layout = "single"
    contents: Contents = "encoder"
    embeddings: tuple[str, ...] = SHARED
    dead_cross_bias: bool = False
    outliers: bool = False
    batches: tuple[str, ...] = EVERYDAY

    @property
    def seed(self) -> int:
        """Depends on the name alone, so that adding a model changes no other."""
        return zlib.crc32(self.name.encode())

    @property
    def is_umt5(self) -> bool:
        """Whether every block has its own bias table; the published UMT5 config has no ``model_type``."""
        named = [str(self.config.get("model_type", "")), *self.config.get("architectures", [])]
        return any(name.lower().startswith("umt5") for name in named)

    @property
    def oracle(self) -> str:
        """The transformers class that runs this model's encoder."""
        if self.is_umt5:
            return "UMT5EncoderModel"
        return "MT5EncoderModel" if self.config.get("model_type") == "mt5" else "T5EncoderModel"

    @property
    def is_gated(self) -> bool:
        """Whether the stored feed-forward has two input matrices; ``is_gated_act``, if there, has the last word."""
        if "is_gated_act" in self.config:
            return bool(self.config["is_gated_act"])
        default = "relu" if self.oracle == "T5EncoderModel" else "gated-gelu"
        return str(self.config.get("feed_forward_proj", default)).startswith("gated")

    def batch(self, name: str) -> Batch:
        """One of this model's batches."""
        return make_batch(name, self.config, self.seed)


def real_config(name: str) -> Config:
    """A published config.json, as kept in ``testdata/configs``."""
    return json.loads((CONFIGS / f"{name}.json").read_text())


def shrink(config: Config, layers: int = 2) -> Config:
    """Scales a published config down; every key, flag and oddity that is no size stays.

    ``d_kv`` stays too, and so does the order of ``num_heads * d_kv`` and ``d_model``.
    """
    heads = 3 if config["num_heads"] % 3 == 0 else 2
    inner, real_inner = heads * config["d_kv"], config["num_heads"] * config["d_kv"]
    if real_inner == config["d_model"]:
        d_model = inner
    elif real_inner > config["d_model"]:
        d_model = inner // 2
    else:
        d_model = inner * 4 // 3
    widening = min(4.0, config["d_ff"] / config["d_model"])
    vocab = config["vocab_size"]
    small = dict(config)
    small["num_heads"] = heads
    small["d_model"] = d_model
    small["d_ff"] = round(d_model * widening)
    small["vocab_size"] = vocab if vocab <= 384 else 128 + vocab % 128
    small["num_layers"] = layers
    if "num_decoder_layers" in config:
        same = config["num_decoder_layers"] == config["num_layers"]
        small["num_decoder_layers"] = layers if same else 1
    return small


def _published(
    file: str, family: str, contents: Contents = "full", *, changes: Config | None = None, **options: Any
) -> Model:
    config = {**shrink(real_config(file)), **(changes or {})}
    return Model(f"published-{file}", family, config, contents=contents, **options)


PUBLISHED: tuple[Model, ...] = (
    _published("google-t5__t5-small", "T5 v1.0", dead_cross_bias=True, embeddings=SHARED, batches=EVERYTHING),
    _published("google-t5__t5-small_first", "T5 v1.0", layout="bin", embeddings=SHARED_AND_ENCODER,
               dead_cross_bias=True),
    _published("google-t5__t5-base_first", "T5 v1.0", layout="bin"),
    _published("t5-small_finetune_vocab32101", "T5 v1.0"),
    _published("comfyui__t5_config_base", "T5 v1.0", "encoder", stored="f16"),
    _published("comfyui__t5_old_config_xxl", "T5 v1.0", "encoder", stored="f16", batches=(*EVERYDAY, "holes")),
    _published("t5-v1_1-xxl", "T5 v1.1", layout="sharded", batches=EVERYTHING),
    _published("xenova__t5-v1_1-small", "T5 v1.1", batches=(*EVERYDAY, "left")),
    _published("laituan245__molt5-small", "T5 v1.1", layout="bin"),
    _published("sd3_text_encoder_3_t5-v1_1-xxl", "T5 v1.1", "encoder", stored="f16", layout="sharded",
               embeddings=SHARED_AND_ENCODER, batches=(*EVERYDAY, "len_257")),
    _published("flux1-dev_text_encoder_2_t5-v1_1-xxl", "T5 v1.1", "encoder", stored="bf16", layout="sharded",
               batches=(*EVERYDAY, "len_511")),
    _published("chroma_text_encoder_t5-xxl", "T5 v1.1", "encoder", stored="bf16",
               embeddings=ENCODER_ONLY, batches=(*EVERYDAY, "padded_far")),
    _published("google__flan-t5-large", "FLAN", batches=(*EVERYDAY, "holes", "packed_3d")),
    _published("google__flan-t5-xxl", "FLAN", layout="sharded"),
    _published("google__flan-t5-xxl_18f1ad8_odd", "FLAN", layout="sharded"),
    _published("flan-t5-small_saved_by_transformers_5", "FLAN"),
    _published("grammarly__coedit-large", "FLAN", stored="bf16"),
    _published("google__mt5-small_copy", "mT5", batches=(*EVERYDAY, "empty_row", "documents")),
    _published("mt5-xl_diffsynth", "mT5", layout="bin"),
    _published("hunyuandit_text_encoder_2_mt5-xl", "mT5", "encoder", stored="f16"),
    _published("google__umt5-small_84afba6", "UMT5", batches=EVERYTHING),
    _published("comfyui__umt5_config_base", "UMT5", "encoder", stored="f16"),
    _published("comfyui__umt5_config_xxl", "UMT5", "encoder", stored="bf16"),
    _published("wan2.1_text_encoder_umt5-xxl", "UMT5", "encoder", stored="bf16", layout="sharded",
               batches=(*EVERYDAY, "ragged_long")),
    _published("eleutherai__pile-t5-base_copy", "Pile-T5", batches=(*EVERYDAY, "left", "free_3d")),
    _published("comfyui__t5_pile_config_xl", "Pile-T5", "encoder", stored="f16"),
    _published("google__byt5-small", "ByT5", batches=(*EVERYDAY, "documents_padded", "ragged_long")),
    _published("comfyui__byt5_config_small_glyph", "ByT5", "encoder", stored="bf16"),
    _published("google__madlad400-3b-mt", "MADLAD", embeddings=DECODER_ONLY, batches=(*EVERYDAY, "left")),
    _published("google__madlad400-10b-mt", "MADLAD", layout="sharded", embeddings=DECODER_ONLY, stored="bf16"),
    _published("rostlab__ProstT5", "ProtT5", batches=(*EVERYDAY, "packed_3d")),
    _published("rostlab__prot_t5_xl_bfd", "ProtT5", layout="bin"),
    _published("rostlab__prot_t5_xl_half_uniref50-enc", "ProtT5", "encoder", stored="f16", layout="bin"),
    _published("amazon__chronos-t5-mini", "Chronos"),
    _published("chronos-t5-tiny_copy", "Chronos", stored="bf16"),
)


def _plain(**changes: Any) -> Config:
    """A small v1.1 config that the odd shapes start from; None as a value removes a key."""
    config: Config = {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 160,
        "num_heads": 4,
        "num_layers": 3,
        "num_decoder_layers": 3,
        "vocab_size": 120,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "tie_word_embeddings": False,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    config.update(changes)
    return {key: value for key, value in config.items() if value is not None}


def _shape(name: str, *, batches: tuple[str, ...] = EVERYDAY, outliers: bool = False,
           stored: Storage = "f32", **changes: Any) -> Model:
    return Model(f"shape-{name}", "odd shapes", _plain(**changes), batches=batches, outliers=outliers, stored=stored)


_UMT5: Config = {"model_type": "umt5", "architectures": ["UMT5EncoderModel"]}

SHAPES: tuple[Model, ...] = (
    _shape("one-layer", num_layers=1),
    _shape("one-head", num_heads=1),
    _shape("three-heads", num_heads=3, d_kv=16),
    _shape("five-heads-of-12", num_heads=5, d_kv=12),
    _shape("d_kv-16", d_kv=16),
    _shape("d_kv-64", d_kv=64, num_heads=2, batches=(*EVERYDAY, "packed_3d")),
    _shape("d_kv-128", d_kv=128, num_heads=2, batches=(*EVERYDAY, "packed_3d")),
    _shape("d_kv-80", d_kv=80, num_heads=2),
    _shape("inner-below-d_model", d_model=96, num_heads=2, d_kv=16),
    _shape("inner-above-d_model", d_model=32, num_heads=4, d_kv=64),
    _shape("d_model-40", d_model=40, num_heads=3, d_kv=8, d_ff=100),
    _shape("d_model-37", d_model=37, num_heads=3, d_kv=7, d_ff=51, vocab_size=77),
    _shape("d_ff-97", d_ff=97),
    _shape("d_ff-24", d_ff=24),
    _shape("d_ff-1", d_ff=1),
    _shape("wide-ff", d_model=48, d_ff=3072, num_layers=2),
    _shape("wide-model", d_model=1024, num_heads=3, d_kv=64, d_ff=512, num_layers=1),
    _shape("deep", num_layers=12),
    _shape("relu", feed_forward_proj="relu"),
    _shape("gated-relu", feed_forward_proj="gated-relu"),
    _shape("gelu", feed_forward_proj="gelu"),
    _shape("gated-silu", feed_forward_proj="gated-silu"),
    _shape("silu", feed_forward_proj="silu"),
    _shape("gelu_new", feed_forward_proj="gelu_new"),
    _shape("gated-quick_gelu", feed_forward_proj="gated-quick_gelu"),
    _shape("gated-sigmoid", feed_forward_proj="gated-sigmoid"),
    _shape("gelu_fast", feed_forward_proj="gelu_fast"),
    _shape("tanh", feed_forward_proj="tanh"),
    _shape("linear", feed_forward_proj="linear"),
    _shape("dense_act_fn-wins", feed_forward_proj="gated-gelu", dense_act_fn="silu", is_gated_act=False),
    _shape("mt5-no-proj", model_type="mt5", architectures=["MT5EncoderModel"], feed_forward_proj=None),
    _shape("umt5", **_UMT5, batches=(*EVERYDAY, *MASKS[3:])),
    _shape("umt5-relu", **_UMT5, feed_forward_proj="relu"),
    _shape("umt5-no-proj", **_UMT5, feed_forward_proj=None),
    _shape("buckets-64", relative_attention_num_buckets=64, batches=DISTANCES),
    _shape("buckets-8", relative_attention_num_buckets=8, relative_attention_max_distance=20, batches=DISTANCES),
    _shape("distance-256", relative_attention_max_distance=256, batches=DISTANCES),
    _shape("distance-100", relative_attention_max_distance=100, batches=DISTANCES),
    _shape("buckets-64-distance-512", **_UMT5, relative_attention_num_buckets=64,
           relative_attention_max_distance=512, batches=DISTANCES),
    _shape("distance-default", relative_attention_max_distance=None, batches=DISTANCES),
    _shape("eps-1e-5", layer_norm_epsilon=1e-5),
    _shape("eps-1e-2", layer_norm_epsilon=1e-2),
    _shape("eps-1e-12", layer_norm_epsilon=1e-12),
    _shape("outliers", outliers=True, num_layers=4, batches=CROWDED),
    _shape("outliers-f16", outliers=True, stored="f16", num_layers=4, batches=CROWDED),
    _shape("outliers-umt5", **_UMT5, outliers=True, num_layers=4, batches=CROWDED),
)

MODELS: tuple[Model, ...] = PUBLISHED + SHAPES


def cases() -> Iterator[tuple[Model, str]]:
    """Every pair of a model and the name of a batch, models together."""
    for model in MODELS:
        for batch in model.batches:
            yield model, batch


# --- goldens -----------------------------------------------------------------------------------


def _golden(name: str, batches: tuple[str, ...], *, stored: Storage = "bf16", contents: Contents = "encoder",
            embeddings: tuple[str, ...] = SHARED, dead_cross_bias: bool = False,
            outliers: bool = False, layout: Layout = "single", **changes: Any) -> Model:
    sizes = {"d_model": 32, "d_kv": 8, "num_heads": 3, "d_ff": 40, "num_layers": 2, "num_decoder_layers": 1,
             "vocab_size": 64}
    return Model(name, "golden", _plain(**{**sizes, **changes}), stored=stored, contents=contents,
                 embeddings=embeddings, dead_cross_bias=dead_cross_bias, outliers=outliers, layout=layout,
                 batches=batches)


GOLDENS: tuple[Model, ...] = (
    _golden("t5-v1_0", ("g_ragged", "g_len_1"), contents="full", stored="f32", dead_cross_bias=True,
            architectures=["T5WithLMHeadModel"], feed_forward_proj=None, num_decoder_layers=None,
            tie_word_embeddings=None, num_layers=1, relative_attention_max_distance=None),
    _golden("t5-v1_1", ("g_ragged", "g_left", "g_holes", "g_empty_row", "g_packed_3d", "g_free_3d", "g_documents")),
    _golden("flan-18f1ad8", ("g_ragged",), feed_forward_proj="gelu", dense_act_fn="gelu", is_gated_act=True,
            decoder_start_token_id=None),
    _golden("flux", ("g_len_40",), stored="f16", feed_forward_proj=None, dense_act_fn="gelu_pytorch_tanh",
            is_gated_act=True, relative_attention_max_distance=None, embeddings=ENCODER_ONLY),
    _golden("mt5", ("g_ragged",), model_type="mt5", architectures=["MT5EncoderModel"], layout="sharded"),
    _golden("umt5", ("g_ragged", "g_packed_3d"), model_type=None, architectures=["UMT5ForConditionalGeneration"],
            scalable_attention=True, dense_act_fn="gelu_new", is_gated_act=True, embeddings=SHARED_AND_ENCODER),
    _golden("pile-t5", ("g_left",), **_UMT5, eos_token_id=2, pad_token_id=1),
    _golden("byt5", ("g_ragged",), num_layers=3, contents="full", d_model=36, d_kv=4, d_ff=52),
    _golden("madlad", ("g_ragged",), contents="full", embeddings=DECODER_ONLY, eos_token_id=2, pad_token_id=1,
            d_kv=16),
    _golden("prott5", ("g_ragged",), stored="f16", feed_forward_proj="relu", d_kv=32, num_heads=2, vocab_size=28),
    _golden("far-buckets", ("g_len_150",), relative_attention_num_buckets=64, relative_attention_max_distance=100,
            num_layers=1, d_model=16, d_ff=24, num_heads=2, layer_norm_epsilon=1e-5),
    _golden("gated-silu-outliers", ("g_ragged",), feed_forward_proj="gated-silu", outliers=True),
    _golden("gelu-erf", ("g_ragged",), feed_forward_proj="gelu"),
)

DECODER_GOLDENS: tuple[Model, ...] = (
    _golden("t5-v1_0", (), contents="full", stored="f32", dead_cross_bias=True, num_decoder_layers=3,
            architectures=["T5WithLMHeadModel"], feed_forward_proj=None, tie_word_embeddings=None),
    _golden("t5-v1_1", (), contents="full"),
    _golden("mt5", (), contents="full", model_type="mt5", architectures=["MT5ForConditionalGeneration"]),
    _golden("umt5", (), contents="full", **_UMT5, num_decoder_layers=2),
    _golden("byt5", (), contents="full", num_layers=3, d_model=36, d_kv=4, d_ff=52),
    _golden("madlad", (), contents="full", embeddings=DECODER_ONLY, eos_token_id=2, pad_token_id=1, d_kv=16),
    _golden("far-buckets", (), contents="full", relative_attention_num_buckets=64, num_decoder_layers=1,
            relative_attention_max_distance=100, num_layers=1, d_model=16, d_ff=24, num_heads=2),
)
"""Models whose decoders are compared; every one has both halves."""

_BUILDERS |= {
    "g_ragged": _padded("ragged", (5, 1, 23), "right"),
    "g_left": _padded("left", (17, 4), "left"),
    "g_empty_row": _padded("empty_row", (6, 0), "right"),
    "g_holes": _holes(2, 19),
    "g_packed_3d": _packed(14, (5, 8), (1, 2, 3)),
    "g_free_3d": _free_form(1, 15),
    "g_documents": _documents(11, padding=True),
    "g_len_1": _unmasked(4, 1),
    "g_len_40": _unmasked(1, 40),
    "g_len_150": _unmasked(1, 150),
}
