"""Causal language models that are not quantised, as Transformers loads them: from a folder or from the hub."""

import math
import os
import re
from pathlib import Path
from typing import Any

from ....ir.errors import CheckpointError
from ..regular_files import regular_file
from .json_file import read_object
from .tensor_files import stored_tensors
from .transformers_model import empty_model, refusing, transformers_config

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


def load_unquantized(model: str, dtype: str) -> Any:
    """The model in the folder `model`, or of that name in the hub, in evaluation mode; raises `CheckpointError`.

    dtype: of its weights; "auto": their own. Weights are those of safetensors files, code is that of Transformers."""
    from transformers import AutoModelForCausalLM

    if os.path.exists(model):
        what, config = f"{model}: Transformers does not load it", checked_config(Path(model))
    elif _HUB_NAME.fullmatch(model) and not model.endswith(".gguf"):
        what, config = f"{model} is no folder here, and Transformers does not load it from the hub", None
    else:
        raise CheckpointError(f"there is no folder or file {model!r}")
    keywords = {} if config is None else {"config": config}
    cls: Any = AutoModelForCausalLM
    with refusing(what):
        loaded, found = cls.from_pretrained(
            model, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **keywords
        )
    if missing := sorted(found["missing_keys"]):  # Transformers gives them random values
        raise CheckpointError(f"{model} lacks {', '.join(missing[:5])}, which a {type(loaded).__name__} needs")
    return loaded.eval()


def checked_config(folder: Path) -> Any:
    """The configuration of the model in `folder`, which needs no more values than its files hold; raises
    `CheckpointError`."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is neither a folder with a config.json nor a .gguf file")
    try:
        beside = [path for path in folder.iterdir() if path.exists() and not path.is_dir()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None
    for path in beside:  # Transformers opens more of them than weights and configuration
        regular_file(path, CheckpointError)
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no config.json: name a model's folder, or a .gguf file")
    values = read_object(path)
    tensors = stored_tensors(folder)
    config = transformers_config(path, values, len(tensors))
    # What Transformers unpacks by itself (FP8, BitNet) takes a bit or more a value; everything else is as it is stored.
    packed = 64 if values.get("quantization_config") else 1
    held = packed * sum(math.prod(tensor.shape) for tensor in tensors.values())
    needed = sum(parameter.numel() for parameter in empty_model(folder, config, len(tensors)).parameters())
    if needed > held:
        raise CheckpointError(f"{folder}: by its configuration it has {needed} values, its files hold {held}")
    return config
