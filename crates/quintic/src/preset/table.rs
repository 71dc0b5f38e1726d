//! The presets themselves.
//!
//! Read in diffusers 0.42.1. The `source` of each one names the file under
//! `diffusers/pipelines`; lengths are the defaults of `__call__`, which is what a user gets,
//! where those of the helpers differ.

use super::{
    Cleaning, Encoder, MaskOut, OutputLength, Padding, PadsSeen, Preset, Tail, TokenizerClass,
};
use crate::batch::PadRows;

/// T5 without a mask, everything used: where the simplest pipelines agree.
const UNMASKED: Preset = Preset {
    name: "",
    aliases: &[],
    encoder: Encoder::T5,
    cleaning: Cleaning::None,
    tokenizer: TokenizerClass::T5Fast,
    max_length: 0,
    padding: Padding::MaxLength,
    truncation: true,
    attention_mask: false,
    pad_rows: PadRows::Compute,
    tail: Tail::Kept,
    length: OutputLength::Full,
    mask_out: MaskOut::None,
    pads_seen: PadsSeen::All,
    source: "",
    note: "",
};

/// T5 and image model both get the mask; values at padding stay but nobody looks at them.
const MASKED: Preset = Preset {
    attention_mask: true,
    mask_out: MaskOut::Tokens,
    pads_seen: PadsSeen::None,
    ..UNMASKED
};

/// T5 gets the mask, the image model sees zeros at padding.
const ZEROED: Preset = Preset {
    attention_mask: true,
    pad_rows: PadRows::Zero,
    tail: Tail::Zeroed,
    ..UNMASKED
};

const CLEAN_CAPTION: &str = "`__call__` has `clean_caption=True`, which counts only where \
    beautifulsoup4 and ftfy are installed; the preset is `clean_caption=False`.";

pub(super) const PRESETS: &[Preset] = &[
    Preset {
        name: "allegro",
        tokenizer: TokenizerClass::T5Slow,
        cleaning: Cleaning::LowerStrip,
        max_length: 512,
        source: "allegro/pipeline_allegro.py",
        note: CLEAN_CAPTION,
        ..MASKED
    },
    Preset {
        name: "auraflow",
        aliases: &["aura-flow"],
        encoder: Encoder::Umt5,
        tokenizer: TokenizerClass::T5Slow,
        max_length: 256,
        tail: Tail::TimesMask,
        source: "aura_flow/pipeline_aura_flow.py",
        note: "Pile-T5 XL, whose `</s>` is 2. `encode_prompt` returns a mask that `__call__` \
            does not use.",
        ..ZEROED
    },
    Preset {
        name: "bria",
        max_length: 128,
        padding: Padding::None,
        pad_rows: PadRows::Zero,
        tail: Tail::Appended,
        source: "bria/pipeline_bria.py",
        note: "Prompts are encoded one by one, without padding and without a mask.",
        ..UNMASKED
    },
    Preset {
        name: "chroma",
        max_length: 512,
        attention_mask: true,
        mask_out: MaskOut::TokensAndFirstPad,
        source: "chroma/pipeline_chroma.py, models/transformers/transformer_chroma.py",
        note: "The mask is meant to leave the tokens and the first padding. It gets to the \
            attention as floating-point ones and zeros, which are added to the scores: \
            padding counts for less but is seen, so its values matter. The inpainting \
            pipeline's `__call__` has length 256.",
        ..UNMASKED
    },
    Preset {
        name: "cogvideox",
        aliases: &["cogvideo", "consisid"],
        tokenizer: TokenizerClass::T5Slow,
        max_length: 226,
        source: "cogvideo/pipeline_cogvideox.py, consisid/pipeline_consisid.py",
        ..UNMASKED
    },
    Preset {
        name: "cogview3",
        aliases: &["cogview3plus"],
        tokenizer: TokenizerClass::T5Slow,
        max_length: 224,
        source: "cogview3/pipeline_cogview3plus.py",
        note: "The default of its helper is 226, that of `__call__` 224. Without a negative \
            prompt, the unconditional embeddings are zeros.",
        ..UNMASKED
    },
    Preset {
        name: "cosmos",
        aliases: &["cosmos2"],
        max_length: 512,
        source: "cosmos/pipeline_cosmos_text2world.py, cosmos/pipeline_cosmos2_text2image.py",
        ..ZEROED
    },
    Preset {
        name: "flux",
        aliases: &["flux1"],
        max_length: 512,
        source: "flux/pipeline_flux.py",
        note: "T5 reads the padding as text.",
        ..UNMASKED
    },
    Preset {
        name: "hidream",
        tokenizer: TokenizerClass::T5Slow,
        max_length: 128,
        attention_mask: true,
        source: "hidream_image/pipeline_hidream_image.py",
        note: "The mask goes to T5 only: the image model sees what T5 computes at padding. A \
            tokenizer with a smaller `model_max_length` shortens the rows.",
        ..UNMASKED
    },
    Preset {
        name: "hunyuan",
        aliases: &["hunyuandit", "hunyuan-dit"],
        encoder: Encoder::Mt5,
        tokenizer: TokenizerClass::T5Slow,
        max_length: 256,
        source: "hunyuandit/pipeline_hunyuandit.py",
        note: "The image model puts a learned vector where the mask is 0.",
        ..MASKED
    },
    Preset {
        name: "hunyuanimage2.1",
        aliases: &["hunyuanimage", "hunyuan-image"],
        encoder: Encoder::Byt5,
        cleaning: Cleaning::GlyphImage,
        tokenizer: TokenizerClass::Byt5,
        max_length: 128,
        source: "hunyuan_image/pipeline_hunyuanimage.py",
        note: "A prompt that quotes nothing gives zeros and a mask without a token.",
        ..MASKED
    },
    Preset {
        name: "hunyuanvideo1.5",
        aliases: &["hunyuanvideo", "hunyuan-video"],
        encoder: Encoder::Byt5,
        cleaning: Cleaning::GlyphVideo,
        tokenizer: TokenizerClass::Byt5,
        max_length: 256,
        source: "hunyuan_video1_5/pipeline_hunyuan_video1_5.py",
        note: "A prompt that quotes nothing gives zeros and a mask without a token.",
        ..MASKED
    },
    Preset {
        name: "if",
        aliases: &["deepfloyd", "deepfloyd-if"],
        tokenizer: TokenizerClass::T5Slow,
        cleaning: Cleaning::LowerStrip,
        max_length: 77,
        attention_mask: true,
        source: "deepfloyd_if/pipeline_if.py",
        note: CLEAN_CAPTION,
        ..UNMASKED
    },
    Preset {
        name: "kandinsky3",
        tokenizer: TokenizerClass::T5Slow,
        max_length: 128,
        length: OutputLength::LongestPlusOne,
        mask_out: MaskOut::Tokens,
        source: "kandinsky3/pipeline_kandinsky3.py, models/unets/unet_kandinsky3.py",
        note: "The attention is masked, but its pooled vector starts from a mean over all \
            positions, zeros included: a longer prompt beside it changes a prompt's image. \
            Without a negative prompt, unconditional embeddings and mask are zeros.",
        ..ZEROED
    },
    Preset {
        name: "latte",
        tokenizer: TokenizerClass::T5Slow,
        cleaning: Cleaning::LowerStrip,
        max_length: 120,
        tail: Tail::TimesMask,
        length: OutputLength::TokensIfAlone,
        source: "latte/pipeline_latte.py",
        note: "With `mask_feature=False` nothing is zeroed. The negative prompt is cut to the \
            prompt's length, never masked. `__call__` has `clean_caption=True`, which counts \
            only where beautifulsoup4 and ftfy are installed; the preset is \
            `clean_caption=False`.",
        ..ZEROED
    },
    Preset {
        name: "ltx",
        aliases: &["ltx-video"],
        max_length: 128,
        attention_mask: false,
        source: "ltx/pipeline_ltx.py",
        note: "T5 reads the padding as text, the image model does not look at it.",
        ..MASKED
    },
    Preset {
        name: "ltx-condition",
        max_length: 256,
        source: "ltx/pipeline_ltx_condition.py",
        note: "Unlike its siblings it gives T5 the mask, and has twice their length.",
        ..MASKED
    },
    Preset {
        name: "mochi",
        max_length: 256,
        source: "mochi/pipeline_mochi.py",
        note: "With `force_zeros_for_empty_prompt`, which is off by default, an empty last \
            prompt sets ids and mask of the whole batch to 0; the preset does not.",
        ..MASKED
    },
    Preset {
        name: "pixart-alpha",
        tokenizer: TokenizerClass::T5Slow,
        cleaning: Cleaning::LowerStrip,
        max_length: 120,
        source: "pixart_alpha/pipeline_pixart_alpha.py",
        note: CLEAN_CAPTION,
        ..MASKED
    },
    Preset {
        name: "pixart-sigma",
        aliases: &["pixart"],
        tokenizer: TokenizerClass::T5Slow,
        cleaning: Cleaning::LowerStrip,
        max_length: 300,
        source: "pixart_alpha/pipeline_pixart_sigma.py",
        note: CLEAN_CAPTION,
        ..MASKED
    },
    Preset {
        name: "sd3",
        aliases: &["sd3.5", "stable-diffusion-3"],
        max_length: 256,
        source: "stable_diffusion_3/pipeline_stable_diffusion_3.py",
        note: "T5 reads the padding as text; its rows follow those of CLIP.",
        ..UNMASKED
    },
    Preset {
        name: "stable-audio",
        tokenizer: TokenizerClass::T5Any,
        max_length: 128,
        tail: Tail::TimesMask,
        source: "stable_audio/pipeline_stable_audio.py",
        note: "The length is the tokenizer's `model_max_length`, 128 for Stable Audio Open. A \
            projection comes before the multiplication by the mask. Without a negative \
            prompt, the unconditional embeddings are zeros.",
        ..ZEROED
    },
    Preset {
        name: "wan",
        aliases: &["skyreels", "helios", "chronoedit", "lucy", "anyflow"],
        encoder: Encoder::Umt5,
        cleaning: Cleaning::Prompt,
        tokenizer: TokenizerClass::Auto,
        max_length: 512,
        source: "wan/pipeline_wan.py, and the same in skyreels_v2, helios, chronoedit, lucy, \
            anyflow",
        note: "The default of `encode_prompt` is 226, that of `__call__` 512. Wan and AnyFlow \
            use ftfy only where it is installed; the preset always does. Helios returns a \
            mask besides, which `__call__` does not use.",
        ..ZEROED
    },
];
