"""Folders in the form of Hugging Face that GPTQ or AWQ tools wrote: `config.json` and safetensors files."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ....ir.errors import CheckpointError, QuantizationError, shown
from ....ir.weights.formats import QuantizedWeight
from .awq import awq_layout, from_awq
from .checkpoint import Checkpoint, Plain, Quantized, named
from .common import Layout
from .gptq import from_gptq, gptq_layout
from .json_file import read_object
from .tensor_files import stored_tensors
from .transformers_model import transformers_config

_PARTS = ("qweight", "qzeros", "scales", "g_idx")

Parts = Mapping[str, torch.Tensor]
"""The tensors of a layer by what is in `_PARTS`; g_idx may be missing."""


def _no_zero(size: int) -> int:
    if not size:
        raise ValueError("-1 or a positive number would be right")
    return size


class _Settings(BaseModel):
    """What both have in `quantization_config`. bits and group_size (-1: one group a row) only have to be possible: the
    tensors decide, since single layers may have other ones."""

    model_config = ConfigDict(strict=True)

    bits: Literal[2, 3, 4, 8] = 4
    group_size: Annotated[int, Field(ge=-1, lt=2**31), AfterValidator(_no_zero)] = -1
    version: str | None = None
    format: str | None = None


class _Gptq(_Settings):
    checkpoint_format: str | None = None
    sym: bool = False

    def layout(self, parts: Parts) -> Layout:
        return gptq_layout(**parts)

    def read(self, parts: Parts) -> QuantizedWeight:
        return from_gptq(**parts, checkpoint_format=self.checkpoint_format or self.format or "gptq", symmetric=self.sym)


class _Awq(_Settings):
    """GPTQModel writes a g_idx here, too, which AWQ does not use."""

    def layout(self, parts: Parts) -> Layout:
        return awq_layout(parts["qweight"], parts["qzeros"], parts["scales"])

    def read(self, parts: Parts) -> QuantizedWeight:
        return from_awq(parts["qweight"], parts["qzeros"], parts["scales"], self.version or self.format or "gemm")


_METHODS = {"gptq": _Gptq, "awq": _Awq}
METHODS = tuple(_METHODS)
"""`quant_method` of what can be read."""


def quantization_method(path: Path, config: Mapping[str, Any]) -> str | None:
    """`quant_method` of the `config` that is at `path`, in lower case; None for a model that is not quantised. Raises
    `CheckpointError`."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: quantization_config = {shown(settings)}: an object, {{...}}, would be right")
    return str(settings.get("quant_method", "")).lower()


def read_folder(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; raises `CheckpointError`.

    A layer is quantised when it has a `qweight`. All other tensors are plain, under the names that they have in the
    files: old tools also wrote biases of zeros for layers that have none in Transformers."""
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no config.json: name a model's folder, or a .gguf file")
    config = read_object(path)
    method = quantization_method(path, config)
    if method is None:
        raise CheckpointError(
            f"{path} has no quantization_config: the model is not quantised, load it with Transformers"
        )
    if method not in _METHODS:
        raise CheckpointError(
            f"{folder}: quant_method = {shown(method)} in config.json: {' and '.join(METHODS)} can be read"
        )
    settings = _settings(path, method, config.pop("quantization_config"))
    tensors = stored_tensors(folder)
    count = len(tensors)
    layers = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    quantized: dict[str, Quantized] = {}
    for layer in layers:
        parts = {part: tensors.pop(f"{layer}.{part}") for part in _PARTS if f"{layer}.{part}" in tensors}
        missing = [part for part in ("qzeros", "scales") if part not in parts]
        if missing:
            raise CheckpointError(
                f"{folder}: {layer} has a qweight, but no {' and no '.join(missing)}: "
                f"{method.upper()} stores them together"
            )
        name = f"{layer}.weight"
        if name in tensors:
            raise CheckpointError(f"{folder}: {layer} has a qweight and a weight: one of them would be right")
        where = f"{method.upper()} weight {name} in {folder}"
        quantized[name] = Quantized(_shape(where, settings, parts), named(where, partial(_quantized, settings, parts)))
    # Buffers of the rotary embedding, which older versions of Transformers saved, are computed from the configuration.
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(".rotary_emb.inv_freq")}
    return Checkpoint(transformers_config(path, config, count), quantized, plain, method.upper())


def _settings(path: Path, method: str, values: Mapping[str, Any]) -> "_Gptq | _Awq":
    try:
        return _METHODS[method].model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise CheckpointError(f"{path}: quantization_config: {key} = {shown(values[key])}: {first['msg']}") from None


def _shape(where: str, settings: "_Gptq | _Awq", parts: Mapping[str, Plain]) -> tuple[int, int]:
    """`[N, K]`, by the headers of the files."""
    odd = [name for name, part in parts.items() if part.dtype is None]
    if odd:
        raise CheckpointError(f"{where}: {odd[0]} is of a type that torch does not have")
    try:
        layout = settings.layout(
            {name: torch.empty(part.shape, dtype=part.dtype, device="meta") for name, part in parts.items()}
        )
    except QuantizationError as error:
        raise CheckpointError(f"{where}: {error}") from None
    return layout.rows, layout.columns


def _quantized(settings: "_Gptq | _Awq", parts: Mapping[str, Plain]) -> QuantizedWeight:
    return settings.read({part: tensor() for part, tensor in parts.items()})
