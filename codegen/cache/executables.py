"""What was compiled and measured, on disk by content: `entries.py` says how an entry is guarded.

An entry is written beside its place and renamed into it, so that processes that compile at once never see half of one.
One that is damaged is removed and built again. No fault of a folder is a fault of the compilation: where the cache
folder cannot be written (read-only, full) or is not to be trusted, a temporary folder takes its place; where the
temporary folder is full, the cache folder takes what is linked; where nothing may be executed in the cache folder, code
is loaded from a copy. The log says so.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from errno import ENOSPC
from functools import cache
from pathlib import Path
from typing import Any

from . import entries
from .entries import Damaged, Refused, Stored

logger = logging.getLogger("lutra")
ROOM = 32 << 20
"""Bytes that are free where something is linked: LLVM ends the process when it cannot write an object."""

Load = Callable[[Path], Any]
_LOAD_ERRORS = (OSError, RuntimeError, ValueError)
"""What loaders raise: `ctypes` the first, TVM the others."""


@dataclass(frozen=True)
class Key:
    """What an entry depends on, by name (`graph`, `target`, `versions`, ...): equal parts mean an equal entry."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Name of the entry."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """library: what `load` made of the library (None: the entry has none). content: what was stored beside it."""

    library: Any
    content: dict[str, Any]


@dataclass
class ExecutableCache:
    """Entries under `folder`; `None` keeps them in a temporary folder of this process."""

    folder: Path | None
    _refusal: str = field(default="", init=False)
    """Why the folder is not used."""

    def find(self, key: Key, load: Load) -> tuple[Entry | None, str]:
        """The entry for `key`, its library loaded by `load(path)`, and "hit"; or None and why there is none."""
        place = self._place()
        try:
            stored = entries.read(place, key.digest)
            return Entry(self._loaded(place / key.digest, stored, load), stored.content), "hit"
        except FileNotFoundError:
            return None, f"miss: {self._refusal or _nearest(place, key)}"
        except Damaged as error:
            logger.warning("%s is damaged (%s): it is removed and built again", place / key.digest, error)
            entries.remove(place, key.digest)
            return None, f"miss: the entry was damaged: {error}"
        except OSError as error:
            self._refuse(f"the entry is not used: {error}")
            return None, f"miss: {self._refusal}"

    def add(
        self,
        key: Key,
        content: Mapping[str, Any],
        export: Callable[[Path], None],
        load: Load,
        library: str = "graph.so",
    ) -> Entry:
        """Store what `export(path)` writes, and load it. `export` may leave other files beside `path`, which go."""
        with ExitStack() as stack:
            folder = self._workshop(key.digest, stack)
            export(folder / library)
            image = (folder / library).read_bytes()
        # As it will be read: lists for tuples.
        stored = Stored(library, json.loads(json.dumps(content)), image)
        return Entry(self._loaded(self._stored(key, stored), stored, load), stored.content)

    def recall(self, key: Key) -> dict[str, Any] | None:
        """What was kept under `key`."""
        entry, _ = self.find(key, Path)
        return None if entry is None else entry.content

    def keep(self, key: Key, content: Mapping[str, Any]) -> None:
        """Store `content` alone, in place of what was stored before."""
        place = self._place()
        entries.remove(place, key.digest)
        self._stored(key, Stored(None, dict(content), b""))

    # Where ------------------------------------------------------------------------------------------------------------

    def _place(self) -> Path:
        if self.folder is None or self._refusal:
            return temporary()
        try:
            entries.make_private(self.folder)
            return entries.trusted(self.folder)
        except Refused as error:
            self._refuse(f"the cache folder is not used: {error}")
        except OSError as error:
            self._refuse(f"the cache folder {self.folder} cannot be made ({error.strerror})")
        return temporary()

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        _warn(f"{reason}: compiled code is not kept")

    def _stored(self, key: Key, stored: Stored) -> Path:
        """The folder of the entry, once it is stored."""
        place = self._place()
        try:
            return _write(place, key, stored)
        except OSError as error:
            if place == temporary():
                raise
            if isinstance(error, Refused):
                self._refuse(f"the entry is not used: {error}")
            else:
                self._refuse(f"the cache folder {place} cannot be written ({error.strerror or error})")
            return _write(temporary(), key, stored)

    def _workshop(self, name: str, stack: ExitStack) -> Path:
        """A folder to link in, which goes with `stack`: in the temporary folder (on a full disk it is then Python that
        fails to copy the library, and not a linker), or in the cache folder where there is no room."""
        refusals: list[str] = []
        for where in (temporary, self._place):
            try:
                place = where()
                usage = shutil.disk_usage(place)
                if usage.total and usage.free < ROOM:  # some file systems do not tell
                    raise OSError(ENOSPC, f"less than {ROOM >> 20} MB are free in {place}")
                return stack.enter_context(entries.scratch(place, name))
            except OSError as error:
                refusals.append(str(error.strerror or error))
        raise OSError(ENOSPC, f"no folder to link code in: {', '.join(dict.fromkeys(refusals))}")

    # What -------------------------------------------------------------------------------------------------------------

    def _loaded(self, folder: Path, stored: Stored, load: Load) -> Any:
        """`load` of the library in `folder`; of a copy, where the cache's file system lets nothing be executed."""
        if stored.library is None:
            return None
        path = folder / stored.library
        try:
            return load(path)
        except _LOAD_ERRORS as error:
            reason = _why(error, path)
        copy = Path(tempfile.mkdtemp(dir=temporary())) / stored.library
        if folder.parent != temporary():
            _warn(f"code cannot be loaded from {folder.parent} ({reason}): it is loaded from {temporary()}")
        try:
            copy.write_bytes(stored.image)
            return load(copy)
        except _LOAD_ERRORS as error:
            raise OSError(
                f"compiled code can be loaded neither from {folder} ({reason}) nor from {copy.parent} "
                f"({_why(error, copy)}): let TMPDIR or cache_dir name a folder where files may be executed"
            ) from None


def _nearest(place: Path, key: Key) -> str:
    """Why `key` is new: the parts in which it differs from an entry for the same graph."""
    for parts in entries.keys(place):
        if "graph" in parts and parts["graph"] == key.parts.get("graph"):
            changed = sorted(name for name in key.parts if parts.get(name) != key.parts[name])
            return f"{', '.join(changed)} changed"
    return "this graph is new"


def _write(place: Path, key: Key, stored: Stored) -> Path:
    folder = place / key.digest
    try:
        entries.write(place, key.digest, dict(key.parts), stored)
    except OSError:
        if not folder.exists():
            raise
        # Another process was first: its entry serves as well, when it is intact.
        try:
            entries.read(place, key.digest)
        except Damaged:
            entries.remove(place, key.digest)
            entries.write(place, key.digest, dict(key.parts), stored)
    return folder


def temporary() -> Path:
    """A folder that lasts as long as this process; a new one where somebody tidied up."""
    if not _holders or not Path(_holders[-1].name).is_dir():
        _holders.append(tempfile.TemporaryDirectory(prefix="lutra-"))
    return Path(_holders[-1].name)


_holders: list[tempfile.TemporaryDirectory[str]] = []
"""Keep temporary folders until the process ends."""


@cache
def _warn(text: str) -> None:
    """Once in the process."""
    logger.warning("%s", text)


def _why(error: Exception, path: Path) -> str:
    """What the loader says of `path`; TVM says more before it."""
    return str(error).strip().rsplit(f"{path}: ", 1)[-1]
