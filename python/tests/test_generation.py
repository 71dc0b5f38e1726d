"""Decoders beside transformers, live: logits, loss, tokens, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from conftest import SHAPES, VOCAB

import quintic
from quintic import errors

KINDS = list(SHAPES)


class Twins:
    """A random encoder-decoder of transformers, and ours from its folder."""

    def __init__(self, kind: str, folder: Path) -> None:
        family = {"mt5": "MT5", "umt5": "UMT5"}.get(kind, "T5")
        config_class = getattr(transformers, f"{family}Config")
        torch.manual_seed(len(kind))
        config = config_class(vocab_size=VOCAB, decoder_start_token_id=0, **SHAPES[kind])
        config._attn_implementation = "eager"
        self.theirs = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
        with torch.no_grad():
            # Freshly initialised weights leave all scores alike.
            for name, parameter in self.theirs.named_parameters():
                if "layer_norm" not in name:
                    parameter.mul_(1.5)
            self.theirs.shared.weight.normal_(std=4.0 if kind == "t5-relu" else 1.0)
        self.theirs.save_pretrained(folder)
        self.ours = getattr(quintic, f"{family}ForConditionalGeneration").from_pretrained(folder, dtype="float32")


@pytest.fixture(scope="module", params=KINDS)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """Every kind; heads are tied, as transformers 5 makes them."""
    return Twins(request.param, tmp_path_factory.mktemp(request.param))


def batch(side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows of different length, padded on one side."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, VOCAB, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 5, 1)):
        hidden = slice(length, None) if side == "right" else slice(0, 12 - length)
        ids[row, hidden], mask[row, hidden] = 0, 0
    return ids, mask


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To the error of float32 over a few layers, relative to the largest logit."""
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_loss_and_states_are_those_of_transformers(twins: Twins, side: str) -> None:
    """With labels, with a decoder input, and from encoder outputs that are used again."""
    ids, mask = batch(side)
    labels = torch.randint(2, VOCAB, (3, 7), generator=torch.Generator().manual_seed(4))
    labels[1, 4:] = -100
    decoder_mask = (labels != -100).long()
    with torch.no_grad():
        theirs = twins.theirs(input_ids=ids, attention_mask=mask, labels=labels, output_hidden_states=True)
    ours = twins.ours(ids, mask, None, decoder_mask, labels=labels, output_hidden_states=True)
    near(ours.logits, theirs.logits)
    assert abs(ours.loss - theirs.loss) <= 1e-5 * theirs.loss
    assert len(ours.decoder_hidden_states) == len(theirs.decoder_hidden_states)
    for found, expected in zip(ours.decoder_hidden_states, theirs.decoder_hidden_states, strict=True):
        near(found, expected)
    shifted = twins.ours.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(shifted, twins.theirs.prepare_decoder_input_ids_from_labels(labels))
    outputs = transformers.modeling_outputs.BaseModelOutput(theirs.encoder_last_hidden_state)
    again = twins.ours(encoder_outputs=outputs, attention_mask=mask, decoder_input_ids=shifted)
    near(again.logits, theirs.logits)
    sums, tokens = twins.ours.score(ids, labels, attention_mask=mask)
    assert tokens.shape == labels.shape and (tokens[1, 4:] == 0).all()
    assert abs(sums.sum() + float(theirs.loss) * int((labels != -100).sum())) <= 1e-3


OPTIONS: list[dict[str, Any]] = [
    {"max_new_tokens": 9},
    {"max_length": 6, "min_length": 4},
    {"max_new_tokens": 8, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 3},
    {"max_new_tokens": 8, "num_beams": 3, "early_stopping": True, "length_penalty": 2.0, "eos_token_id": [1, 5, 9]},
    {"max_new_tokens": 6, "num_beams": 2, "bad_words_ids": [[7], [8, 9]], "forced_eos_token_id": 1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options))
def test_tokens_are_those_of_transformers(twins: Twins, options: dict[str, Any]) -> None:
    """Padded batches, all rows at once and two at a time."""
    ids, mask = batch()
    # With 0 transformers fills beams up with an end token.
    options = {"pad_token_id": VOCAB - 1, **options}
    theirs = twins.theirs.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_scores=True, **options)
    for more in ({}, {"max_rows": 2}):
        ours = twins.ours.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options, **more)
        assert torch.equal(ours.sequences, theirs.sequences)
        if options.get("num_beams", 1) > 1:
            assert torch.allclose(ours.sequences_scores, theirs.sequences_scores, rtol=1e-4, atol=1e-4)


def test_guesses_change_no_token(twins: Twins) -> None:
    """As arguments and in a config, of which transformers' has the same fields."""
    ids, mask = batch()
    plain = twins.ours.generate(ids, attention_mask=mask, max_new_tokens=30)
    guessed = twins.ours.generate(ids, attention_mask=mask, max_new_tokens=30, prompt_lookup_num_tokens=5)
    assert torch.equal(plain, guessed)
    config = transformers.GenerationConfig(max_new_tokens=30, prompt_lookup_num_tokens=15, max_matching_ngram_size=1)
    assert torch.equal(plain, twins.ours.generate(ids, config, attention_mask=mask))
    with pytest.raises(errors.InputError, match="beams do not guess"):
        twins.ours.generate(ids, num_beams=2, prompt_lookup_num_tokens=5)


def test_prefixes_and_generation_configs(twins: Twins) -> None:
    """The decoder goes on behind the tokens that it is given."""
    ids, mask = batch()
    prefix = torch.tensor([[0, 11, 12]] * 3)
    config = transformers.GenerationConfig(max_new_tokens=5, num_beams=2, decoder_start_token_id=0, eos_token_id=1,
                                           pad_token_id=VOCAB - 1)
    theirs = twins.theirs.generate(ids, attention_mask=mask, decoder_input_ids=prefix, generation_config=config)
    ours = twins.ours.generate(ids, config, attention_mask=mask, decoder_input_ids=prefix)
    assert torch.equal(ours[:, :3], prefix)
    # The start token is put before a prefix that has none.
    behind = twins.ours.generate(ids, config, attention_mask=mask, decoder_input_ids=prefix[:, 1:])
    assert torch.equal(behind, ours)
    assert torch.equal(ours, theirs)


def test_draws_repeat_by_their_seed(twins: Twins) -> None:
    """By ``seed``, and by PyTorch's."""
    ids, mask = batch()

    def draw(**more: Any) -> torch.Tensor:
        return twins.ours.generate(ids, attention_mask=mask, do_sample=True, temperature=3.0, max_new_tokens=8, **more)

    assert torch.equal(draw(seed=5), draw(seed=5))
    assert not torch.equal(draw(seed=5), draw(seed=6))
    torch.manual_seed(9)
    first = draw()
    torch.manual_seed(9)
    assert torch.equal(draw(), first)


def test_a_streamer_hears_every_token(twins: Twins) -> None:
    """In order, the start token first."""
    heard: list[int] = []

    class Streamer:
        def put(self, tokens: torch.Tensor) -> None:
            heard.extend(tokens.reshape(-1).tolist())

        def end(self) -> None:
            heard.append(-1)

    ids, _ = batch()
    tokens = twins.ours.generate(ids[:1], max_new_tokens=6, streamer=Streamer())
    assert heard == [*tokens[0].tolist(), -1]


def test_numpy_in_numpy_out(twins: Twins) -> None:
    """Without a tensor of PyTorch's there is none in the result."""
    ids, mask = (tensor.numpy() for tensor in batch())
    tokens = twins.ours.generate(ids, attention_mask=mask, max_new_tokens=4)
    assert isinstance(tokens, np.ndarray) and tokens.dtype == np.int64
    output = twins.ours(input_ids=ids, attention_mask=mask, decoder_input_ids=tokens)
    assert isinstance(output.logits, np.ndarray) and output.logits.shape == (*tokens.shape, VOCAB)


def test_what_cannot_be_done_is_refused_by_name(twins: Twins) -> None:
    """Never in silence."""
    ours, (ids, mask) = twins.ours, batch()
    for error, part, call in [
        (errors.InputError, "`beams`", lambda: ours.generate(ids, beams=3)),
        (errors.UnsupportedError, "num_beam_groups", lambda: ours.generate(ids, num_beams=4, num_beam_groups=2)),
        (errors.UnsupportedError, "gap", lambda: ours.generate(ids, attention_mask=torch.tensor([[1, 0, 1] * 4] * 3))),
        (errors.InputError, "hides every", lambda: ours.generate(ids, attention_mask=torch.zeros_like(mask))),
        (errors.InputError, "shape", lambda: ours.generate(ids, attention_mask=mask[:2])),
        (errors.InputError, "outside the vocabulary", lambda: ours.generate(ids + VOCAB)),
        (errors.UnsupportedError, "output_logits", lambda: ours.generate(ids, output_logits=True)),
        (errors.UnsupportedError, "before a row",
         lambda: ours(ids, decoder_input_ids=ids, decoder_attention_mask=mask.flip(1))),
        (TypeError, "inputs_embeds", lambda: ours(input_ids=ids, labels=ids, inputs_embeds=mask)),
        (errors.InputError, "neither", lambda: ours(input_ids=ids)),
        (TypeError, "past_key_values", lambda: ours(input_ids=ids, labels=ids, past_key_values=3)),
        (errors.UnsupportedError, "streamer", lambda: ours.generate(ids, streamer=object())),
        (errors.UnsupportedError, "from_pretrained", lambda: type(ours)()),
    ]:
        with pytest.raises(error, match=part):
            call()
    wrong = quintic.UMT5ForConditionalGeneration if ours._families != ("umt5",) else quintic.T5ForConditionalGeneration
    with pytest.raises(errors.ConfigError, match="model is of type"):
        wrong.from_pretrained(ours.name_or_path)


def test_the_encoder_by_itself(twins: Twins) -> None:
    """Its states are those of transformers, and generation goes on from them as from the ids."""
    ids, mask = batch()
    encoder = twins.ours.get_encoder()
    found = encoder(ids, attention_mask=mask)
    expected = twins.theirs.get_encoder()(ids, attention_mask=mask).last_hidden_state
    shown = mask.bool()
    near(found.last_hidden_state[shown], expected[shown])
    assert not found.last_hidden_state[~shown].any()
    options = {"num_beams": 2, "max_new_tokens": 8, "attention_mask": mask}
    assert twins.ours.generate(encoder_outputs=found, **options).equal(twins.ours.generate(ids, **options))
    assert encoder(ids.numpy(), return_dict=False)[0].shape == expected.shape
    with pytest.raises(errors.InputError, match="outside the vocabulary"):
        encoder(torch.tensor([[-1]]))


def test_a_pass_can_go_on_from_another_ones_encoder(twins: Twins) -> None:
    ids, mask = batch()
    labels = torch.randint(2, VOCAB, (3, 5), generator=torch.Generator().manual_seed(4))
    first = twins.ours(ids, attention_mask=mask, labels=labels)
    with torch.no_grad():
        theirs = twins.theirs(ids, attention_mask=mask, labels=labels)
    shown = mask.bool()
    near(first.encoder_last_hidden_state[shown], theirs.encoder_last_hidden_state[shown])
    again = twins.ours(encoder_outputs=(first.encoder_last_hidden_state,), attention_mask=mask, labels=labels)
    assert again.logits.equal(first.logits) and again.loss.equal(first.loss)
    loss, logits, states = twins.ours(ids, attention_mask=mask, labels=labels, return_dict=False)
    assert loss.equal(first.loss) and logits.equal(first.logits)
    assert states.equal(first.encoder_last_hidden_state)


def test_what_programs_ask_a_model(twins: Twins) -> None:
    assert type(twins.ours.config) is type(twins.theirs.config)
    assert twins.ours.config.num_decoder_layers == twins.theirs.config.num_decoder_layers
    assert twins.ours.generation_config.decoder_start_token_id == 0
    assert twins.ours.can_generate() and twins.ours.device == torch.device("cpu")


class Words:
    """A tokenizer whose text is its ids, each in brackets."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(f"<{token}>" for token in tokens)


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_a_sequence(twins: Twins, beams: int) -> None:
    ids, mask = batch()
    options = {"attention_mask": mask, "max_new_tokens": 12, "num_beams": beams}
    whole = twins.ours.generate(ids, **options)
    row = whole[0, 1:].tolist()
    stop = f"<{row[2]}><{row[3]}>"
    ended = twins.ours.generate(ids, **options, stop_strings=[stop, "nothing"], tokenizer=Words())
    if beams == 1:
        text = Words().decode(row, True)
        n = text[: text.index(stop) + len(stop)].count("<")
        assert ended[0, 1 : n + 1].tolist() == row[:n]
        assert not ended[0, n + 1 :].any()
    assert twins.ours.generate(ids, **options, stop_strings="nothing", tokenizer=Words()).equal(whole)
    with pytest.raises(errors.InputError, match="without the `tokenizer`"):
        twins.ours.generate(ids, stop_strings="x")

    class Broken(Words):
        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        twins.ours.generate(ids, **options, stop_strings="x", tokenizer=Broken())
