"""``forward`` gives what transformers gives, for every family, mask, type and option."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from conftest import VOCAB, Pair, make_hf

import quintic
from quintic.errors import InputError, UnsupportedError

LOWEST = torch.finfo(torch.float32).min


def ids_of(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def key_masks(rows: int, length: int) -> dict[str, torch.Tensor | None]:
    """Right, left and both-sided padding, holes, one token, and none at all."""
    column = torch.arange(length)
    right = torch.stack([(column < max(1, length - 3 * row)).long() for row in range(rows)])
    both = torch.stack([((column >= row) & (column < max(row + 1, length - row))).long() for row in range(rows)])
    holes = torch.stack([((column % (row + 2)) != 0).long() for row in range(rows)])
    holes[:, -1] = 1
    single = torch.zeros(rows, length, dtype=torch.long)
    single[:, length // 2] = 1
    return {
        "none": None,
        "ones": torch.ones(rows, length, dtype=torch.long),
        "right": right,
        "left": right.flip(1),
        "both": both,
        "holes": holes,
        "single": single,
    }


def run(pair: Pair, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    with torch.no_grad():
        return pair.ours(*args, **kwargs), pair.theirs(*args, **kwargs)


@pytest.mark.parametrize("mask", list(key_masks(1, 1)))
@pytest.mark.parametrize("length", [1, 7, 40, 230])
def test_states_under_every_key_mask(pair: Pair, length: int, mask: str) -> None:
    rows = 4
    ours, theirs = run(pair, ids_of(rows, length), attention_mask=key_masks(rows, length)[mask])
    assert_close(ours.last_hidden_state, theirs.last_hidden_state)


def test_far_padding_in_every_layer(pair: Pair) -> None:
    ids = ids_of(3, 300)
    mask = torch.zeros(3, 300, dtype=torch.long)
    for row, end in enumerate((3, 60, 209)):
        mask[row, :end] = 1
        ids[row, end:] = 0
    ours, theirs = run(pair, ids, attention_mask=mask, output_hidden_states=True)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for found, expected in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(found, expected)


def test_masks_of_three_and_four_dimensions(pair: Pair) -> None:
    rows, length = 3, 19
    ids = ids_of(rows, length)
    generator = torch.Generator().manual_seed(2)
    seen = torch.rand(rows, length, length, generator=generator) < 0.6
    seen |= torch.eye(length, dtype=torch.bool)
    additive = torch.where(seen, 0.0, LOWEST)[:, None]
    with torch.no_grad():
        expected = pair.theirs(ids, attention_mask=additive).last_hidden_state
    heads = pair.theirs.config.num_heads
    forms = {
        "bool3": seen,
        "int3": seen.int(),
        "float3": seen.float(),
        "bool4": seen[:, None],
        "additive": additive,
        "additive-inf": torch.where(seen, 0.0, -torch.inf)[:, None],
        "additive-bf16": torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min)[:, None].bfloat16(),
        "per-head": additive.expand(rows, heads, length, length),
    }
    for name, form in forms.items():
        found = pair.ours(ids, attention_mask=form).last_hidden_state
        assert_close(found, expected), name
    one_row = seen[:1, None]
    broadcast = pair.ours(ids, attention_mask=one_row).last_hidden_state
    expanded = pair.ours(ids, attention_mask=one_row.expand(rows, 1, length, length)).last_hidden_state
    assert torch.equal(broadcast, expanded)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_ids_of_any_integer_type_and_stride(gated: Pair, dtype: torch.dtype) -> None:
    ids = ids_of(4, 9).to(dtype)
    expected = gated.ours(ids_of(4, 9))[0]
    assert torch.equal(gated.ours(ids)[0], expected)
    assert torch.equal(gated.ours(ids.T.contiguous().T)[0], expected)
    strided = torch.zeros(8, 27, dtype=dtype)
    strided[::2, ::3] = ids
    assert torch.equal(gated.ours(strided[::2, ::3])[0], expected)
    assert torch.equal(gated.ours(ids.flip(0))[0], expected.flip(0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.uint8, torch.bfloat16, torch.float16])
def test_key_masks_of_any_type(gated: Pair, dtype: torch.dtype) -> None:
    ids, mask = ids_of(3, 12), key_masks(3, 12)["right"]
    assert mask is not None
    expected = gated.ours(ids, mask)[0]
    assert torch.equal(gated.ours(ids, mask.to(dtype))[0], expected)


def test_arrays_and_lists_give_arrays(gated: Pair) -> None:
    ids, mask = ids_of(2, 5), key_masks(2, 5)["right"]
    assert mask is not None
    expected = gated.ours(ids, mask)[0].numpy()
    for found in (gated.ours(ids.numpy(), mask.numpy()), gated.ours(ids.tolist(), mask.tolist())):
        assert isinstance(found[0], np.ndarray)
        np.testing.assert_array_equal(found[0], expected)


def test_embeddings_in_place_of_ids(pair: Pair) -> None:
    ids, mask = ids_of(3, 150), key_masks(3, 150)["right"]
    with torch.no_grad():
        embeddings = pair.theirs.get_input_embeddings()(ids)
    by_ids = pair.ours(ids, mask)[0]
    by_embeddings = pair.ours(inputs_embeds=embeddings, attention_mask=mask)[0]
    assert torch.equal(by_ids, by_embeddings)
    other = embeddings * 1.5 + torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(3))
    ours, theirs = run(pair, inputs_embeds=other, attention_mask=mask)
    assert_close(ours[0], theirs[0])


def test_attention_weights(pair: Pair) -> None:
    rows, length = 3, 21
    ids, mask = ids_of(rows, length), key_masks(rows, length)["right"]
    ours, theirs = run(pair, ids, attention_mask=mask, output_attentions=True)
    assert len(ours.attentions) == len(theirs.attentions) == pair.theirs.config.num_layers
    for found, expected in zip(ours.attentions, theirs.attentions, strict=True):
        assert_close(found, expected)


def plain_forward(model: Any, ids: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
    """The encoder with each head's output multiplied by its gain, which is what multiplying its
    attention weights does; by hooks, since transformers 5 has no `head_mask` any more."""
    handles = []
    for layer, block in enumerate(model.encoder.block):
        attention = block.layer[0].SelfAttention
        heads, width = attention.n_heads, attention.key_value_proj_dim

        def scale(module: Any, args: Any, layer: int = layer, heads: int = heads, width: int = width) -> Any:
            gain = gains[layer].repeat_interleave(width)
            return (args[0] * gain, *args[1:])

        assert attention.o.in_features == heads * width
        handles.append(attention.o.register_forward_pre_hook(scale))
    with torch.no_grad():
        states = model(ids).last_hidden_state
    for handle in handles:
        handle.remove()
    return states


def test_head_mask(pair: Pair) -> None:
    config = pair.theirs.config
    ids = ids_of(2, 17)
    gains = torch.linspace(0, 1.5, config.num_layers * config.num_heads).reshape(config.num_layers, config.num_heads)
    assert_close(pair.ours(ids, head_mask=gains)[0], plain_forward(pair.theirs, ids, gains))
    spelled_out = gains[:, None, :, None, None]
    assert torch.equal(pair.ours(ids, head_mask=spelled_out)[0], pair.ours(ids, head_mask=gains)[0])
    same = gains[0].expand(config.num_layers, config.num_heads)
    assert torch.equal(pair.ours(ids, head_mask=gains[0])[0], pair.ours(ids, head_mask=same)[0])
    zeroed = gains.clone()
    zeroed[0, 0] = 0
    weights = pair.ours(ids, head_mask=zeroed, output_attentions=True).attentions[0]
    assert (weights[:, 0] == 0).all()
    assert_close(weights[:, 1].sum(-1), torch.full((2, 17), gains[0, 1].item()))


def test_output_is_transformers_own(gated: Pair) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    ids = ids_of(2, 5)
    ours, theirs = run(gated, ids, output_hidden_states=True, output_attentions=True)
    assert type(ours) is BaseModelOutput
    names = ["last_hidden_state", "hidden_states", "attentions"]
    # transformers 5 adds a `cross_attentions` that an encoder has none of.
    assert list(ours) == names == list(theirs)[:3]
    assert ours[0] is ours.last_hidden_state is ours["last_hidden_state"]
    assert len(ours.to_tuple()) == 3
    assert len(ours[:2]) == 2
    plain = gated.ours(ids)
    assert plain.hidden_states is None and len(plain.to_tuple()) == 1
    (states,) = gated.ours(ids, return_dict=False)
    assert torch.equal(states, plain[0])
    assert states.is_contiguous() and not states.requires_grad


def test_some_of_the_states(gated: Pair) -> None:
    ids = ids_of(2, 5)
    ours, theirs = run(gated, ids, output_hidden_states=[0, -1])
    found, expected = ours.hidden_states, theirs.hidden_states
    assert [state is None for state in found] == [state is None for state in expected] == [False, True, False]
    assert_close(found[0], expected[0])
    assert_close(found[2], expected[2])
    with pytest.raises(InputError, match="`output_hidden_states` holds 3, expected indices from -3 to 2"):
        gated.ours(ids, output_hidden_states=[3])


def test_config_switches_count(gated: Pair) -> None:
    model = gated.our_class.from_pretrained(gated.folder, output_hidden_states=True, return_dict=False)
    output = model(ids_of(1, 3))
    assert isinstance(output, tuple) and len(output[1]) == gated.theirs.config.num_layers + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_closer_to_float32_than_transformers(pair: Pair, dtype: torch.dtype) -> None:
    ids, mask = ids_of(4, 60), key_masks(4, 60)["right"]
    ours = pair.our_class.from_pretrained(pair.folder, dtype=dtype)
    theirs = type(pair.theirs).from_pretrained(pair.folder, dtype=dtype, attn_implementation="eager")
    with torch.no_grad():
        exact = pair.theirs.double()(ids, attention_mask=mask)[0]
        pair.theirs.float()
        expected = theirs(ids, attention_mask=mask)[0]
    found = ours(ids, attention_mask=mask)[0]
    assert found.dtype == expected.dtype == ours.dtype == dtype
    # Both are rounded to the type at the end, which alone is a good part of our distance.
    distance = (found.double() - exact).square().mean()
    their_distance = (expected.double() - exact).square().mean()
    assert distance < their_distance
    wide = pair.our_class.from_pretrained(pair.folder, dtype=dtype, output_dtype=torch.float32)
    unrounded = wide(ids, attention_mask=mask)[0]
    assert unrounded.dtype == torch.float32
    assert torch.equal(unrounded.to(dtype), found)


def test_padding_zero_skips_and_keeps_the_rest(pair: Pair) -> None:
    ids, mask = ids_of(4, 33), key_masks(4, 33)["right"]
    assert mask is not None
    model = pair.our_class.from_pretrained(pair.folder, dtype="float32", padding="zero")
    found, expected = model(ids, mask)[0], pair.ours(ids, mask)[0]
    real = mask.bool()
    assert_close(found[real], expected[real])
    assert (found[~real] == 0).all()


def test_a_row_has_the_same_bits_in_any_batch(pair: Pair) -> None:
    ids, mask = ids_of(4, 50), key_masks(4, 50)["right"]
    assert mask is not None
    together = pair.ours(ids, mask)[0]
    for row in range(4):
        assert torch.equal(pair.ours(ids[row : row + 1], mask[row : row + 1])[0][0], together[row])


def test_max_seq_len(gated: Pair) -> None:
    model = gated.our_class.from_pretrained(gated.folder, max_seq_len=8)
    model(ids_of(1, 8))
    with pytest.raises(InputError, match="9 tokens, expected at most `max_seq_len` = 8"):
        model(ids_of(1, 9))


def test_nai_class(gated: Pair) -> None:
    model = quintic.NAIT5EncoderModel.from_pretrained(gated.folder, use_flex_attention=True)
    assert model.dtype == torch.bfloat16 and model.max_seq_len == 512
    mask = key_masks(2, 9)["right"]
    assert mask is not None
    output = model(ids_of(2, 9), attention_mask=mask)
    assert type(output) is quintic.NAIT5EncoderOutput
    (states,) = output
    assert states is output[0] is output.last_hidden_state
    assert (states[~mask.bool()] == 0).all()
    assert quintic.NAIT5EncoderModel.from_pretrained(gated.folder, dtype=torch.float32).dtype == torch.float32


BAD_INPUTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, ValueError, "exactly one of input_ids or inputs_embeds"),
    "both": ({"input_ids": [[1]], "inputs_embeds": np.zeros((1, 1, 64))}, ValueError, "exactly one"),
    "floats": ({"input_ids": torch.ones(1, 2)}, InputError, "`input_ids` is of type float32, expected integers"),
    "one dimension": ({"input_ids": torch.ones(2).long()}, InputError, r"shape \[2\], expected \[rows, len\]"),
    "no tokens": ({"input_ids": torch.ones(1, 0).long()}, InputError, "at least one row of one token"),
    "ragged lists": ({"input_ids": [[1, 2], [1]]}, InputError, "input_ids"),
    "id beyond": ({"input_ids": [[1, VOCAB]]}, InputError, f"row 0, token 1.*{VOCAB} is outside the vocabulary"),
    "negative id": ({"input_ids": [[-100]]}, InputError, "-100"),
    "mask shape": ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, InputError, "`attention_mask` has shape"),
    "mask value": ({"input_ids": [[1, 2]], "attention_mask": [[1, 7]]}, InputError, "holds 7, expected 0 and 1"),
    "mask nan": ({"input_ids": [[1, 2]], "attention_mask": [[1.0, np.nan]]}, InputError, "holds nan"),
    "additive": (
        {"input_ids": [[1, 2]], "attention_mask": np.full((1, 1, 1, 2), -1.5)},
        UnsupportedError,
        "holds -1.5",
    ),
    "int 4-D": ({"input_ids": [[1, 2]], "attention_mask": np.ones((1, 1, 1, 2), int)}, InputError, "expected booleans"),
    "mask heads": (
        {"input_ids": [[1, 2]], "attention_mask": np.array([[[[0, 0]], [[0, -1e9]]]])},
        UnsupportedError,
        "differs between heads",
    ),
    "head mask": ({"input_ids": [[1]], "head_mask": np.ones(5)}, InputError, r"`head_mask` has shape \[5\], expected \[2\]"),
    "embeds": ({"inputs_embeds": np.zeros((1, 2, 3))}, InputError, r"shape \[1, 2, 3\], expected \[rows, len, 64\]"),
    "unknown": ({"input_ids": [[1]], "past_key_values": 3}, TypeError, "past_key_values"),
    "gradients": ({"inputs_embeds": torch.ones(1, 1, 64, requires_grad=True)}, UnsupportedError, "gradients"),
}


@pytest.mark.parametrize("name", list(BAD_INPUTS))
def test_bad_input_is_refused(gated: Pair, name: str) -> None:
    arguments, error, message = BAD_INPUTS[name]
    with pytest.raises(error, match=message):
        gated.ours(**arguments)


def test_reference_backend_agrees(pair: Pair) -> None:
    reference = pair.our_class.from_pretrained(pair.folder, dtype="float32", backend="reference")
    ids, mask = ids_of(2, 100), key_masks(2, 100)["left"]
    assert_close(pair.ours(ids, mask)[0], reference(ids, mask)[0])


def test_a_large_embedding_does_not_hide_a_wrong_layer() -> None:
    """The tolerance would: so a change of one weight has to be seen."""
    theirs = make_hf("t5-gated")
    ours = quintic.T5EncoderModel.from_hf(theirs)
    with torch.no_grad():
        theirs.encoder.block[1].layer[1].DenseReluDense.wo.weight[3, 5] += 0.05
        expected = theirs(ids_of(2, 9))[0]
    with pytest.raises(AssertionError):
        assert_close(ours(ids_of(2, 9))[0], expected)
