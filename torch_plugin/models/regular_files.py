"""What is checked of a file that somebody else made before it is opened."""

import stat
from pathlib import Path

from ...ir.errors import LutraError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def regular_file(path: Path, error: type[LutraError]) -> Path:
    """`path`, which is there and a regular file, or a link to one; raises `error` otherwise.

    Nothing is opened: to open a FIFO waits for somebody who writes to it, and a device may never end."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError) as reason:  # ValueError: a zero character in the name
        raise error(f"there is no file {str(path)!r}: {getattr(reason, 'strerror', None) or reason}") from None
    if kind != stat.S_IFREG:
        raise error(f"{path} is {_KINDS.get(kind, 'something else')}: a regular file would be right")
    return path
