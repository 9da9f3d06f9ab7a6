"""What Transformers makes of a configuration that somebody else wrote, held against the tensors that are there.

A few characters of a configuration ask for a million layers, or for a buffer that no machine has. Nothing is allocated
for it before it fits the files, and no code runs but that of Transformers.
"""

import json
import math
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ....ir.errors import CheckpointError, LutraError, shown

_COUNTS = re.compile(r"(layer|block|expert|head|label|codebook)s?$")
"""Keys whose number Transformers makes so many of something for."""
_FINITE = re.compile(r"^rope|theta$|eps$|epsilon$")
_SPARE = 1000
"""How far a count may exceed the number of tensors: some are defaults that a small model does not use."""
_NAMES_CODE = re.compile(r"^auto_map$|_implementation$|_implementation_internal$|^transformers_weights$")
"""Keys that choose the code that a model runs, some of it from the hub, or another file for its weights."""
_MOST_BUFFER_BYTES = 1 << 30
"""Buffers are computed, not stored: tables of angles and masks."""
_LONGEST_REASON = 500
_PARAMETERS = (register_module_parameter_registration_hook,)
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def transformers_config(path: Path, values: Mapping[str, Any], tensors: int) -> Any:
    """The configuration of Transformers for the `values` of the config.json at `path`; raises `CheckpointError`.

    tensors: how many there are in the files beside it, against which counts of layers and the like are held. What
    names code is left out."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(f"{path}: model_type = {shown(kind)} is none that this version of Transformers knows")
    _check_numbers(path, values, tensors)
    # Transformers reads a copy: which class of configuration it takes does not depend on the type alone.
    with tempfile.TemporaryDirectory() as folder, refusing(f"{path} is no configuration of a {kind}"):
        (Path(folder) / "config.json").write_text(json.dumps(_without_code(values)))
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.name_or_path = str(path.parent)
    if config.dtype is not None and config.dtype not in _FLOATING:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATING)
        raise CheckpointError(f"{path}: dtype = {shown(config.dtype)} is not one of {names}")
    return config


def empty_model(path: Path, config: Any, tensors: int) -> Any:
    """The causal language model of `config` on the meta device; raises `CheckpointError`.

    tensors: how many there are in the checkpoint at `path`."""
    from transformers import AutoModelForCausalLM

    layers, limit = getattr(config.get_text_config(), "num_hidden_layers", None), 2 * tensors + _SPARE
    with (
        refusing(f"{path}: Transformers builds no model of its configuration"),
        parts_at_most(
            limit, CheckpointError(f"{path}: its configuration (of {layers} layers) needs more than {limit} parameters")
        ),
        torch.device("meta"),
    ):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    for name, buffer in model.named_buffers():
        if buffer.nbytes > _MOST_BUFFER_BYTES:
            raise CheckpointError(
                f"{path}: by its configuration, the buffer {name} has the shape {list(buffer.shape)}: "
                f"{_MOST_BUFFER_BYTES} bytes would be the most"
            )
    return model


@contextmanager
def refusing(what: str, kind: type[LutraError] = CheckpointError) -> Iterator[None]:
    """Say `what` of any error but Lutra's own, as a `kind`.

    What Transformers raises for a configuration that it cannot use is of every class there is."""
    try:
        yield
    except LutraError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        printable = "".join(c if c.isprintable() else "?" for c in reason)  # it may quote what it was given
        raise kind(f"{what}: {type(error).__name__}: {printable}") from error


@contextmanager
def parts_at_most(
    count: int, error: LutraError, registries: Sequence[Callable[..., Any]] = _PARAMETERS
) -> Iterator[None]:
    """Let modules that this thread makes have `count` parts together, and raise `error` for the next. `registries`:
    torch's functions that register a hook for each kind of part (default: parameters)."""
    thread, left = threading.get_ident(), count

    def registered(module: nn.Module, name: str, part: Any) -> None:
        nonlocal left
        if threading.get_ident() == thread and part is not None:
            left -= 1
            if left < 0:
                raise error

    hooks = [register(registered) for register in registries]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_numbers(path: Path, values: Mapping[str, Any], tensors: int) -> None:
    """Raise `CheckpointError` for a count that no checkpoint of so many `tensors` has, and for NaN and infinity where
    they would go into every result."""
    waiting: list[tuple[str, bool, Any]] = [("", False, values)]
    while waiting:  # no recursion: it may be nested as deep as its author likes
        key, finite, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(name, finite or bool(_FINITE.search(name)), below) for name, below in value.items()]
        elif isinstance(value, list):
            waiting += [(key, finite, below) for below in value]
        elif isinstance(value, int) and _COUNTS.search(key) and value > tensors + _SPARE:
            raise CheckpointError(f"{path}: {key} = {value}, where the files hold {tensors} tensors")
        elif isinstance(value, float) and finite and not math.isfinite(value):
            raise CheckpointError(f"{path}: {key} = {value}: a finite number would be right")
        if key.endswith("theta") and isinstance(value, int | float) and value <= 0:
            raise CheckpointError(f"{path}: {key} = {value}: a positive number would be right")


def _without_code(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_code(value) for key, value in values.items() if not _NAMES_CODE.search(key)}
    return [_without_code(value) for value in values] if isinstance(values, list) else values
