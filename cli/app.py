"""The command line's application, and what its verbs share: kinds of arguments, tables."""

from pathlib import Path
from textwrap import indent, wrap
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..ir.errors import LutraError

app = typer.Typer(
    name="lutra",
    help="Recipes, passes, operations, targets, packing, profiles, predictions, the cache, a check of all.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.pretty_exceptions_enable = False  # a fault of ours has Python's own traceback, whole


def path(text: str) -> Path:
    """Not the working directory for want of a name."""
    if not text:
        raise LutraError("an option that takes a path was given an empty one: '.' is the working directory")
    return Path(text)


MOST_TOKENS = 1 << 20
"""Of a prompt, or of what is to come after it."""

ModelName = Annotated[
    str, typer.Argument(help="folder, hub name or .gguf file of a causal language model, or a packed folder")
]
RecipeName = Annotated[
    str | None, typer.Option(help="a name of the library, a path or YAML text; left out: none, w4 to pack")
]
Variables = Annotated[list[str] | None, typer.Option(help="NAME=VALUE, in place of the recipe's variable")]
DtypeName = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "float64"],
    typer.Option(help="of the weights that stay plain, and of activations"),
]
CacheDir = Annotated[str | None, typer.Option(help="the cache folder (default: LUTRA_CACHE_DIR, or the user's)")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lutra {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


def table(*headings: str) -> Table:
    """An empty table with these columns."""
    return Table(*headings, header_style="bold", show_lines=False)


def print_indented(text: str, columns: int) -> None:
    """In lines of the terminal's width; words stay whole."""
    lines = wrap(text, max(Console().width - columns, 1), break_long_words=False, break_on_hyphens=False)
    print(indent("\n".join(lines), " " * columns))


def show(filled: Table) -> None:
    """Print it."""
    Console().print(filled)


def wide() -> Console:
    """The terminal, or 100 columns where it is narrower."""
    return Console(width=max(Console().width, 100))
