"""Tiny text-to-image and text-to-video pipelines with random weights and real T5 tokenizers.

Every pipeline has the parts of the published one, in the same roles: only widths and depths are
scaled down, so that a picture takes a fraction of a second on a CPU. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

TOKENIZERS = Path(__file__).resolve().parents[2] / ".cache" / "tokenizers"
D_MODEL = 32
CLIP_WIDTH = 16  # two of them side by side fill SD3's D_MODEL


@dataclass(frozen=True, eq=False)
class Case:
    """A pipeline, the T5 inside it, and how it is called."""

    name: str
    pipeline: str
    """Class in `diffusers`."""
    slot: str
    """Argument that holds the T5."""
    kind: str
    """Class of the T5 in `transformers` and in `quintic`."""
    tokenizer: str
    """Folder below TOKENIZERS."""
    parts: Callable[[], dict[str, Any]]
    """Everything but the T5 and its tokenizer."""
    lengths: tuple[int, int]
    """Two values of `max_sequence_length`; the longer one pads every prompt."""
    encode: dict[str, Any] = field(default_factory=dict)
    """More arguments of `encode_prompt`."""
    call: dict[str, Any] = field(default_factory=dict)
    """More arguments of the pipeline's call."""
    per_prompt: str = "num_images_per_prompt"

    @property
    def tokenizer_slot(self) -> str:
        """Argument that holds the T5's tokenizer."""
        return self.slot.replace("text_encoder", "tokenizer")

    @property
    def guided(self) -> bool:
        """Whether the pipeline takes negative prompts; FLUX guides by distillation."""
        return self.name != "flux"


def t5_tokenizer(name: str) -> transformers.PreTrainedTokenizerBase:
    """A published T5 tokenizer. Pile-T5's is a Llama one, which pads on the left here."""
    folder = TOKENIZERS / name
    if name == "pile-t5":
        return transformers.LlamaTokenizer.from_pretrained(
            folder, add_bos_token=False, add_eos_token=True, pad_token="<pad>"
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def t5_encoder(kind: str, vocab: int) -> transformers.PreTrainedModel:
    """A T5 of two layers. Norm weights are drawn, too: at their initial 1 a missing one is not seen."""
    model_class = getattr(transformers, kind)
    config = model_class.config_class(
        vocab_size=vocab,
        d_model=D_MODEL,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's tokenizer with single bytes for a vocabulary and no merges."""
    letters = sorted(ByteLevel.alphabet())
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: piece_idx for piece_idx, piece in enumerate(pieces)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def clip(model_class: type[transformers.PreTrainedModel]) -> transformers.PreTrainedModel:
    """A CLIP text encoder of one layer for `clip_tokenizer`."""
    vocab = len(clip_tokenizer())
    config = transformers.CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
    )
    return model_class(config).eval()


def image_vae(latent_channels: int = 4) -> diffusers.AutoencoderKL:
    """A VAE that halves height and width once."""
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latent_channels,
        norm_num_groups=1,
        sample_size=32,
        scaling_factor=1.0,
        shift_factor=0.0,
    ).eval()


def flux_parts() -> dict[str, Any]:
    """FLUX: CLIP for the pooled vector, T5 for the rest."""
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "text_encoder": clip(transformers.CLIPTextModel),
        "tokenizer": clip_tokenizer(),
        "vae": image_vae(),
        "transformer": diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=D_MODEL,
            pooled_projection_dim=CLIP_WIDTH,
            axes_dims_rope=(4, 4, 8),
        ).eval(),
    }


def sd3_parts() -> dict[str, Any]:
    """SD3: two CLIPs beside each other, then T5 after them."""
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "text_encoder": clip(transformers.CLIPTextModelWithProjection),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip(transformers.CLIPTextModelWithProjection),
        "tokenizer_2": clip_tokenizer(),
        "vae": image_vae(),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=D_MODEL,
            caption_projection_dim=32,
            pooled_projection_dim=2 * CLIP_WIDTH,
            pos_embed_max_size=16,
        ).eval(),
    }


def pixart_parts() -> dict[str, Any]:
    """PixArt-Sigma: T5 alone."""
    return {
        "scheduler": diffusers.DPMSolverMultistepScheduler(),
        "vae": image_vae(),
        "transformer": diffusers.PixArtTransformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            cross_attention_dim=32,
            caption_channels=D_MODEL,
        ).eval(),
    }


def wan_parts() -> dict[str, Any]:
    """Wan: UMT5 alone, and frames."""
    return {
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "vae": diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ).eval(),
        "transformer": diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=16,
            out_channels=16,
            text_dim=D_MODEL,
            freq_dim=32,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ).eval(),
    }


def auraflow_parts() -> dict[str, Any]:
    """AuraFlow: Pile-T5, which is a UMT5 with a Llama tokenizer."""
    return {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        "vae": image_vae(),
        "transformer": diffusers.AuraFlowTransformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=D_MODEL,
            caption_projection_dim=32,
            pos_embed_max_size=64,
        ).eval(),
    }


CASES = (
    Case(
        "flux", "FluxPipeline", "text_encoder_2", "T5EncoderModel", "t5/flux", flux_parts, (9, 64),
        encode={"prompt_2": None},
    ),
    Case(
        "sd3", "StableDiffusion3Pipeline", "text_encoder_3", "T5EncoderModel", "t5/sd3", sd3_parts,
        (9, 64), encode={"prompt_2": None, "prompt_3": None},
    ),
    Case(
        "pixart-sigma", "PixArtSigmaPipeline", "text_encoder", "T5EncoderModel", "t5/flan",
        pixart_parts, (9, 64),
        call={"use_resolution_binning": False, "clean_caption": False},
    ),
    Case(
        "wan", "WanPipeline", "text_encoder", "UMT5EncoderModel", "umt5", wan_parts, (9, 64),
        call={"num_frames": 5}, per_prompt="num_videos_per_prompt",
    ),
    Case(
        "auraflow", "AuraFlowPipeline", "text_encoder", "UMT5EncoderModel", "pile-t5",
        auraflow_parts, (9, 64),
    ),
)  # fmt: skip


def build(case: Case) -> diffusers.DiffusionPipeline:
    """The pipeline with the encoder of transformers; the same weights every time."""
    tokenizer = t5_tokenizer(case.tokenizer)
    encoder = t5_encoder(case.kind, -(-len(tokenizer) // 128) * 128)
    torch.manual_seed(1)
    components = {case.slot: encoder, case.tokenizer_slot: tokenizer, **case.parts()}
    with torch.no_grad():  # at their initial size AuraFlow's weights hardly let the prompt through
        for weight in components["transformer"].parameters():
            if weight.ndim == 2:
                weight.mul_(2.0)
    pipeline = getattr(diffusers, case.pipeline)(**components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_encoder(
    pipeline: diffusers.DiffusionPipeline, case: Case, encoder: torch.nn.Module
) -> diffusers.DiffusionPipeline:
    """A pipeline of the same parts with another T5."""
    other = type(pipeline)(**{**pipeline.components, case.slot: encoder})
    other.set_progress_bar_config(disable=True)
    return other


def encode(
    pipeline: diffusers.DiffusionPipeline, case: Case, prompt: list[str], negative: list[str], length: int
) -> list[torch.Tensor]:
    """All tensors that `encode_prompt` returns, for two pictures per prompt."""
    arguments: dict[str, Any] = {**case.encode, case.per_prompt: 2, "max_sequence_length": length}
    if case.guided:
        arguments |= {"negative_prompt": negative, "do_classifier_free_guidance": True}
    with torch.no_grad():
        outputs = pipeline.encode_prompt(prompt=prompt, **arguments)
    return [output for output in outputs if isinstance(output, torch.Tensor)]


def picture(
    pipeline: diffusers.DiffusionPipeline, case: Case, prompt: list[str], length: int, output: str = "pt"
) -> torch.Tensor:
    """Two denoising steps from fixed noise, then the VAE."""
    arguments: dict[str, Any] = {**case.call, "max_sequence_length": length}
    if case.guided:
        arguments |= {"negative_prompt": ["blurry"] * len(prompt), "guidance_scale": 4.0}
    result = pipeline(
        prompt=prompt,
        height=32,
        width=32,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(2),
        output_type=output,
        return_dict=False,
        **arguments,
    )
    return result[0]
