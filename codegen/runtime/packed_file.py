"""Packed weights on disk: a safetensors file that is mapped into memory, so that bytes are read when they are used.

Tensors are called `<symbol>|<layout>|<part>`; the file's metadata holds the layout of each. Every buffer is a multiple
of 64 bytes long and the header is padded to one, so that kernels read the mapping as it is.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ...ir.errors import PackedModelError, QuantizationError
from ...ir.weights.store import ParameterStore
from ..device import ALIGNMENT
from ..kernels.cpu.packing import LAYOUT_VERSION, PackedLayout
from ..targets.cpu.isas import ISAS
from .weights import PackedWeight, WeightSource, to_data

_VERSION, _WEIGHTS = "lutra.layout_version", "lutra.weights"
_WEIGHTS_DATA = TypeAdapter(list[PackedWeight], config=ConfigDict(strict=True))
_AGAIN = "pack the model again"


def write_packed(path: Path, sources: Iterable[WeightSource], store: ParameterStore) -> int:
    """Write the packed ones of `sources` to `path`; returns the bytes of the file. Packs what was not packed yet."""
    packed = {_key(source): source for source in sources if isinstance(source, PackedWeight)}
    tensors = {key: source.resolve(store) for key, source in packed.items()}
    metadata = {_VERSION: str(LAYOUT_VERSION), _WEIGHTS: json.dumps([to_data(source) for source in packed.values()])}
    save_file(tensors, path, metadata)
    start = 8 + int.from_bytes(path.open("rb").read(8), "little")
    if start % ALIGNMENT:  # known only once the header is written, whose length is always a multiple of 8
        missing = ALIGNMENT - start % ALIGNMENT + ALIGNMENT - len(',"padding":""')
        save_file(tensors, path, metadata | {"padding": "." * missing})
    return path.stat().st_size


def restore_packed(path: Path, store: ParameterStore) -> None:
    """Give `store` the packed weights of `path`, mapped; raises `PackedModelError` for a file that does not fit."""
    try:
        with safe_open(path, "pt") as file:
            sources = _sources(file.metadata() or {}, path)
            keys = {_key(each): each for source in sources for each in _parts(source)}
            if keys.keys() != set(file.offset_keys()):
                odd = sorted(keys.keys() ^ set(file.offset_keys()))
                raise PackedModelError(f"{path}: {odd[0]!r} is in its tensors or in its metadata alone: {_AGAIN}")
            buffers = {key: _mapped(file, source, path) for key, source in keys.items()}
    except (SafetensorError, OSError) as error:
        raise PackedModelError(f"{path} is not a complete file of packed weights: {error}") from None
    for source in sources:
        parts = [buffers[_key(each)] for each in _parts(source)]
        store.packed(source.symbol, source.layout.key, lambda parts=parts: parts, source.layout.unpack)


def _sources(metadata: Mapping[str, str], path: Path) -> list[PackedWeight]:
    """The first part of each weight."""
    if metadata.get(_VERSION) != str(LAYOUT_VERSION):
        raise PackedModelError(
            f"{path}: weights in layout version {metadata.get(_VERSION, 'unknown')[:20]}, this version of lutra "
            f"reads {LAYOUT_VERSION}: {_AGAIN}"
        )
    try:
        sources = _WEIGHTS_DATA.validate_json(metadata.get(_WEIGHTS, ""))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (_WEIGHTS, *first["loc"])))
        raise PackedModelError(f"{path}: {where}: {first['msg']}: {_AGAIN}") from None
    except QuantizationError as error:
        raise PackedModelError(f"{path}: {_WEIGHTS}: {error}: {_AGAIN}") from None
    for source in sources:
        if not _is_packable(source.layout):
            raise PackedModelError(f"{path}: {source.symbol!r}: no kernel packs {source.layout.key}: {_AGAIN}")
    return [source for source in sources if source.part == 0]


def _is_packable(layout: PackedLayout) -> bool:
    """True when some instruction set has kernels for `layout`: those that unpack it rely on that."""
    if min(layout.n, layout.k) < 1:
        return False
    try:
        made = [PackedLayout.create(layout.family, layout.format, layout.n, layout.k, isa) for isa in ISAS.values()]
    except QuantizationError:
        return False
    return layout in made


def _parts(source: PackedWeight) -> list[PackedWeight]:
    return [replace(source, part=part) for part in range(len(source.layout.buffers))]


def _key(source: PackedWeight) -> str:
    return f"{source.symbol}|{source.layout.key}|{source.part}"


def _mapped(file: Any, source: PackedWeight, path: Path) -> torch.Tensor:
    shape, dtype = source.layout.buffers[source.part]
    tensor = file.get_tensor(_key(source))
    if tuple(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype):
        raise PackedModelError(
            f"{path}: {_key(source)} is {tensor.dtype} {list(tensor.shape)} where {dtype} {list(shape)} belongs: "
            f"{_AGAIN}"
        )
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
