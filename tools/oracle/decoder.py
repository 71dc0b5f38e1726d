"""transformers' encoder-decoder models over a model folder, in float64 and in float32.

As ``run_reference`` does for encoders: exactly the stored weights, eager attention, exact norms in
float64. What had to be known besides:

- transformers 5 ties the output head to the embedding in every new model; a stored head is put into
  a parameter of its own here.
- transformers 5 scales the decoder's output of every UMT5 by d_model^-0.5, although published UMT5
  was trained with a head of its own and 4.57 scales only where ``tie_word_embeddings`` is true in
  the file. The flag is put back here. mT5 is never scaled by 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from oracle.cases import Model
from oracle.make_models import read_tensors
from oracle.run_reference import make_norms_exact, stored_tensor

HEAD = "lm_head.weight"


def load_model(folder: Path, model: Model, dtype: torch.dtype) -> Any:
    """The model of a folder, on exactly its stored weights."""
    model_class = getattr(transformers, model.oracle.replace("EncoderModel", "ForConditionalGeneration"))
    config = model_class.config_class.from_pretrained(folder)
    config._attn_implementation = "eager"
    tensors = read_tensors(folder)
    is_tied = HEAD not in tensors
    loaded = model_class(config).to(dtype).eval()
    if not is_tied:
        loaded.lm_head.weight = torch.nn.Parameter(torch.empty_like(loaded.lm_head.weight))
    loaded.requires_grad_(False)
    if model.is_umt5:
        config.tie_word_embeddings = is_tied
    elif getattr(config, "scale_decoder_outputs", False) != is_tied:
        raise AssertionError(f"{model.name}: transformers scales otherwise than {is_tied}")
    for name, parameter in loaded.named_parameters(remove_duplicate=False):
        if name == HEAD and is_tied:
            continue
        stored = stored_tensor(tensors, name)
        if stored.shape != parameter.shape:
            raise ValueError(f"{name}: stored as {tuple(stored.shape)}, expected {tuple(parameter.shape)}")
        parameter.data.copy_(stored)
    if is_tied and not torch.equal(loaded.lm_head.weight, loaded.shared.weight):
        raise AssertionError(f"{model.name}: the head should be the embedding")
    if dtype == torch.float64:
        make_norms_exact(loaded)
    return loaded
