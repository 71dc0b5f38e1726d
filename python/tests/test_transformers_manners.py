"""What transformers' own tests of its encoder models found missing: see `tools/transformers_suite.py`."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import quintic  # noqa: E402

IDS = torch.tensor([[5, 6, 7, 1], [8, 9, 1, 0]])


@pytest.fixture(scope="module")
def theirs():
    config = transformers.T5Config(vocab_size=99, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4)
    return transformers.T5EncoderModel(config).eval()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("model"))
    theirs.save_pretrained(path)
    return path


@pytest.fixture
def model(folder):
    return quintic.T5EncoderModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (True, [True, True, True]),
        (1, [False, True, False]),
        ([-1], [False, False, True]),
        ([0, 2], [True, False, True]),
        (0, None),
        ([], None),
    ],
)
def test_hidden_states_of_some_layers(model, asked, there):
    every = model(IDS, output_hidden_states=True).hidden_states
    some = model(IDS, output_hidden_states=asked).hidden_states
    assert there == (None if some is None else [states is not None for states in some])
    for one, other in zip(some or (), every, strict=False):
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("asked", [[3], [-4], "yes", [0.5]])
def test_hidden_states_of_no_layer_are_an_error(model, asked):
    with pytest.raises(quintic.errors.InputError, match="output_hidden_states"):
        model(IDS, output_hidden_states=asked)


def test_the_config_names_what_was_loaded(model, folder):
    assert model.config.name_or_path == model.name_or_path == folder


def test_the_attention_is_noted_in_the_config(model, folder):
    eager = quintic.T5EncoderModel.from_pretrained(folder, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match='Specified `attn_implementation="foo"` is not supported'):
        model.set_attn_implementation("foo")


def test_a_holder_casts_it_under_another_default_device(model):
    with torch.device("meta"):
        assert torch.nn.Sequential(model).to(torch.bfloat16)[0].dtype == torch.bfloat16


def test_no_cache_is_what_an_encoder_has(model):
    assert torch.equal(model(IDS, use_cache=False)[0], model(IDS)[0])
    with pytest.raises(TypeError, match="use_cache"):
        model(IDS, use_cache=True)


def test_what_the_class_says_of_itself(model):
    assert quintic.T5EncoderModel.config_class is transformers.T5Config
    assert quintic.UMT5EncoderModel.config_class is transformers.UMT5Config
    assert not model.supports_gradient_checkpointing
    assert model.get_output_embeddings() is None
    model.tie_weights()
