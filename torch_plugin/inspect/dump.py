"""`options["dump"]` and `LUTRA_DUMP`: every stage of a compilation as a numbered text file, one folder a graph.

decode-0/00-fx.py  01-imported.mlir  02-after-fuse.mlir  ...  05-relax.py
"""

from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from torch import fx

from ...ir.errors import OptionError
from ...ir.graph import Graph
from .reproducer import reproducer


@dataclass
class Dump:
    """Writes the stages of one graph into `folder`; call it with a file name and the text."""

    folder: Path
    _number: count = field(default_factory=count, repr=False)

    @staticmethod
    def start(folder: Path | None, graph: Graph, functional: fx.GraphModule) -> "Dump | None":
        """A new folder under `folder` with the graph as captured and as imported; None when `folder` is None.

        Raises `OptionError` when it cannot be written."""
        if folder is None:
            return None
        dump = Dump(_new_folder(folder.expanduser(), graph.phase))
        dump("fx.py", functional.print_readable(print_output=False))
        dump("imported.mlir", str(graph.module))
        return dump

    def __call__(self, name: str, text: str) -> None:
        """Write `text` as the next file, `NN-name`; raises `OptionError` when that fails."""
        path = self.folder / f"{next(self._number):02}-{name}"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OptionError(f"option 'dump': {str(path)!r} cannot be written: {error.strerror}") from None


def dump_fallen(folder: Path, gm: fx.GraphModule, reason: str, options: dict[str, Any]) -> None:
    """A new folder under `folder` with a graph that torch runs: as captured, and as a script that shows the fault."""
    dump = Dump(_new_folder(folder.expanduser(), "fallen"))
    dump("fx.py", gm.print_readable(print_output=False))
    dump("reproduce.py", reproducer(gm, options, reason))


def _new_folder(parent: Path, phase: str) -> Path:
    """`phase-0`, or the next number that nobody took: `mkdir` decides between processes that ask at once."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in count():
            try:
                (folder := parent / f"{phase}-{number}").mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise OptionError(f"option 'dump': {str(parent)!r} is no folder to write to: {error.strerror}") from None
    raise AssertionError("count() does not end")
