"""Models that others quantised, compiled with the codes that they came with: GPTQ, AWQ, GGUF on disk, torchao in
memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...ir.errors import CheckpointError
from ..model_state import ModelState, keep_state
from ..options import Options
from ..release import unreadable
from .checkpoints.checkpoint import Checkpoint, Plain, Quantized, named
from .checkpoints.folder import METHODS, quantization_method
from .checkpoints.json_file import read_object
from .checkpoints.reading import read_checkpoint
from .checkpoints.torchao import LAYOUTS, from_torchao
from .checkpoints.transformers_model import empty_model, refusing

RECIPE = "given"


def is_quantized_checkpoint(path: Path) -> bool:
    """True for a `.gguf` file, and for a folder whose configuration names a method that `load_checkpoint` reads.

    Raises `CheckpointError` for a configuration that cannot be read."""
    if path.suffix == ".gguf":
        return True
    config = path / "config.json"
    return config.exists() and quantization_method(config, read_object(config)) in METHODS


def load_checkpoint(path: Path, options: Mapping[str, Any], dtype: torch.dtype | None = None) -> Any:
    """The causal language model of a quantised checkpoint, compiled in place, with its weights as they are.

    dtype: of what is not quantised and of activations; None: that of the checkpoint's configuration, else bfloat16.
    options: of the lutra backend; the recipe should have the pass `given-weights` (default: the recipe `given`).
    Raises `CheckpointError`."""
    checkpoint = read_checkpoint(path)
    config: Any = checkpoint.config
    dtype = dtype or (config.dtype if isinstance(config.dtype, torch.dtype) else torch.bfloat16)
    empty = empty_model(path, config, len(checkpoint.quantized) + len(checkpoint.plain)).to(dtype)
    values = _values(path, checkpoint, empty, dtype)
    with refusing(f"{path}: Transformers does not load it"):
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
    """What the model's tensors are filled with; quantised ones get no values. Nothing is read before all fits."""
    wanted, kind = empty.state_dict(), type(empty).__name__
    parameters = dict(empty.named_parameters())  # without the second name of one that is tied
    stored: dict[str, Quantized | Plain] = {**checkpoint.quantized, **checkpoint.plain}
    for name, tensor in stored.items():
        if name not in (parameters if isinstance(tensor, Quantized) else wanted):
            if isinstance(tensor, Plain) and name.endswith(".bias") and not tensor().any():
                continue  # some tools write a bias for layers that have none
            raise CheckpointError(f"{path}: a {kind} has no {name}, which the checkpoint holds")
        if tensor.shape != tuple(wanted[name].shape):
            raise CheckpointError(
                f"{path}: {name} is {list(tensor.shape)} where the model has {list(wanted[name].shape)}"
            )
        if isinstance(tensor, Plain) and not _converts(tensor.dtype, wanted[name].dtype):
            raise CheckpointError(f"{path}: {name} is {tensor.dtype} where the model has {wanted[name].dtype}")
        if isinstance(tensor, Quantized) and not isinstance(empty.get_submodule(name.rpartition(".")[0]), nn.Linear):
            raise CheckpointError(f"{path}: {name} is quantised, and belongs to no linear layer of a {kind}")
    missing = sorted(parameters.keys() - stored.keys())
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing[:5])}, which a {kind} needs")
    values: dict[str, torch.Tensor] = {}
    for name in sorted(checkpoint.quantized, key=lambda name: -wanted[name].numel()):  # the largest first
        values[name] = unreadable(wanted[name].shape, dtype)
    for name in checkpoint.plain.keys() & wanted.keys():
        value = checkpoint.plain[name]()
        values[name] = value.to(dtype) if value.is_floating_point() else value
    return values


def _converts(stored: torch.dtype | None, wanted: torch.dtype) -> bool:
    return stored == wanted or (stored is not None and stored.is_floating_point and wanted.is_floating_point)


def _compiled(model: Any, given: Mapping[str, tuple[torch.Tensor, Any]], options: Mapping[str, Any]) -> Any:
    options = {"recipe": RECIPE, **options}
    state = ModelState(Options.parse(options))
    for name, (tensor, read) in given.items():
        state.store.give(state.store.bind_released(name, tensor), read)
    keep_state(model, state)
    model.compile(backend="lutra", options=options)
    return model.eval()
