"""The header of a GGUF file: metadata, and where each tensor lies (ggml's docs/gguf.md).

Everything that a number of the file leads to is compared with the size of the file first: no count is looped over and
no length is read before it is known to fit. What this returns is therefore in the file, whole and apart from the rest.
`GGUFReader` of `gguf` believes the counts: an array of 2**62 numbers keeps it looping.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....ir.errors import CheckpointError, shown

VERSIONS = (2, 3)
_LARGEST_HEADER = 128 << 20
"""Bytes. The vocabulary takes most of it: 20 MB with 500 thousand tokens."""
_MOST_KEYS, _MOST_TENSORS = 1 << 16, 1 << 17
_LONGEST_KEY, _LONGEST_NAME = 65535, 64
_MOST_DIMENSIONS = 4
_SMALLEST_KEY, _SMALLEST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8

_NUMBERS = {
    0: ("uint8", "<B"),
    1: ("int8", "<b"),
    2: ("uint16", "<H"),
    3: ("int16", "<h"),
    4: ("uint32", "<I"),
    5: ("int32", "<i"),
    6: ("float32", "<f"),
    7: ("bool", "<?"),
    10: ("uint64", "<Q"),
    11: ("int64", "<q"),
    12: ("float64", "<d"),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufArray:
    """A list in the metadata, of which nothing but its length is used."""

    kind: str
    length: int

    def __repr__(self) -> str:
        return f"an array of {self.length} {self.kind}"


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of `kind` (a name of `GGMLQuantizationType`) and `shape`, rows of blocks; `data`: uint8, its bytes in
    the file, `[..., bytes of a row]`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass(frozen=True)
class GgufFile:
    """`metadata`: numbers, truth values, strings and arrays by key. `tensors` by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


@dataclass(frozen=True)
class _Place:
    """Where a tensor should lie: bytes from the start of the data."""

    kind: str
    shape: tuple[int, ...]
    row_bytes: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape[:-1]) * self.row_bytes


def read_header(path: Path) -> GgufFile:
    """The header of the regular file `path`, which is mapped into memory; raises `CheckpointError`, without the path,
    and `OSError`."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            raise CheckpointError("the file is empty")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data)
    tensors, keys = _start(cursor)
    metadata: dict[str, Any] = {}
    for number in range(keys):
        key = _text(cursor.string(f"key {number}", _LONGEST_KEY), f"key {number}")
        if key in metadata:
            raise CheckpointError(f"the key {shown(key)} is there twice")
        metadata[key] = _value(cursor, shown(key))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"its general.alignment is {shown(alignment)}: a power of two would be right")
    places: dict[str, _Place] = {}
    for number in range(tensors):
        name = _text(cursor.string(f"the name of tensor {number}", _LONGEST_NAME), f"the name of tensor {number}")
        if name in places:
            raise CheckpointError(f"tensor {shown(name)} is there twice")
        places[name] = _place(cursor, shown(name), alignment)
    start = -(-cursor.at // alignment) * alignment
    _check_places(places, len(data) - start)
    bytes_ = np.frombuffer(data, np.uint8)
    return GgufFile(metadata, {name: _tensor(name, place, bytes_[start:]) for name, place in places.items()})


class _Cursor:
    """A place in the header, which moves on only over what is there."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0
        self.end = min(len(data), _LARGEST_HEADER)

    def skip(self, size: int, what: str) -> int:
        """Go on by `size` bytes; returns where they begin."""
        start = self.at
        if size > self.end - start:
            end = "the file" if self.end == len(self.data) else f"the {_LARGEST_HEADER} bytes that a header may have"
            raise CheckpointError(f"{what} takes {size} bytes from {start} on, beyond the end of {end} ({self.end})")
        self.at += size
        return start

    def number(self, format_: str, what: str) -> Any:
        return struct.unpack_from(format_, self.data, self.skip(struct.calcsize(format_), what))[0]

    def string(self, what: str, longest: int | None = None) -> bytes:
        length = self.number("<Q", f"the length of {what}")
        if longest is not None and length > longest:
            raise CheckpointError(f"{what} has {length} bytes: {longest} would be the most")
        start = self.skip(length, what)
        return self.data[start : start + length]

    def fitting(self, count: int, smallest: int, what: str, most: int = _LARGEST_HEADER) -> int:
        """`count`, when so many things of `smallest` bytes or more can be in what is left."""
        possible = min(most, (self.end - self.at) // smallest)
        if count > possible:
            raise CheckpointError(f"the header says {count} {what}: at most {possible} can be there")
        return count


def _start(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and keys there are."""
    magic = cursor.data[:4]
    if magic != b"GGUF":
        raise CheckpointError(f"it is no GGUF file: it begins with {magic!r}, not with b'GGUF'")
    cursor.skip(4, "the magic")
    version = cursor.number("<I", "the version")
    if version and not version & 0xFFFF:
        raise CheckpointError("it has the bytes of its numbers in the other order: convert it on a machine like this")
    if version not in VERSIONS:
        raise CheckpointError(f"it is of version {version} of GGUF: {' and '.join(map(str, VERSIONS))} can be read")
    tensors = cursor.number("<Q", "the number of tensors")
    keys = cursor.number("<Q", "the number of keys")
    cursor.fitting(tensors, _SMALLEST_TENSOR, "tensors", _MOST_TENSORS)
    cursor.fitting(keys, _SMALLEST_KEY, "keys", _MOST_KEYS)
    return tensors, keys


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("<I", f"the type of {key}")
    if kind == _STRING:
        return cursor.string(key).decode(errors="replace")
    if kind == _ARRAY:
        return _array(cursor, key)
    return cursor.number(_number(kind, key)[1], key)


def _array(cursor: _Cursor, key: str) -> GgufArray:
    """What is in an array is passed over."""
    kind = cursor.number("<I", f"the type of {key}")
    length = cursor.number("<Q", f"the length of {key}")
    if kind == _ARRAY:
        raise CheckpointError(f"{key} is an array of arrays: arrays of numbers and of strings can be read")
    if kind == _STRING:
        for _ in range(cursor.fitting(length, 8, f"strings in {key}")):
            cursor.skip(cursor.number("<Q", f"the length of a string of {key}"), f"a string of {key}")
        return GgufArray("string", length)
    name, format_ = _number(kind, key)
    cursor.skip(length * struct.calcsize(format_), key)
    return GgufArray(name, length)


def _number(kind: int, key: str) -> tuple[str, str]:
    if kind not in _NUMBERS:
        raise CheckpointError(f"{key} is of type {kind}, which GGUF does not have")
    return _NUMBERS[kind]


def _text(characters: bytes, what: str) -> str:
    try:
        return characters.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{what} is not in UTF-8: {shown(characters)}") from None


def _place(cursor: _Cursor, name: str, alignment: int) -> _Place:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    dimensions = cursor.number("<I", f"the number of dimensions of {name}")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise CheckpointError(f"tensor {name} has {dimensions} dimensions: 1 to {_MOST_DIMENSIONS} would be right")
    shape = tuple(cursor.number("<Q", f"the shape of {name}") for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise CheckpointError(f"tensor {name} has the shape {list(shape)}: no dimension may be 0")
    number = cursor.number("<I", f"the type of {name}")
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise CheckpointError(f"tensor {name} is of type {number}, which gguf does not know") from None
    if shape[-1] % block:
        raise CheckpointError(
            f"tensor {name} has rows of {shape[-1]}: a multiple of {block}, the block of {kind.name}, would be right"
        )
    offset = cursor.number("<Q", f"the offset of {name}")
    if offset % alignment:
        raise CheckpointError(f"tensor {name} has the offset {offset}: a multiple of {alignment} would be right")
    return _Place(kind.name, shape, shape[-1] // block * block_bytes, offset)


def _check_places(places: Mapping[str, _Place], size: int) -> None:
    """Raise `CheckpointError` unless all tensors lie in `size` bytes, none over another."""
    before, end = "", 0
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if place.end > size:
            raise CheckpointError(
                f"tensor {shown(name)} of shape {list(place.shape)} has the bytes {place.offset} to {place.end} of the "
                f"data, of which the file has {max(size, 0)}: it is not whole"
            )
        if place.offset < end:
            raise CheckpointError(f"tensors {shown(before)} and {shown(name)} lie over each other")
        before, end = name, place.end


def _tensor(name: str, place: _Place, data: np.ndarray) -> GgufTensor:
    rows = data[place.offset : place.end].reshape(*place.shape[:-1], place.row_bytes)
    return GgufTensor(name, place.kind, place.shape, rows)
