"""Encoder-decoder models: ``generate`` and ``forward`` as transformers' classes have them.

They are no subclasses of transformers' classes: a model is called and generates, and does not train.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from quintic import _arguments, _arrays, _weights
from quintic._quintic import Seq2Seq
from quintic.errors import ConfigError, InputError, UnsupportedError

# What a step leaves behind in transformers and is not kept here.
_NOT_KEPT = ("output_attentions", "output_hidden_states", "output_logits")
# Arguments of `generate` whose other values would change something.
_NEUTRAL = ("synced_gpus", "use_model_defaults", "logits_processor", "stopping_criteria")
_IGNORED_LABEL = -100


class ConditionalGeneration(_weights.WeightProperties[Seq2Seq]):
    """What all encoder-decoder classes share; see :class:`quintic.T5ForConditionalGeneration`.

    Immutable weights, no gradients. A call computes on the engine's own threads without the GIL;
    calls from several threads take turns.
    """

    main_input_name: ClassVar[str] = "input_ids"
    _families: ClassVar[tuple[str, ...]] = ("t5", "mt5", "umt5")

    def __init__(self, *_: Any, **__: Any) -> None:
        raise UnsupportedError(f"{type(self).__name__} is made by `from_pretrained`")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **arguments: Any) -> Any:
        """Loads the model of a folder, a weight file or a repository id.

        Arguments as in :meth:`quintic.T5EncoderModel.from_pretrained`: ``dtype`` (or
        ``torch_dtype``), ``subfolder``, ``variant``, ``revision``, ``cache_dir``,
        ``local_files_only``, ``force_download``, ``token``, ``threads``, ``matmul_precision``,
        ``fold_norm_gains``, ``weights``, ``keep``, ``plan``, ``backend``, ``device_map``.
        """
        _arguments.take_device_map(arguments)
        files = _arguments.files(arguments)
        computing = _arguments.computing(arguments, "auto")
        _arguments.check_rest(arguments)
        name = os.fspath(pretrained_model_name_or_path)
        engine = Seq2Seq.load(name, files, computing)
        if engine.family is not None and engine.family not in cls._families:
            raise ConfigError(
                f"{engine.path}: the model is of type `{engine.family}`, expected {' or '.join(cls._families)} "
                f"for {cls.__name__}"
            )
        made = cls.__new__(cls)
        made._engine = engine
        made.name_or_path = name
        return made

    name_or_path: str

    @property
    def dtype(self) -> str:
        """Name of the type that weights are kept in."""
        return _arrays.LONG_NAMES[self._engine.dtype]

    @property
    def config(self) -> Any:
        """The model's config: transformers' class for it, or the fields where that is not installed."""
        fields = _json(self._engine.folder, "config.json") or self._engine.config
        family = fields.get("model_type") or self._engine.config["model_type"] or self._families[0]
        name = {"mt5": "MT5Config", "umt5": "UMT5Config"}.get(family, "T5Config")
        return _hf_object(name, {key: value for key, value in fields.items() if key != "model_type"}, fields)

    @property
    def generation_config(self) -> Any:
        """How the model generates by itself, as its files say. Changing it changes nothing: options
        are given to :meth:`generate`.
        """
        folder = self._engine.folder
        own = _json(folder, "generation_config.json")
        if own is not None:
            return _hf_object("GenerationConfig", own, own)
        fields = _json(folder, "config.json") or self._engine.config
        names = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
        known = {name: fields[name] for name in names if name in fields}
        return _hf_object("GenerationConfig", known, known)

    def get_encoder(self) -> Encoder:
        """The encoder by itself, whose output :meth:`generate` and :meth:`forward` take as
        ``encoder_outputs``."""
        return Encoder(self)

    def can_generate(self) -> bool:
        """Yes, for programs that ask."""
        return True

    @property
    def device(self) -> Any:
        """Where tensors come from and go to: the host."""
        try:
            import torch
        except ImportError:
            return "cpu"
        return torch.device("cpu")

    def eval(self) -> Any:
        """The model, which knows nothing else: there is no dropout."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name_or_path!r}, {self.dtype}{_weights.described(self._engine)})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`forward`."""
        return self.forward(*args, **kwargs)

    # What is computed.

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        encoder_outputs: Any = None,
        *,
        labels: Any = None,
        output_hidden_states: bool | None = False,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """Logits ``[rows, len, vocab]`` in float32 for a decoder's input, and with ``labels`` their
        loss: the mean cross-entropy of those that are not -100.

        Without ``decoder_input_ids`` they are the labels shifted right. The decoder sees what stands
        before each position, so that padding behind a row changes nothing in front of it: a
        ``decoder_attention_mask`` may hide that and nothing else. Comes back as
        transformers' ``Seq2SeqLMOutput`` where that is installed, with
        ``encoder_last_hidden_state`` to go on from.
        """
        unknown = {name: value for name, value in unknown.items() if value is not None and value is not False}
        if unknown:
            raise TypeError(f"forward() got unexpected keyword arguments: {', '.join(unknown)}")
        as_torch = any(map(_arrays.is_torch, (input_ids, decoder_input_ids, labels, _states_of(encoder_outputs))))
        if encoder_outputs is None and input_ids is not None:
            encoder_outputs, input_ids = self.get_encoder()(input_ids, attention_mask), None
        given = self._given(input_ids, attention_mask, encoder_outputs)
        wanted = None if labels is None else _arrays.integers(labels, "labels")
        if decoder_input_ids is not None:
            inputs = _arrays.integers(decoder_input_ids, "decoder_input_ids")
        elif wanted is not None:
            inputs = self._shifted(wanted)
        else:
            raise InputError("neither `decoder_input_ids` nor `labels` are given")
        if wanted is not None and wanted.shape != inputs.shape:
            raise InputError(f"`labels` have shape {list(wanted.shape)}, expected {list(inputs.shape)}")
        for span in _spans(decoder_attention_mask, inputs.shape, "decoder_attention_mask"):
            if span.start > 0:
                raise UnsupportedError("`decoder_attention_mask` hides what stands before a row's tokens")
        rows, length = inputs.shape
        targets = None if wanted is None else [[_target(id) for id in row] for row in wanted.tolist()]
        logits, last, inner, log_probs = self._engine.decode(
            given=given, rows=_rows(inputs), targets=targets, logits=True, hidden_states=bool(output_hidden_states)
        )
        vocab, d_model = self._engine.vocab_size, self._engine.d_model
        fields: dict[str, Any] = {"logits": _arrays.from_flat(logits, (rows, length, vocab), "float32", as_torch)}
        states = _states_of(encoder_outputs)
        if wanted is not None:
            n_targets = int((wanted != _IGNORED_LABEL).sum())
            # As in PyTorch, the mean of nothing is no number.
            loss = -float(log_probs.sum(dtype=np.float64)) / n_targets if n_targets else float("nan")
            fields["loss"] = _arrays.from_flat(np.array([loss], np.float32), (), "float32", as_torch)
        if output_hidden_states:
            fields["decoder_hidden_states"] = tuple(
                _arrays.from_flat(values, (rows, length, d_model), "float32", as_torch) for values in (*inner, last)
            )
        fields["encoder_last_hidden_state"] = states
        if return_dict is False:
            order = ("loss", "logits", "decoder_hidden_states", "encoder_last_hidden_state")
            return tuple(fields[name] for name in order if name in fields)
        return _output("Seq2SeqLMOutput", fields)

    def score(
        self, input_ids: Any, labels: Any, attention_mask: Any = None, encoder_outputs: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Log-probabilities of targets: of each one the sum, ``[rows]``, and of every token,
        ``[rows, len]``, 0 where a label is -100. Logits are not kept.
        """
        wanted = _arrays.integers(labels, "labels")
        *_, log_probs = self._engine.decode(
            given=self._given(input_ids, attention_mask, encoder_outputs),
            rows=_rows(self._shifted(wanted)),
            targets=[[_target(id) for id in row] for row in wanted.tolist()],
            logits=False,
            hidden_states=False,
        )
        tokens = log_probs.reshape(wanted.shape)
        return tokens.sum(axis=1), tokens

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Any = None,
        streamer: Any = None,
        stop_strings: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        return_dict_in_generate: bool = False,
        max_rows: int = 32,
        **options: Any,
    ) -> Any:
        """Tokens ``[rows * num_return_sequences, len]``, start token first, filled up with the pad
        token: transformers' ``generate`` with its options and their meaning. An option that cannot
        be honoured raises.

        With ``do_sample`` and without ``seed`` the seed is drawn from PyTorch's generator, so that
        ``torch.manual_seed`` makes a call repeatable. ``max_rows`` bounds how many sequences are
        computed at a time. ``streamer`` has ``put`` and ``end``, for one row without beams.
        ``stop_strings`` need the ``tokenizer``: a sequence ends with the token that completes one. With
        ``return_dict_in_generate`` comes transformers' class, with ``sequences`` and of beams
        ``sequences_scores``; scores of single steps are not kept.
        """
        ids = input_ids if input_ids is not None else inputs
        if input_ids is not None and inputs is not None:
            raise InputError("`inputs` and `input_ids` are both given")
        as_torch = any(map(_arrays.is_torch, (ids, attention_mask, decoder_input_ids, _states_of(encoder_outputs))))
        given = self._given(ids, attention_mask, encoder_outputs)
        chosen = _options(generation_config, options)
        stop = _stop(stop_strings or chosen.pop("stop_strings", None), tokenizer)
        start, pad, draws, n_sequences, n_beams = self._engine.generation_facts(json.dumps(chosen))
        if draws and chosen.get("seed") is None:
            chosen["seed"] = _seed()
        text = json.dumps(chosen)
        n_rows = len(given["ids"] if given["ids"] is not None else given["row_starts"][1:])
        prefixes = None
        if decoder_input_ids is not None:
            prefixes = _rows(_arrays.integers(decoder_input_ids, "decoder_input_ids"))
            if len(prefixes) != n_rows:
                raise InputError(f"`decoder_input_ids` have {len(prefixes)} rows, expected {n_rows}")
            # As transformers: a prefix that nowhere begins with the start token is put behind it.
            if start is not None and all(not prefix or prefix[0] != start for prefix in prefixes):
                prefixes = [[start, *prefix] for prefix in prefixes]
        listener = None
        if streamer is not None:
            if (n_rows, n_sequences, n_beams) != (1, 1, 1):
                raise UnsupportedError("`streamer` is for one row and one sequence, without beams")
            first = prefixes[0] if prefixes else [start or 0]
            streamer.put(_array([first], as_torch))
            listener = lambda token: streamer.put(_array([token], as_torch))  # noqa: E731
        results = self._engine.generate(
            given=given, prefixes=prefixes, options=text, max_rows=max_rows, listener=listener, stop=stop
        )
        if streamer is not None:
            streamer.end()
        sequences = [sequence for row in results for sequence in row]
        longest = max((len(tokens) for tokens, *_ in sequences), default=0)
        padded = [tokens + [pad] * (longest - len(tokens)) for tokens, *_ in sequences]
        array = _array(padded, as_torch)
        if not return_dict_in_generate:
            return array
        if n_beams == 1:
            return _output("GenerateEncoderDecoderOutput", {"sequences": array}, "generation")
        scores = np.array([score for _, score, *_ in sequences], np.float32)
        fields = {"sequences": array, "sequences_scores": _arrays.from_flat(scores, scores.shape, "float32", as_torch)}
        return _output("GenerateBeamEncoderDecoderOutput", fields, "generation")

    def prepare_decoder_input_ids_from_labels(self, labels: Any) -> Any:
        """The labels shifted right behind the start token, -100 as the pad token."""
        return _array(self._shifted(_arrays.integers(labels, "labels")).tolist(), _arrays.is_torch(labels))

    # What is handed over.

    def _shifted(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        start, pad, *_ = self._engine.generation_facts("{}")
        if start is None:
            raise ConfigError("the model has no `decoder_start_token_id`, which labels are shifted behind")
        shifted = np.full_like(labels, start)
        shifted[:, 1:] = labels[:, :-1]
        shifted[shifted == _IGNORED_LABEL] = pad
        return shifted

    def _given(self, input_ids: Any, attention_mask: Any, encoder_outputs: Any) -> dict[str, Any]:
        states = _states_of(encoder_outputs)
        if (input_ids is None) == (states is None):
            raise InputError("either `input_ids` or `encoder_outputs` is to be given")
        if states is None:
            ids = _arrays.integers(input_ids, "input_ids")
            keep = _spans(attention_mask, ids.shape)
            _refuse_negative(ids)
            return {"ids": [ids[row, keep[row]].tolist() for row in range(len(ids))], "states": None, "row_starts": None}
        d_model = self._engine.d_model
        array = _arrays.floats(states, "encoder_outputs", (None, None, d_model), f"[rows, len, {d_model}]")
        keep = _spans(attention_mask, array.shape[:2])
        parts = [array[row, keep[row]] for row in range(len(array))]
        starts = np.cumsum([0, *map(len, parts)]).tolist()
        flat = np.concatenate(parts).reshape(-1) if parts else np.zeros(0, np.float32)
        return {"ids": None, "states": np.ascontiguousarray(flat), "row_starts": starts}


def _spans(mask: Any, shape: Sequence[int], name: str = "attention_mask") -> list[slice]:
    """The tokens of each row: all of them, or those that its mask names, which follow each other."""
    if mask is None:
        return [slice(0, shape[1])] * shape[0]
    array = _arrays.to_numpy(mask, name)
    if array.shape != tuple(shape):
        raise InputError(f"`{name}` has shape {list(array.shape)}, expected {list(shape)}")
    spans = []
    for row, flags in enumerate(array != 0):
        (where,) = np.nonzero(flags)
        if len(where) == 0:
            raise InputError(f"row {row} of `{name}` hides every token")
        first, end = int(where[0]), int(where[-1]) + 1
        if end - first != len(where):
            raise UnsupportedError(f"row {row} of `{name}` has a gap, which is not done for encoder-decoder models")
        spans.append(slice(first, end))
    return spans


def _states_of(encoder_outputs: Any) -> Any:
    if encoder_outputs is None:
        return None
    states = getattr(encoder_outputs, "last_hidden_state", None)
    return encoder_outputs[0] if states is None else states


def _refuse_negative(ids: NDArray[np.int64]) -> None:
    if ids.size and int(ids.min()) < 0:
        raise InputError(f"token id {int(ids.min())} is outside the vocabulary")


def _rows(ids: NDArray[np.int64]) -> list[list[int]]:
    _refuse_negative(ids)
    rows: list[list[int]] = ids.tolist()
    return rows


def _target(label: int) -> int | None:
    return None if label == _IGNORED_LABEL else label


def _array(rows: Any, as_torch: bool) -> Any:
    array = np.array(rows, dtype=np.int64)
    if as_torch:
        import torch

        return torch.from_numpy(array)
    return array


def _output(name: str, fields: dict[str, Any], module: str = "modeling_outputs") -> Any:
    """transformers' own class, or a plain object with the fields that are there."""
    from importlib import import_module

    try:
        found = import_module(f"transformers.{module}")
    except ImportError:
        return SimpleNamespace(**{"loss": None, "decoder_hidden_states": None, **fields})
    return getattr(found, name)(**fields)


def _options(generation_config: Any, options: dict[str, Any]) -> dict[str, Any]:
    """transformers' names: of a config what differs from the defaults, and over it what is given."""
    chosen: dict[str, Any] = {}
    if isinstance(generation_config, dict):
        chosen.update(generation_config)
    elif generation_config is not None:
        chosen.update(generation_config.to_diff_dict())
    for name, value in options.items():
        if value is None or (name in _NEUTRAL and not value):
            continue
        if name in _NOT_KEPT and value:
            raise UnsupportedError(f"`{name}` cannot be used: what a step leaves behind is not kept")
        chosen[name] = value.tolist() if hasattr(value, "tolist") else value
    try:
        json.dumps(chosen)
    except TypeError as error:
        raise UnsupportedError(f"a generation option cannot be used: {error}") from error
    return chosen


def _stop(strings: str | Sequence[str] | None, tokenizer: Any) -> Callable[[list[int]], bool] | None:
    """Whether new tokens, decoded, hold one of the strings."""
    if not strings:
        return None
    if tokenizer is None:
        raise InputError("`stop_strings` are given without the `tokenizer` that tokens are decoded with")
    ends = [strings] if isinstance(strings, str) else list(strings)

    def stop(tokens: list[int]) -> bool:
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return any(end in text for end in ends)

    return stop


def _json(folder: str | None, name: str) -> dict[str, Any] | None:
    """A file of the model's folder, if it is there."""
    if folder is None or not os.path.exists(os.path.join(folder, name)):
        return None
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        fields: dict[str, Any] = json.load(file)
    return fields


def _hf_object(name: str, arguments: dict[str, Any], fields: dict[str, Any]) -> Any:
    """transformers' class of that name made from ``arguments``, or ``fields`` as attributes."""
    try:
        import transformers
    except ImportError:
        return SimpleNamespace(**fields)
    return getattr(transformers, name).from_dict(arguments)


def _seed() -> int:
    try:
        import torch
    except ImportError:
        return int(np.random.default_rng().integers(2**62))
    return int(torch.randint(2**62, (1,)).item())


class Encoder:
    """The encoder of a :class:`ConditionalGeneration`: token ids in, hidden states out. It holds no weights
    of its own.
    """

    main_input_name = "input_ids"

    def __init__(self, model: ConditionalGeneration) -> None:
        self._model = model

    @property
    def config(self) -> Any:
        """That of the model."""
        return self._model.config

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`forward`."""
        return self.forward(*args, **kwargs)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, *, return_dict: bool | None = None) -> Any:
        """``last_hidden_state`` ``[rows, len, d_model]`` in float32, zeros where the mask hides."""
        ids = _arrays.integers(input_ids, "input_ids")
        _refuse_negative(ids)
        spans = _spans(attention_mask, ids.shape)
        engine = self._model._engine
        flat = engine.encode([row[span].tolist() for row, span in zip(ids, spans, strict=True)])
        states = np.zeros((*ids.shape, engine.d_model), np.float32)
        tokens = flat.reshape(-1, engine.d_model)
        first = 0
        for row, span in enumerate(spans):
            end = first + span.stop - span.start
            states[row, span] = tokens[first:end]
            first = end
        array = _arrays.from_flat(states.reshape(-1), states.shape, "float32", _arrays.is_torch(input_ids))
        return (array,) if return_dict is False else _output("BaseModelOutput", {"last_hidden_state": array})


class T5ForConditionalGeneration(ConditionalGeneration):
    """In place of transformers' T5ForConditionalGeneration.

    >>> import quintic
    >>> quintic.T5ForConditionalGeneration.from_pretrained("no/such/folder")
    Traceback (most recent call last):
    quintic.errors.ModelNotFoundError: no/such/folder: there is no such file or folder
    """

    # mT5 is T5 in all but its config: programs load either with either class.
    _families = ("t5", "mt5")


class MT5ForConditionalGeneration(ConditionalGeneration):
    """In place of transformers' MT5ForConditionalGeneration; see T5ForConditionalGeneration."""

    _families = ("t5", "mt5")


class UMT5ForConditionalGeneration(ConditionalGeneration):
    """In place of transformers' UMT5ForConditionalGeneration; see T5ForConditionalGeneration.

    Scores of a model with a head of its own are those of transformers 4.57: 5 scales them.
    """

    _families = ("umt5",)


for _class in (T5ForConditionalGeneration, MT5ForConditionalGeneration, UMT5ForConditionalGeneration):
    # Where users find them.
    _class.__module__ = "quintic"
