"""`lutra.load`: models whose weights are low-bit on disk, compiled in place."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...ir.errors import CheckpointError
from .given_model import is_quantized_checkpoint, load_checkpoint
from .packed_manifest import is_packed
from .packed_model import load_packed


def load(
    path: Path | str,
    model: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The model at `path`, under `model.compile`: its weights are there, and its code comes with its first call.

    path: a folder that `lutra pack` wrote, whose weights are mapped into memory; or a causal language model that others
    quantised, whose codes are kept: a folder of GPTQ or AWQ weights, or a `.gguf` file. model: a module of the
    structure of a packed one, whose tensors are replaced; needed for what is no model of Transformers. options: of the
    lutra backend; a packed folder has its own recipe, another checkpoint is compiled with the recipe `given`. dtype: of
    what a checkpoint of others holds in floating point. Raises `PackedModelError` or `CheckpointError`."""
    path = Path(path)
    if not os.path.exists(path):  # False, too, for what no path can be
        raise CheckpointError(f"there is no folder or file {str(path)!r}")
    if not is_packed(path) and is_quantized_checkpoint(path):
        return load_checkpoint(path, options or {}, dtype)
    return load_packed(path, model, options or {})
