"""Tensors in the safetensors files of a folder, of which names, types and shapes are read first."""

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ....ir.errors import CheckpointError, shown
from ..regular_files import regular_file
from .checkpoint import Plain
from .json_file import read_object

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LONGEST_NAME = 255
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def stored_tensors(folder: Path) -> dict[str, Plain]:
    """Every tensor of the model in `folder`, by name; the files are mapped. Raises `CheckpointError`.

    Pickled weights are never read: to unpickle is to run what their author wrote."""
    tensors: dict[str, Plain] = {}
    for path in _files(folder):
        try:
            file = safe_open(path, "pt")
            found = {name: _stored(path, file, name) for name in file.offset_keys()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole file of tensors: {error}") from None
        if twice := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(f"{path} holds {shown(twice[0])}, which another file of the model holds, too")
        tensors |= found
    return tensors


def _stored(path: Path, file: Any, name: str) -> Plain:
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise CheckpointError(f"{path}: {shown(name)} is no name for a tensor")
    header = file.get_slice(name)
    return Plain(
        tuple(header.get_shape()), _DTYPES.get(header.get_dtype()), partial(_read, path, file.get_tensor, name)
    )


def _read(path: Path, get: Callable[[str], torch.Tensor], name: str) -> torch.Tensor:
    try:
        return get(name)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: {shown(name)} cannot be read: {error}") from None


def _files(folder: Path) -> list[Path]:
    single, index = folder / _SINGLE, folder / _INDEX
    if single.exists():  # before the index, as in Transformers
        return [regular_file(single, CheckpointError)]
    if index.exists():
        return [_inside(folder, name, index) for name in _shards(index)]
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        held = ", ".join(path.name for path in files) or "none"
        raise CheckpointError(
            f"{folder} has no {_INDEX}, so there should be one *.safetensors file; there is: {held}. Older kinds of "
            "files (.bin, .pt) can be converted with safetensors"
        )
    return [regular_file(files[0], CheckpointError)]


def _shards(index: Path) -> list[str]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(
            f"{index}: weight_map = {shown(places)}: names of files by names of tensors would be right"
        )
    return sorted(set(places.values()))


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The file `name` of `folder`. It may be a link, as in the cache of the hub, but its name leads nowhere else."""
    parts = PurePath(name)
    if parts.is_absolute() or ".." in parts.parts or parts.suffix != ".safetensors":
        raise CheckpointError(
            f"{index}: weight_map names {shown(name)}: a *.safetensors file in {folder} would be right"
        )
    return regular_file(folder / parts, CheckpointError)
