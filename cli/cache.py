"""`lutra cache`: what was compiled and measured, and its removal."""

import os
from collections import Counter
from pathlib import Path

import typer

from ..codegen.cache.entries import Item, items, remove
from ..torch_plugin.options import Options
from .app import CacheDir, app

cache_app = typer.Typer(help="The cache of compiled executables.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
_SHOWN = 20
"""Lines of what was left alone."""


@cache_app.command()
def info(cache_dir: CacheDir = None) -> None:
    """Say where compiled executables are kept and how much room they take."""
    folder, found = _cached(cache_dir)
    ours = [item for item in found if item.kind is not None]
    print(f"{folder}: {_counted(ours)}, {sum(item.size for item in ours) / 1e6:.1f} MB")


@cache_app.command()
def clear(cache_dir: CacheDir = None) -> None:
    """Remove all compiled executables and measurements, which are made again when they are needed. What Lutra did not
    write stays."""
    folder, found = _cached(cache_dir)
    gone = [item for item in found if item.kind is not None and remove(folder, item.name)]
    print(f"{folder}: removed {_counted(gone)}")
    left = [item for item in found if item not in gone]
    for item in left[:_SHOWN]:
        print(f"left alone: {item.name} ({item.why or 'a file in it is not ours, or cannot be removed'})")
    if len(left) > _SHOWN:
        print(f"left alone: {len(left) - _SHOWN} more")


def _cached(given: str | None) -> tuple[Path, list[Item]]:
    """The cache folder and what lies there; nothing while it does not exist."""
    folder = Options.parse({"cache_dir": given}).cache_directory()
    return folder, items(folder) if os.path.lexists(folder) else []


def _counted(found: list[Item]) -> str:
    counts = Counter({"executable": 0})
    counts.update(str(item.kind) for item in found)
    return ", ".join(f"{count} {kind}s" for kind, count in counts.items())
