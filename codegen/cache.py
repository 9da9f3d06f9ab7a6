"""Compiled graphs on disk, by content: a folder per entry with the library and a manifest that vouches for it.

An entry is written beside its place and renamed into it, so that processes that compile at once never see half of
one. An entry whose
checksum does not match its library is damaged: it is removed and built again, never loaded. When the folder cannot be
written (read-only, full), compilation goes on in a temporary folder, and the log says so.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger("lutra")
LIBRARY, MANIFEST = "graph.so", "manifest.json"


@dataclass(frozen=True)
class Key:
    """What an executable depends on, by name (`graph`, `target`, `versions`, ...): equal parts mean an equal
    executable."""

    parts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Name of the entry."""
        return hashlib.sha256(json.dumps(dict(self.parts), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A library on disk and the manifest that was stored with it."""

    library: Path
    manifest: dict[str, Any]


@dataclass
class ExecutableCache:
    """Entries under `folder`; `None` keeps them in a temporary folder of this process."""

    folder: Path | None
    _unusable: bool = field(default=False, init=False)

    def find(self, key: Key) -> tuple[Entry | None, str]:
        """The entry for `key` and "hit", or None and why there is none."""
        folder = self._place() / key.digest
        if not folder.is_dir():
            return None, f"miss: {self._nearest(key)}"
        entry = _read(folder)
        if entry is not None:
            return entry, "hit"
        logger.warning("the cached executable %s is damaged: it is removed and built again", folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        return None, "miss: the entry was damaged"

    def add(self, key: Key, manifest: Mapping[str, Any], export: Callable[[Path], None]) -> Entry:
        """Store what `export(path)` writes; falls back to a temporary folder when the cache folder refuses."""
        place = self._place()
        try:
            return _write(place, key, manifest, export)
        except OSError as error:
            if place == _temporary():
                raise
            logger.warning(
                "the cache folder %s cannot be written (%s): compiled code is not kept", place, error.strerror or error
            )
            self._unusable = True
            return _write(self._place(), key, manifest, export)

    def _place(self) -> Path:
        if self.folder is None or self._unusable:
            return _temporary()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return self.folder
        except OSError as error:
            logger.warning(
                "the cache folder %s cannot be made (%s): compiled code is not kept", self.folder, error.strerror
            )
            self._unusable = True
            return _temporary()

    def _nearest(self, key: Key) -> str:
        """Why `key` is new: the parts in which it differs from an entry for the same graph."""
        for path in sorted(self._place().glob(f"*/{MANIFEST}"))[:200]:
            try:
                parts = json.loads(path.read_text())["key"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if parts.get("graph") == key.parts["graph"]:
                changed = sorted(name for name in key.parts if parts.get(name) != key.parts[name])
                return f"{', '.join(changed)} changed"
        return "this graph is new"


def _read(folder: Path) -> Entry | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        library = folder / LIBRARY
        intact = hashlib.sha256(library.read_bytes()).hexdigest() == manifest["checksum"]
        return Entry(library, manifest["content"]) if intact else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(place: Path, key: Key, manifest: Mapping[str, Any], export: Callable[[Path], None]) -> Entry:
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=place))
    try:
        # Linked elsewhere and copied: a full disk is then an `OSError`, not whatever the linker says about it.
        linked = _temporary() / f"{key.digest}-{LIBRARY}"
        export(linked)
        shutil.copyfile(linked, scratch / LIBRARY)
        linked.unlink()
        checksum = hashlib.sha256((scratch / LIBRARY).read_bytes()).hexdigest()
        text = json.dumps({"key": dict(key.parts), "checksum": checksum, "content": manifest})
        (scratch / MANIFEST).write_text(text)
        final = place / key.digest
        try:
            os.replace(scratch, final)
        except OSError:
            # Another process was first: its entry serves as well, when it is intact.
            if _read(final) is None:
                shutil.rmtree(final, ignore_errors=True)
                os.replace(scratch, final)
        return Entry(final / LIBRARY, json.loads(text)["content"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@cache
def _temporary() -> Path:
    holder = tempfile.TemporaryDirectory(prefix="lutra-")
    _holders.append(holder)
    return Path(holder.name)


_holders: list[tempfile.TemporaryDirectory] = []
"""Keeps the temporary folder until the process ends."""
