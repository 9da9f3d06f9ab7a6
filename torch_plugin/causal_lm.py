"""Causal language models of Transformers for the command line: from a checkpoint or a packed folder, compiled in place,
and a generation that runs a prefill and decode steps over a static cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..ir.errors import LutraError
from .packed_model import is_packed, load


def load_causal_lm(model: str, dtype: str, options: Mapping[str, Any]) -> Any:
    """`model`: a folder that `lutra pack` wrote, or folder or hub name of a checkpoint, loaded as `dtype` ("auto": its
    own). `options`: of the lutra backend; a packed folder has its own recipe."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise LutraError("models are loaded with Transformers: pip install transformers") from None
    if is_packed(model):
        return load(Path(model), options={k: v for k, v in options.items() if k not in ("recipe", "vars")})
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    loaded.compile(backend="lutra", options=dict(options))
    return loaded


def generate(model: Any, prompt: int, new_tokens: int, batch: int = 1) -> None:
    """`new_tokens` greedy tokens after `prompt` random ones, for each of `batch` sequences, over a static cache."""
    ids = torch.randint(0, model.config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0))
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    keywords = {"cache_implementation": "static", "disable_compile": True, "do_sample": False}
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), **lengths, **keywords)
