"""Packed weights on disk: a safetensors file that is mapped into memory, so that bytes are read when they are used.

Tensors are called `<symbol>|<layout>|<part>`; the file's metadata holds the layout of each. Every buffer is a multiple
of 64 bytes long and the header is padded to one, so that kernels read the mapping as it is.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..ir.errors import PackedModelError
from ..ir.params import ParameterStore
from .kernels.packing import LAYOUT_VERSION
from .weights import ALIGNMENT, PackedWeight, WeightSource, from_data, to_data

_VERSION, _WEIGHTS = "lutra.layout_version", "lutra.weights"


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
            metadata = file.metadata() or {}
            if metadata.get(_VERSION) != str(LAYOUT_VERSION):
                raise PackedModelError(
                    f"{path}: weights in layout version {metadata.get(_VERSION, 'unknown')}, this version of lutra "
                    f"reads {LAYOUT_VERSION}: pack the model again"
                )
            sources = [from_data(data) for data in json.loads(metadata[_WEIGHTS])]
            for source in sources:
                if isinstance(source, PackedWeight) and source.part == 0:
                    buffers = [_mapped(file.get_tensor(_key(each)), each, path) for each in _parts(source)]
                    store.packed(
                        source.symbol, source.layout.key, lambda buffers=buffers: buffers, source.layout.unpack
                    )
    except (SafetensorError, KeyError, ValueError, FileNotFoundError) as error:
        raise PackedModelError(f"{path} is not a complete file of packed weights: {error}") from None


def _parts(source: PackedWeight) -> list[PackedWeight]:
    return [replace(source, part=part) for part in range(len(source.layout.buffers))]


def _key(source: PackedWeight) -> str:
    return f"{source.symbol}|{source.layout.key}|{source.part}"


def _mapped(tensor: torch.Tensor, source: PackedWeight, path: Path) -> torch.Tensor:
    shape, dtype = source.layout.buffers[source.part]
    if tuple(tensor.shape) != shape or tensor.dtype != getattr(torch, dtype):
        raise PackedModelError(
            f"{path}: {_key(source)} is {tensor.dtype} {list(tensor.shape)} where {dtype} {list(shape)} belongs: "
            "pack the model again"
        )
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
