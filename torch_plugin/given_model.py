"""Models that others quantised, compiled with the codes that they came with: GPTQ, AWQ, GGUF on disk, torchao in
memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..ir.errors import CheckpointError
from .checkpoints.checkpoint import Checkpoint, named
from .checkpoints.folder import METHODS
from .checkpoints.reading import read_checkpoint
from .checkpoints.torchao import LAYOUTS, from_torchao
from .model_state import ModelState, keep_state
from .options import Options
from .release import unreadable

RECIPE = "given"


def is_quantized_checkpoint(path: Path) -> bool:
    """True for a `.gguf` file, and for a folder whose configuration names a method that `load_checkpoint` reads."""
    if path.suffix == ".gguf":
        return True
    try:
        settings = json.loads((path / "config.json").read_text()).get("quantization_config") or {}
    except (OSError, ValueError, AttributeError):
        return False
    return str(settings.get("quant_method", "")).lower() in METHODS


def load_checkpoint(path: Path, options: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    """The causal language model of a quantised checkpoint, compiled in place, with its weights as they are.

    dtype: of what is not quantised and of activations; None: that of the checkpoint's configuration, else bfloat16.
    options: of the lutra backend; the recipe should have the pass `given-weights` (default: the recipe `given`).
    Raises `CheckpointError`."""
    from transformers import AutoModelForCausalLM

    checkpoint = read_checkpoint(path)
    config: Any = checkpoint.config
    dtype = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config).to(dtype)
    values = _values(path, checkpoint, empty, dtype)
    model = type(empty).from_pretrained(None, config=config, state_dict=values, dtype=dtype).eval()
    parameters = dict(model.named_parameters())
    return _compiled(model, {name: (parameters[name], read) for name, read in checkpoint.quantized.items()}, options)


def adopt_torchao(model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """`model` compiled in place with the int4 weights that torchao's `quantize_` gave it, which are taken out of it.

    Raises `CheckpointError` when there are none."""
    found = {}
    for path, module in list(model.named_modules()):
        weight: Any = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and type(weight).__name__.startswith("Int4"):
            name = f"{path}.weight".lstrip(".")
            empty = nn.Parameter(unreadable(weight.shape, weight.dtype), requires_grad=False)
            module.weight = empty
            found[name] = (empty, named(name, lambda weight=weight: from_torchao(weight)))
    if not found:
        raise CheckpointError(
            f"no linear of the {type(model).__name__} has a weight of torchao's {' or '.join(LAYOUTS)}"
        )
    return _compiled(model, found, options)


def _values(path: Path, checkpoint: Checkpoint, empty: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the model's tensors are filled with; quantised ones get no values."""
    wanted = dict(empty.named_parameters())
    persistent = set(empty.state_dict())
    values: dict[str, torch.Tensor] = {}
    for name in sorted(checkpoint.quantized, key=lambda name: -_count(wanted.get(name))):  # the largest first
        if name not in wanted:
            raise CheckpointError(f"{path}: a {type(empty).__name__} has no {name}, which the checkpoint holds")
        tensor = wanted[name]
        values[name] = unreadable(tensor.shape, dtype)
    for name, read in checkpoint.plain.items():
        value = read()
        if name not in persistent:
            if name.endswith(".bias") and not value.any():
                continue  # some tools write a bias for layers that have none
            raise CheckpointError(f"{path}: a {type(empty).__name__} has no {name}, which the checkpoint holds")
        if value.shape != empty.state_dict()[name].shape:
            raise CheckpointError(
                f"{path}: {name} is {list(value.shape)} where the model has {list(empty.state_dict()[name].shape)}"
            )
        values[name] = value.to(dtype) if value.is_floating_point() else value
    missing = sorted(wanted.keys() - values.keys())
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing[:5])}, which a {type(empty).__name__} needs")
    return values


def _count(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel()


def _compiled(model: Any, given: Mapping[str, tuple[torch.Tensor, Any]], options: Mapping[str, Any]) -> Any:
    options = {"recipe": RECIPE, **options}
    state = ModelState(Options.parse(options))
    for name, (tensor, read) in given.items():
        state.store.give(state.store.bind_released(name, tensor), read)
    keep_state(model, state)
    model.compile(backend="lutra", options=options)
    return model.eval()
