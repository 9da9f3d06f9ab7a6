"""Folders in the form of Hugging Face that GPTQ or AWQ tools wrote: `config.json` and safetensors files."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ...ir.errors import CheckpointError
from ...ir.quantization import QuantizedWeight
from .awq import from_awq
from .checkpoint import Checkpoint, Plain, Quantized, named
from .gptq import from_gptq

_INDEX = "model.safetensors.index.json"
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; raises `CheckpointError`.

    A layer is quantised when it has a `qweight`. All other tensors are plain, under the names that they have in the
    files: old tools also wrote biases of zeros for layers that have none in Transformers."""
    settings = _settings(folder)
    method = str(settings.get("quant_method", "")).lower()
    if method not in _READERS:
        raise CheckpointError(
            f"{folder}: quant_method = {method!r} in config.json: {' and '.join(_READERS)} can be read"
        )
    source, read = method.upper(), _READERS[method](settings)
    tensors = _tensors(folder)
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    quantized: dict[str, Quantized] = {}
    for layer in layers:
        parts = {part: tensors.pop(f"{layer}.{part}") for part in _PARTS if f"{layer}.{part}" in tensors}
        missing = [part for part in ("qzeros", "scales") if part not in parts]
        if missing:
            raise CheckpointError(
                f"{folder}: {layer} has a qweight, but no {' and no '.join(missing)}: {source} stores them together"
            )
        name = f"{layer}.weight"
        quantized[name] = named(f"{source} weight {name} in {folder}", partial(_quantized, parts, read))
    # Buffers of the rotary embedding, which older versions of Transformers saved, are computed from the configuration.
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(".rotary_emb.inv_freq")}
    return Checkpoint(_config(folder), quantized, plain, source)


def _settings(folder: Path) -> Mapping[str, Any]:
    """`quantization_config` of config.json."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json: name a model's folder, or a .gguf file") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        raise CheckpointError(
            f"{path} has no quantization_config: the model is not quantised, load it with Transformers"
        )
    return settings


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    return config


def _tensors(folder: Path) -> dict[str, Plain]:
    """How to read each tensor, by name; the files are mapped."""
    tensors: dict[str, Plain] = {}
    for path in _files(folder):
        try:
            file = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole file of tensors: {error}") from None
        tensors |= {name: partial(file.get_tensor, name) for name in file.offset_keys()}
    return tensors


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        held = ", ".join(path.name for path in files) or "none"
        raise CheckpointError(
            f"{folder} has no {_INDEX}, so there should be one *.safetensors file; there is: {held}. Older kinds of "
            "files (.bin, .pt) can be converted with safetensors"
        )
    return files


def _quantized(parts: Mapping[str, Plain], read: Callable[..., QuantizedWeight]) -> QuantizedWeight:
    return read(**{part: tensor() for part, tensor in parts.items()})


def _gptq(settings: Mapping[str, Any]) -> Callable[..., QuantizedWeight]:
    form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    return partial(from_gptq, checkpoint_format=form, symmetric=bool(settings.get("sym", False)))


def _awq(settings: Mapping[str, Any]) -> Callable[..., QuantizedWeight]:
    version = settings.get("version") or settings.get("format") or "gemm"

    def read(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, **_: torch.Tensor) -> QuantizedWeight:
        return from_awq(qweight, qzeros, scales, version)  # GPTQModel writes a g_idx here, too, which AWQ does not use

    return read


_READERS = {"gptq": _gptq, "awq": _awq}
METHODS = tuple(_READERS)
"""`quant_method` of what can be read."""
