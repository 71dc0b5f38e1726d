#!/usr/bin/env python3
"""Holds docs/presets.md to diffusers: runs the pipelines' own functions with a stand-in
tokenizer and encoder, and compares what they did with what the page says.

    python tools/check_presets.py docs/presets.md

Needs diffusers (read with 0.42.1), torch, transformers and ftfy; no weights. Not checked:
the tokenizer class, and what the image model looks at.
"""

import importlib
import inspect
import sys
import types

import torch

from make_clean_goldens import CLEANINGS

PROMPTS = ['  Say &amp;lt; "OPEN Now"  it', "A “x” y z Q &eacute; more"]

T5, PROMPT, GLYPH = "_get_t5_prompt_embeds", "encode_prompt", "_get_byt5_prompt_embeds"

# Preset, module under diffusers.pipelines, class, function.
PIPELINES = [
    ("allegro", "allegro.pipeline_allegro", "AllegroPipeline", PROMPT),
    ("auraflow", "aura_flow.pipeline_aura_flow", "AuraFlowPipeline", PROMPT),
    ("bria", "bria.pipeline_bria", "BriaPipeline", T5),
    ("chroma", "chroma.pipeline_chroma", "ChromaPipeline", T5),
    ("cogvideox", "cogvideo.pipeline_cogvideox", "CogVideoXPipeline", T5),
    ("cogvideox", "consisid.pipeline_consisid", "ConsisIDPipeline", T5),
    ("cogview3", "cogview3.pipeline_cogview3plus", "CogView3PlusPipeline", T5),
    ("cosmos", "cosmos.pipeline_cosmos_text2world", "CosmosTextToWorldPipeline", T5),
    ("cosmos", "cosmos.pipeline_cosmos2_text2image", "Cosmos2TextToImagePipeline", T5),
    ("flux", "flux.pipeline_flux", "FluxPipeline", T5),
    ("hidream", "hidream_image.pipeline_hidream_image", "HiDreamImagePipeline", T5),
    ("hunyuan", "hunyuandit.pipeline_hunyuandit", "HunyuanDiTPipeline", PROMPT),
    ("hunyuanimage2.1", "hunyuan_image.pipeline_hunyuanimage", "HunyuanImagePipeline", GLYPH),
    ("hunyuanvideo1.5", "hunyuan_video1_5.pipeline_hunyuan_video1_5",
     "HunyuanVideo15Pipeline", GLYPH),
    ("if", "deepfloyd_if.pipeline_if", "IFPipeline", PROMPT),
    ("kandinsky3", "kandinsky3.pipeline_kandinsky3", "Kandinsky3Pipeline", PROMPT),
    ("latte", "latte.pipeline_latte", "LattePipeline", PROMPT),
    ("ltx", "ltx.pipeline_ltx", "LTXPipeline", T5),
    ("ltx-condition", "ltx.pipeline_ltx_condition", "LTXConditionPipeline", T5),
    ("mochi", "mochi.pipeline_mochi", "MochiPipeline", T5),
    ("pixart-alpha", "pixart_alpha.pipeline_pixart_alpha", "PixArtAlphaPipeline", PROMPT),
    ("pixart-sigma", "pixart_alpha.pipeline_pixart_sigma", "PixArtSigmaPipeline", PROMPT),
    ("sd3", "stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline", T5),
    ("stable-audio", "stable_audio.pipeline_stable_audio", "StableAudioPipeline", PROMPT),
    ("wan", "wan.pipeline_wan", "WanPipeline", T5),
    ("wan", "skyreels_v2.pipeline_skyreels_v2", "SkyReelsV2Pipeline", T5),
    ("wan", "helios.pipeline_helios", "HeliosPipeline", T5),
    ("wan", "chronoedit.pipeline_chronoedit", "ChronoEditPipeline", T5),
    ("wan", "lucy.pipeline_lucy_edit", "LucyEditPipeline", T5),
    ("wan", "anyflow.pipeline_anyflow", "AnyFlowPipeline", T5),
]
# Their functions return a mask that `__call__` does not use.
UNUSED_MASK = {"AuraFlowPipeline", "HeliosPipeline"}


class Fields(dict):
    """A tokenizer's result: fields by name or key."""

    __getattr__ = dict.__getitem__

    def to(self, _device):
        return self


class Tokenizer:
    """A token a word, and the end."""

    model_max_length = 128
    pad_token_id = 0

    def __init__(self):
        self.calls = []

    def __call__(self, texts, padding=False, max_length=None, truncation=False, **_):
        texts = [texts] if isinstance(texts, str) else list(texts)
        self.calls.append((texts, padding, max_length, truncation))
        rows = [[3] * len(text.split()) + [1] for text in texts]
        length = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return Fields(input_ids=ids, attention_mask=(ids > 0).long())

    def batch_decode(self, *_):
        return []


class Output(tuple):
    last_hidden_state = property(lambda self: self[0])


class Encoder(torch.nn.Module):
    """Negative values everywhere, so that a zero shows its sign."""

    dtype, device = torch.float32, "cpu"
    config = types.SimpleNamespace(d_model=4, model_type="t5")

    def __init__(self):
        super().__init__()
        self.masked = []

    def forward(self, input_ids=None, attention_mask=None, **_):
        self.masked.append(attention_mask is not None)
        return Output((-1 - torch.rand(*input_ids.shape, 4),))


class Stand:
    """Stands in for a pipeline object."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.tokenizer = self.tokenizer_2 = self.tokenizer_3 = Tokenizer()
        self.text_encoder = self.text_encoder_2 = self.text_encoder_3 = Encoder()
        self.transformer = types.SimpleNamespace(dtype=torch.float32)
        self.config = types.SimpleNamespace(force_zeros_for_empty_prompt=False)
        self._execution_device = torch.device("cpu")
        self.tokenizer_max_length = 77

    def projection_model(self, text_hidden_states):
        return types.SimpleNamespace(text_hidden_states=text_hidden_states)

    def __getattr__(self, name):
        member = inspect.getattr_static(self.pipeline, name)
        if isinstance(member, staticmethod):
            return member.__func__
        return types.MethodType(member, self)


def run(stand, module, function):
    """Calls the pipeline's function as its `__call__` would."""
    function = getattr(stand, function)
    takes = inspect.signature(function).parameters
    offered = {
        "prompt": PROMPTS, "device": torch.device("cpu"), "dtype": torch.float32,
        "do_classifier_free_guidance": False, "text_encoder_index": 1, "_cut_context": True,
        "tokenizer": stand.tokenizer, "text_encoder": stand.text_encoder,
    }
    call = inspect.signature(inspect.unwrap(stand.pipeline.__call__)).parameters
    if "max_sequence_length" in call:
        offered["max_sequence_length"] = call["max_sequence_length"].default
    if hasattr(module, "extract_glyph_text"):
        offered["prompt"] = module.extract_glyph_text(PROMPTS[0])
    with torch.no_grad():
        result = function(**{name: offered[name] for name in takes if name in offered})
    return result if isinstance(result, tuple) else (result,)


def observed(stand, result, used_mask):
    """What the page should say, column by column."""
    embeds = result[0]
    calls = [call for call in stand.tokenizer.calls if call[1] != "longest"]
    texts = [text for call in calls for text in call[0]]
    tokens = [len(text.split()) + 1 for text in texts]
    pads = torch.cat([row[count:].flatten() for row, count in zip(embeds, tokens)])
    filled = all(call[1] == "max_length" for call in calls)
    if (pads != 0).any():
        tail = "computed, kept"
    elif torch.signbit(pads).all():
        tail = "zero (times mask)"
    else:
        tail = "zero (set)" if filled else "zero (appended)"
    masks = [item for item in result[1:] if torch.is_tensor(item) and item.dim() == 2]
    mask = "none"
    if masks and used_mask:
        extra = {int(row.sum()) - count for row, count in zip(masks[0], tokens)}
        mask = {(0,): "tokens", (1,): "tokens and first padding"}[tuple(extra)]
    lengths = {call[2] for call in calls}
    assert len(lengths) == 1 and all(call[3] for call in calls)
    full = embeds.shape[1] == max(lengths)
    return texts, {
        "length": str(max(lengths)),
        "filled up": "yes" if filled else "no",
        "T5 mask": "yes" if all(stand.text_encoder.masked) else "no",
        "T5 at padding": tail,
        "positions out": "all" if full else f"longest row + {embeds.shape[1] - max(tokens)}",
        "mask out": mask,
    }


def page(path):
    lines = [line for line in open(path, encoding="utf-8") if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    head = next(row for row in cells if row[0] == "preset")
    return {row[0].strip("`"): dict(zip(head, row)) for row in cells if len(row) == len(head)}


def main():
    presets = page(sys.argv[1])
    wrong = 0
    for name, path, cls, function in PIPELINES:
        module = importlib.import_module(f"diffusers.pipelines.{path}")
        stand = Stand(getattr(module, cls))
        result = run(stand, module, function)
        texts, found = observed(stand, result, cls not in UNUSED_MASK)
        says = presets[name]
        clean = CLEANINGS.get(says["cleaning"], lambda text: text)
        differs = [key for key, value in found.items() if not says[key].startswith(value)
                   and not (key == "positions out" and value == "all" and "else all" in says[key])]
        if texts != [clean(prompt) for prompt in PROMPTS][: len(texts)]:
            differs.append("cleaning")
        wrong += bool(differs)
        print("DIFFERS" if differs else "ok", name, cls, {key: found.get(key) for key in differs})
    missing = set(presets) - {name for name, *_ in PIPELINES} - {"preset", "---"}
    print("not checked:", ", ".join(sorted(missing)) or "none")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
