"""A folder of entries that vouch for themselves: how they are checked before they are used, written, and removed.

An entry is a folder named by 32 hexadecimal digits. It holds `manifest.json`, at most one library, and `checksums` of
both (SHA-256, in the form that `sha256sum --check` reads). Two things can go wrong with it, and each has its guard:

- Accidents (a full disk, a killed process, a hand that slipped): every byte is compared with `checksums` before it is
  parsed or loaded. What differs is `Damaged`, and may be removed and made again.
- Other users, who could have this process run their code: folder and files must belong to this user or to root, and
  nobody else may have the right to write there. What fails that is `Refused`: not used, and not removed either. There
  is no secret key over the checksums, since whoever can write as this user needs no cache to run code.

A file is opened once, never through a symbolic link; owner, rights and contents are those of what was opened. A
library is then loaded by its path, which only those can exchange who may write to the folder.
"""

import fcntl
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

MANIFEST, CHECKSUMS = "manifest.json", "checksums"
KINDS = {"graph.so": "executable", "launcher.so": "launcher", None: "measurement"}
"""What an entry is, by its library."""
FORMAT = 1
_KEYS = {"format", "key", "library", "content"}
_NAME = re.compile(r"[0-9a-f]{32}")
_SCRATCH = re.compile(r"\.new-[0-9a-f]{32}-\w{8}")
_WRITTEN = re.compile(r"manifest\.json|checksums|(graph|launcher|lib\d+|devc|parallel)\.(so|o|c)|cc\w+\.\w+")
"""Names of all files that an entry or a scratch folder can hold; `cc*` are a C compiler's."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Damaged(Exception):
    """An entry of this user is not what was written."""


class Refused(OSError):
    """A folder or file is another user's, or others may write to it."""


@dataclass(frozen=True)
class Stored:
    """The parts of an entry, checked: `image` is the library's contents."""

    library: str | None
    content: dict[str, Any]
    image: bytes


@dataclass(frozen=True)
class Item:
    """Something that lies in the folder. `kind`: of `KINDS`, or "leftover" of a killed process; None where it is not
    ours, and `why` says what speaks against it."""

    name: str
    kind: str | None
    size: int = 0
    why: str = ""


# Whom to trust --------------------------------------------------------------------------------------------------------


def make_private(folder: Path) -> None:
    """Make `folder` and what is missing above it, for this user alone; one that exists stays as it is."""
    for parent in reversed(folder.parents):
        if not os.path.lexists(parent):
            parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def trusted(folder: Path) -> Path:
    """The path of `folder` without links; raises `Refused` unless it is this user's (or root's) and nobody else may
    exchange what lies in it, or the folder itself by way of those above it."""
    folder = folder.resolve()
    _check(folder, folder.stat())
    for parent in folder.parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise Refused(f"others may exchange it, since they may write to {parent}")
    return folder


def _check(path: Path, status: os.stat_result) -> None:
    """Whose it is, and who else may write to it. A sticky folder, as /tmp is one, may be open to all: of what lies in
    it, others can neither exchange nor remove what is not theirs."""
    if status.st_uid not in (0, os.geteuid()):
        raise Refused(f"{path} belongs to user {status.st_uid}, this is user {os.geteuid()}")
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)):
        raise Refused(f"others may write to {path}: chmod go-w")


@cache
def _is_own_group(gid: int) -> bool:
    """True for the group that holds this user alone, as Debian and others set one up beside a umask of 002."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


# Reading --------------------------------------------------------------------------------------------------------------


def read(place: Path, name: str) -> Stored:
    """The entry `name` of `place`; raises `FileNotFoundError` (there is none), `Damaged` or `Refused`."""
    with _opened(place / name) as folder:
        sums, manifest = _manifest(place / name, folder)
        library = manifest["library"]
        if set(sums) != {MANIFEST, *filter(None, [library])}:
            raise Damaged(f"{CHECKSUMS} is of other files")
        image = _contents(place / name, folder, library, sums) if library else b""
        return Stored(library, manifest["content"], image)


def keys(place: Path, most: int = 200) -> Iterator[dict[str, str]]:
    """The parts of the keys of some entries."""
    names: list[str] = []
    with suppress(OSError):
        names = sorted(os.listdir(place))
    for name in islice(filter(_NAME.fullmatch, names), most):
        with suppress(OSError, Damaged), _opened(place / name) as folder:
            yield _manifest(place / name, folder)[1]["key"]


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of the folder `path`, which is to be trusted."""
    try:
        folder = os.open(path, _READ | os.O_DIRECTORY)
    except NotADirectoryError:
        raise Refused(f"{path} is not a folder") from None
    try:
        _check(path, os.fstat(folder))
        yield folder
    finally:
        os.close(folder)


def _manifest(path: Path, folder: int) -> tuple[dict[str, str], dict[str, Any]]:
    lines = _contents(path, folder, CHECKSUMS).decode(errors="replace").splitlines()
    sums = {name: checksum for checksum, _, name in (line.partition("  ") for line in lines)}
    manifest = _parsed(_contents(path, folder, MANIFEST, sums))
    if manifest is None or manifest["format"] != FORMAT:
        raise Damaged(f"{MANIFEST} is of another format")
    return sums, manifest


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A manifest of this or another version of Lutra; None for anything else."""
    with suppress(ValueError, TypeError, RecursionError):
        manifest = json.loads(text)
        if set(manifest) == _KEYS and type(manifest["format"]) is int and manifest["library"] in KINDS:
            return manifest
    return None


def _contents(path: Path, folder: int, name: str, sums: dict[str, str] | None = None) -> bytes:
    """What the file `name` in the open `folder`, which lies at `path`, holds; what its checksum says when there are
    `sums`."""
    try:
        descriptor = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        raise Damaged(f"{name} is missing") from None
    except OSError as error:  # a symbolic link among others
        raise Refused(f"{path / name} cannot be opened: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{path / name} is not a file")
        _check(path / name, status)
        contents = file.read()
    if sums is not None and hashlib.sha256(contents).hexdigest() != sums.get(name):
        raise Damaged(f"{name} does not match its checksum")
    return contents


# Writing --------------------------------------------------------------------------------------------------------------


def write(place: Path, name: str, key: dict[str, str], stored: Stored) -> None:
    """Put an entry into `place`, whole or not at all; raises `OSError`, also where there is one of that name."""
    manifest = {"format": FORMAT, "key": key, "library": stored.library, "content": stored.content}
    files = {MANIFEST: json.dumps(manifest).encode()} | ({stored.library: stored.image} if stored.library else {})
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {file}\n" for file, data in files.items())
    with scratch(place, name) as folder:
        for file, data in {**files, CHECKSUMS: sums.encode()}.items():
            with open(folder / file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as out:
                out.write(data)
        os.replace(folder, place / name)


@contextmanager
def scratch(place: Path, name: str) -> Iterator[Path]:
    """A new folder in `place`, removed at the end unless it was renamed. While it is locked its writer lives."""
    folder = Path(tempfile.mkdtemp(prefix=f".new-{name}-", dir=place))
    descriptor = os.open(folder, _READ | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


# What lies there, and removing it -------------------------------------------------------------------------------------


def items(place: Path) -> list[Item]:
    """Everything in `place`, by name; what is ours is told by its own marks, not by its place."""
    with _folder(place) as folder:
        return [_item(folder, name) for name in sorted(os.listdir(folder))]


def remove(place: Path, name: str) -> bool:
    """Remove of the folder `name` in `place` the files that Lutra writes, and the folder when nothing else was in it;
    False when something is left."""
    try:
        with _folder(place) as parent, _folder(name, parent) as folder:
            if os.fstat(folder).st_uid != os.geteuid():
                return False
            # The manifest last: what is left of an entry is known by it.
            for file in sorted(os.listdir(folder), key=lambda each: each == MANIFEST):
                status = os.stat(file, dir_fd=folder, follow_symlinks=False)
                if _WRITTEN.fullmatch(file) and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                    os.unlink(file, dir_fd=folder)
            os.rmdir(name, dir_fd=parent)
            return True
    except FileNotFoundError:  # another process was faster
        return not (place / name).exists()
    except OSError:
        return False


def _item(parent: int, name: str) -> Item:
    if not (_NAME.fullmatch(name) or _SCRATCH.fullmatch(name)):
        return Item(name, None, why="without lutra's mark")
    try:
        with _folder(name, parent) as folder:
            files = [os.stat(file, dir_fd=folder, follow_symlinks=False) for file in os.listdir(folder)]
            size = sum(status.st_size for status in files if stat.S_ISREG(status.st_mode))
            if (owner := os.fstat(folder).st_uid) != os.geteuid():
                return Item(name, None, size, f"belongs to user {owner}")
            if _SCRATCH.fullmatch(name):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return Item(name, "leftover", size)
            manifest = _parsed(_contents(Path(name), folder, MANIFEST))
            if manifest is None:
                return Item(name, None, size, f"its {MANIFEST} has other keys than lutra's")
            return Item(name, KINDS[manifest["library"]], size)
    except BlockingIOError:
        return Item(name, None, why="being written")
    except (OSError, Damaged) as error:
        return Item(name, None, why=getattr(error, "strerror", None) or str(error))


@contextmanager
def _folder(path: Path | str, parent: int | None = None) -> Iterator[int]:
    links = os.O_NOFOLLOW if parent is not None else 0  # the cache folder itself may be reached by one
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | links, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
