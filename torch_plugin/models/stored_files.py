"""Files that a folder of somebody else may hold anything in place of: opened only when they are files, read only when
they are as long as they should be, and compared with the checksums of when they were written.

Checksums are CRC-32 of each 16 MiB: they find what a disk, a copy or a download did. They are no seal: who can change a
file can change its checksum.
"""

import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ...ir.errors import PackedModelError
from .regular_files import regular_file

_CHUNK = 1 << 24
_BUFFER = 1 << 20
_MOST_THREADS = 8

_PART = "[A-Za-z0-9_-][A-Za-z0-9_.-]*"
FileName = Annotated[str, Field(max_length=255, pattern=f"^{_PART}(/{_PART})?$")]
"""A file of a folder, or of a folder in it."""


class StoredFile(BaseModel):
    """Length in bytes, and the CRC-32 of each 16 MiB."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: int = Field(ge=0)
    crc32: list[Annotated[int, Field(ge=0, lt=1 << 32)]]

    @classmethod
    def of(cls, path: Path) -> "StoredFile":
        """What `path` holds now."""
        size = size_of(path)
        return cls(bytes=size, crc32=[_checksum(path, first) for first in range(0, size, _CHUNK)])


def size_of(path: Path) -> int:
    """Bytes of the file `path`, or where it links to: the hub's cache is made of links. Raises `PackedModelError` for
    what is no file: to open a pipe may take for ever."""
    return regular_file(path, PackedModelError).stat().st_size


def read_small(path: Path, most: int) -> bytes:
    """All of `path`; raises `PackedModelError` when that is more than `most` bytes."""
    size = size_of(path)
    if size > most:
        raise PackedModelError(f"{path} has {size} bytes: {most} are more than any that lutra wrote")
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise PackedModelError(f"{path} cannot be read: {error.strerror}") from None


def check_files(folder: Path, files: Mapping[str, StoredFile]) -> None:
    """Raise `PackedModelError` unless each of `files` is in `folder` as it was written. Lengths are compared before
    anything is read."""
    for name, file in files.items():
        size = size_of(folder / name)
        if size != file.bytes:
            raise PackedModelError(
                f"{folder / name} has {size} bytes, {file.bytes} were written: copy it or pack the model again"
            )
        if len(file.crc32) != -(-size // _CHUNK):
            raise PackedModelError(
                f"{folder / name} has {len(file.crc32)} checksums for {size} bytes: pack the model again"
            )
    chunks = [(folder / name, i * _CHUNK) for name, file in files.items() for i in range(len(file.crc32))]
    written = [checksum for file in files.values() for checksum in file.crc32]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        found = pool.map(lambda chunk: _checksum(*chunk), chunks)
        for (path, first), is_, was in zip(chunks, found, written, strict=True):
            if is_ != was:
                raise PackedModelError(
                    f"{path} is damaged: between bytes {first} and {first + _CHUNK} it is not what was written (its "
                    "checksum differs): copy it or pack the model again"
                )


def _checksum(path: Path, first: int) -> int:
    """Of the chunk that begins at byte `first`. Read, not mapped: a file that shrinks meanwhile ends early then, where
    a mapping would end the process."""
    buffer, found, left = memoryview(bytearray(_BUFFER)), 0, _CHUNK
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(first)
            while left and (read := file.readinto(buffer[:left])):
                found = zlib.crc32(buffer[:read], found)
                left -= read
    except OSError as error:
        raise PackedModelError(f"{path} cannot be read: {error.strerror}") from None
    return found
