"""The peers that generate: greedily or with beams, so many tokens behind every row, without an end."""

from __future__ import annotations

import abc
import argparse
from collections.abc import Callable
from typing import Any


class Generator(abc.ABC):
    """Loaded in ``__init__``; ``run`` is what is timed, ``tokens`` is not."""

    def __init__(self, options: argparse.Namespace, rows: list[list[int]], threads: int) -> None:
        self.options, self.rows, self.threads = options, rows, threads
        self.new_tokens, self.beams = options.new_tokens, options.num_beams
        self.load()

    @abc.abstractmethod
    def load(self) -> None:
        """Makes the model."""

    @abc.abstractmethod
    def run(self) -> Any:
        """Generates for all rows."""

    @abc.abstractmethod
    def tokens(self, made: Any) -> list[list[int]]:
        """The new tokens of each row, from what ``run`` gave."""


class Torch(Generator):
    """What the peers on PyTorch share: rows of one length as one tensor."""

    def load(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[self.options.dtype]
        self.ids = torch.tensor(self.rows)
        self.model = self.make()

    @abc.abstractmethod
    def make(self) -> Any:
        """The model."""

    def tokens(self, made: Any) -> list[list[int]]:
        return made[:, -self.new_tokens :].tolist()


class Transformers(Torch):
    """``generate`` with its cache and PyTorch's own attention."""

    def make(self) -> Any:
        import transformers

        transformers.logging.set_verbosity_error()
        model = transformers.T5ForConditionalGeneration.from_pretrained(
            self.options.model, dtype=self.dtype, attn_implementation="sdpa"
        ).eval()
        model.generation_config.eos_token_id = None
        return model

    def run(self) -> Any:
        made = self.model.generate(
            input_ids=self.ids, max_new_tokens=self.new_tokens, num_beams=self.beams, do_sample=False
        )
        assert made.shape == (len(self.rows), self.new_tokens + 1), made.shape
        return made


class QuinticPython(Transformers):
    """quintic's drop-in class, called as transformers is."""

    def make(self) -> Any:
        from quintic import T5ForConditionalGeneration

        return T5ForConditionalGeneration.from_pretrained(self.options.model, dtype=self.dtype)

    def run(self) -> Any:
        return self.model.generate(
            input_ids=self.ids, max_new_tokens=self.new_tokens, num_beams=self.beams, do_sample=False, eos_token_id=None
        )


class Nai(Torch):
    """nai-t5-wrapper's decoder in a greedy loop: its own ``generate_until`` takes one row only."""

    def make(self) -> Any:
        import transformers
        from nai_t5_wrapper import T5, hf_to_based_t5_state, to_based_config
        from nai_t5_wrapper.fuse_norm_scales import fuse_norm_scales

        if self.beams != 1:
            raise SystemExit("nai-t5-wrapper has no beam search")
        transformers.logging.set_verbosity_error()
        original = transformers.T5ForConditionalGeneration.from_pretrained(self.options.model, dtype=self.dtype).eval()
        config = to_based_config(original.config, n_tokens=512)
        types = dict.fromkeys(("emb_weight_dtype", "linear_weight_dtype", "norm_weight_dtype"), self.dtype)
        config = config.model_copy(update=types)
        model = T5(config).eval()
        model.load_state_dict(hf_to_based_t5_state(original.state_dict(), config))
        fuse_norm_scales(model, fuse_via_f32=True)
        return model

    def run(self) -> Any:
        torch, model = self.torch, self.model
        rows = len(self.rows)
        mask = torch.ones_like(self.ids, dtype=torch.bool)
        with torch.inference_mode():
            encoded = model.encoder(self.ids, input_mask=mask)
            cross = model.decoder.get_cross_kv(encoded)
            cache = model.decoder.get_kv_cache(
                batch_size=rows, length=self.new_tokens, device=encoded.device, dtype=encoded.dtype
            )
            token = torch.zeros(rows, 1, dtype=torch.long)
            made = []
            for step in range(self.new_tokens):
                states = model.decoder(
                    model.encoder.vocab_embed(token),
                    encoded,
                    input_mask=None,
                    cross_mask=mask[:, None, :],
                    self_past_kv=cache[:, :, :, :, : step + 1, :],
                    cross_kv=cross,
                )
                token = model.lm_head(states)[:, -1].argmax(-1, keepdim=True)
                made.append(token)
            return torch.cat(made, 1)


class CTranslate2(Generator):
    """Its translator, which takes and gives words."""

    def load(self) -> None:
        import ctranslate2
        from workloads import VOCAB

        words = ["<pad>", "</s>", "<unk>", *(f"token{index}" for index in range(3, VOCAB))]
        self.numbers = {word: number for number, word in enumerate(words)}
        self.words = [[words[id] for id in row] for row in self.rows]
        compute_type = {"f32": "float32"}.get(self.options.dtype, self.options.dtype)
        self.model = ctranslate2.Translator(
            str(self.options.form), device="cpu", compute_type=compute_type, intra_threads=self.threads, inter_threads=1
        )

    def run(self) -> Any:
        # The shortest length keeps the end token away.
        return self.model.translate_batch(
            self.words,
            beam_size=self.beams,
            min_decoding_length=self.new_tokens,
            max_decoding_length=self.new_tokens,
            max_batch_size=0,
            length_penalty=1,
        )

    def tokens(self, made: Any) -> list[list[int]]:
        return [[self.numbers[word] for word in result.hypotheses[0]] for result in made]


GENERATORS: dict[str, Callable[[argparse.Namespace, list[list[int]], int], Generator]] = {
    "transformers": Transformers,
    "quintic-python": QuinticPython,
    "nai": Nai,
    "ctranslate2": CTranslate2,
}
