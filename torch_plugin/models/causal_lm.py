"""Causal language models of Transformers for the command line: from a checkpoint or a packed folder, compiled in place,
and a generation that runs a prefill and decode steps over a static cache."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ...ir.errors import CheckpointError, LutraError, shown
from ...passes.registry import available_passes
from ...recipes.loading import load_recipe
from ..options import Options
from .checkpoints.transformers_folder import load_unquantized
from .given_model import RECIPE, is_quantized_checkpoint
from .loading import load
from .packed_manifest import is_packed


def load_causal_lm(model: str, dtype: str, recipe: str | None, variables: Mapping[str, Any], default: str) -> Any:
    """`model` compiled with `recipe`, its originals released; `dtype`: of what stays in floating point ("auto": its
    own).

    model: folder or hub name of a checkpoint, whose recipe is `default` when none is given; a checkpoint that others
    quantised, with its own codes; or a folder that `lutra pack` wrote, which has its recipe. Raises `CheckpointError`
    or `PackedModelError`, and `RecipeError` before anything is loaded."""
    if find_spec("transformers") is None:
        raise LutraError("models are loaded with Transformers: pip install transformers")
    options: dict[str, Any] = {"vars": variables} if variables else {}
    options |= {"recipe": recipe} if recipe is not None else {}
    here = os.path.exists(model)  # False, too, for what no path can be
    if here and is_packed(model):
        return load(model, options=options)
    quantized = here and is_quantized_checkpoint(Path(model))
    options = {"recipe": RECIPE if quantized else default, "release_weights": True, **options}
    checked = Options.parse(options)
    load_recipe(checked.recipe, available_passes(), checked.vars)
    if quantized:
        return load(model, options=options, dtype=None if dtype == "auto" else getattr(torch, dtype))
    loaded = load_unquantized(model, dtype)
    loaded.compile(backend="lutra", options=options)
    return loaded


def load_tokenizer(model: str) -> Any:
    """The tokenizer that lies beside `model`, or None; raises `CheckpointError` where it is code or cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=os.path.exists(model))
    except Exception as error:  # whatever a folder's files make Transformers raise
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"the tokenizer of {model} needs code of its own (auto_map), which Lutra never runs"
            ) from None
        if any(Path(model).glob("tokenizer*")):
            raise CheckpointError(f"the tokenizer of {model} cannot be read: {shown(str(error))}") from error
        return None  # a model without one, for example of random weights


def generate(model: Any, prompt: int, new_tokens: int, batch: int = 1) -> None:
    """`new_tokens` greedy tokens after `prompt` random ones, for each of `batch` sequences, over a static cache."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and prompt + new_tokens - 1 > positions:  # the last token is not read again
        raise LutraError(f"{prompt} tokens and {new_tokens} new ones are more than the model's {positions} positions")
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0))
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    keywords = {"cache_implementation": "static", "disable_compile": True, "do_sample": False}
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), **lengths, **keywords)
