"""Configurations in JSON that somebody else wrote: what Lutra reads of them, and what Transformers makes of the rest."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from ...ir.errors import CheckpointError, LutraError
from ..regular_files import regular_file
from .gguf_header import shown

_LARGEST = 64 << 20
"""Bytes of a JSON file; the index of the largest models has 10 MB."""
_COUNTS = re.compile(r"(layer|block|expert|head|label|codebook)s?$")
"""Keys whose number Transformers makes so many of something for."""
_SPARE = 1000
"""How much greater than the number of tensors a count may be: some are defaults that a small model does not use."""
_NAMES_CODE = {"auto_map", "attn_implementation", "experts_implementation", "custom_pipelines", "transformers_weights"}
"""Keys that say which code is run for the model, or which other file holds its weights."""
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises `CheckpointError`."""
    size = regular_file(path, CheckpointError).stat().st_size
    if size > _LARGEST:
        raise CheckpointError(f"{path} has {size} bytes: {_LARGEST} would be the most for JSON")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deep to be read") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {shown(value)}: an object, {{...}}, would be right")
    return value


def transformers_config(path: Path, values: dict[str, Any], tensors: int) -> Any:
    """The configuration of Transformers for the `values` of the config.json in `path`; raises `CheckpointError`.

    tensors: how many there are in the files beside it, against which counts of layers and the like are held. Code is
    that of Transformers only: what names other code is left out."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise CheckpointError(f"{path}: model_type = {shown(model_type)} is none that this version of Transformers knows")
    _check(path, values, tensors + _SPARE)
    # Transformers reads a copy: which class it takes does not depend on the type alone.
    with tempfile.TemporaryDirectory() as folder, from_transformers(f"{path} makes no configuration of a {model_type}"):
        (Path(folder) / "config.json").write_text(json.dumps(_without_code(values)))
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.name_or_path = path.parent
    if config.dtype is not None and config.dtype not in FLOATING:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise CheckpointError(f"{path}: dtype = {shown(config.dtype)} is no floating type: {names} can be read")
    return config
