"""The command line, `lutra`: recipes, passes, targets, packing, profiles, predictions, the cache, a check of all."""

import io
import json
import os
import sys
from collections import Counter
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import indent, wrap
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from .. import __version__
from ..codegen.cache.entries import Item, items, remove
from ..ir.errors import LutraError, shortened
from ..passes.registry import available_passes, explained
from ..recipes.loading import library, load_recipe
from ..recipes.reading import parse_variables
from ..torch_plugin.inspect.progress import ProgressBar
from ..torch_plugin.options import Options

app = typer.Typer(name="lutra", help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
app.pretty_exceptions_enable = False  # a fault of ours has Python's own traceback, whole
cache_app = typer.Typer(help="The cache of compiled executables.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
_SHOWN = 20
"""Lines of what was left alone."""


def _path(text: str) -> Path:
    """Not the working directory for want of a name."""
    if not text:
        raise LutraError("an option that takes a path was given an empty one: '.' is the working directory")
    return Path(text)


_MOST_TOKENS = 1 << 20

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


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="library name or path; all of the library when left out")] = None,
    var: Variables = None,
) -> None:
    """List the recipes of the library, or print one with everything that it extends and every default written out."""
    passes = available_passes()
    if name is not None:
        print(load_recipe(name, passes, vars=parse_variables(var or [])).to_yaml(), end="")
        return
    table = _table("recipe", "passes", "description")
    for each in library():
        recipe = load_recipe(each, passes)
        names = dict.fromkeys(step.pass_.name for step in recipe.steps)
        table.add_row(each, ", ".join(names), recipe.description)
    _show(table)


@app.command()
def passes() -> None:
    """List the passes that a recipe can name, and what each of their parameters means, with its default."""
    for name, cls in sorted(available_passes().loaded().items()):
        summary, meanings = explained(cls)
        print(f"{name} ({cls.kind})")
        _print_indented(summary, 2)
        for field in fields(cls):
            default = "" if field.default is MISSING else f": {json.dumps(field.default, default=str)}"
            _print_indented(field.name + default, 4)
            _print_indented(meanings.get(field.name, "not explained"), 8)


@app.command()
def targets() -> None:
    """List the targets that code is generated for, and which of them this machine can run."""
    from ..codegen.targets import TARGETS  # loads TVM, which no other command needs

    table = _table("target", "this machine")
    for target in TARGETS.values():
        table.add_row(target.name, "yes" if target.available() else "no")
    _show(table)


@app.command()
def profile(
    model: ModelName,
    recipe: RecipeName = None,
    var: Variables = None,
    dtype: DtypeName = "auto",
    prompt: Annotated[int, typer.Option(help="prompt tokens", min=2, max=_MOST_TOKENS)] = 128,
    new_tokens: Annotated[int, typer.Option(min=2, max=_MOST_TOKENS)] = 16,
    trace: Annotated[
        Path | None, typer.Option(parser=_path, help="write the timeline there, as a Chrome trace")
    ] = None,
) -> None:
    """Say where the time of a prefill and of decode steps goes, kernel by kernel."""
    from ..torch_plugin.inspect.profiling import profile as watch
    from ..torch_plugin.models.causal_lm import generate, load_causal_lm

    loaded = load_causal_lm(model, dtype, recipe, parse_variables(var or []), default="none")
    generate(loaded, prompt, new_tokens)  # compiles
    with ProgressBar(f"watch {prompt} tokens and {new_tokens} new ones", None, still=True), watch(loaded) as timeline:
        generate(loaded, prompt, new_tokens)
    Console(width=max(Console().width, 100)).print(timeline)
    if trace is not None:
        timeline.save(trace)
        print(f"timeline: {trace} (open it in chrome://tracing or ui.perfetto.dev)")


@app.command()
def explain(
    model: ModelName,
    recipe: RecipeName = None,
    var: Variables = None,
    dtype: DtypeName = "auto",
    batch: Annotated[int, typer.Option(help="sequences", min=1, max=4096)] = 1,
    context: Annotated[int, typer.Option(help="tokens that the step attends to", min=3, max=_MOST_TOKENS)] = 128,
    layers: Annotated[bool, typer.Option("--layers", help="also every linear: its format, kernels and time")] = False,
) -> None:
    """Predict bytes, operations and time of a decode step. The first time this measures the machine, for a minute."""
    from ..torch_plugin.inspect.report import report
    from ..torch_plugin.models.causal_lm import generate, load_causal_lm
    from ..tuning.explain import explain as predict

    loaded = load_causal_lm(model, dtype, recipe, parse_variables(var or []), default="none")
    generate(loaded, context - 1, 2, batch)  # compiles, over a cache of `context` tokens
    explanation = predict(loaded, context, batch)
    console = Console(width=max(Console().width, 100))
    console.print(explanation)
    console.print(report(loaded).weights)
    if layers:
        console.print(explanation.layers())


@app.command()
def pack(
    model: Annotated[str, typer.Argument(help="folder, hub name or .gguf file of a causal language model")],
    output: Annotated[
        Path, typer.Option("--output", "-o", parser=_path, help="new or empty folder for the packed model")
    ],
    recipe: RecipeName = None,
    var: Variables = None,
    dtype: DtypeName = "auto",
) -> None:
    """Write a model with its weights packed for this machine's kernels; `lutra.load(folder)` then needs no other file.

    The model is compiled for a prefill and decode steps over a static cache, on the way to its packed form."""
    from ..torch_plugin.inspect.report import report
    from ..torch_plugin.models.causal_lm import generate, load_causal_lm, load_tokenizer
    from ..torch_plugin.models.packed_manifest import is_packed
    from ..torch_plugin.models.packed_model import check_new
    from ..torch_plugin.models.packed_model import pack as write

    if is_packed(model):
        raise LutraError(f"{model} is packed already")
    check_new(output)
    tokenizer = load_tokenizer(model)
    loaded = load_causal_lm(model, dtype, recipe, parse_variables(var or []), default="w4")
    generate(loaded, prompt=32, new_tokens=2)
    size = write(loaded, output, tokenizer)
    Console(width=max(Console().width, 100)).print(report(loaded).weights)
    print(f"{output}: {size / 1e6:.1f} MB of weights{'' if tokenizer else ', no tokenizer found'}")


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="a packed folder")]) -> None:
    """Check a packed folder against its checksums and its manifest, without giving values to a model."""
    from ..torch_plugin.models.packed_model import verify as check

    table, checked = _table("file", "bytes", "is"), check(folder)
    for name, size in checked.items():
        table.add_row(name, f"{size:,}", "as it was written")
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in checked:
            table.add_row(path.name, f"{path.stat().st_size:,}", "not of the packed model: lutra does not read it")
    _show(table)


@app.command()
def doctor(cache_dir: CacheDir = None) -> None:
    """Say what Lutra finds on this machine, compile and run something small, and say what is wrong; exit code 2 if
    something is."""
    from ..torch_plugin.inspect.doctor import examine  # loads torch

    with ProgressBar("look at this machine", None):
        findings = list(examine(Options.parse({"cache_dir": cache_dir})))
    table = _table("", "found")
    for finding in findings:
        table.add_row(finding.subject, finding.found)
    _show(table)
    if wrong := [f"{finding.subject}: {finding.wrong}" for finding in findings if finding.wrong]:
        raise LutraError("; ".join(wrong))
    print("nothing is wrong")


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


def main() -> None:
    """Entry point. What the user can mend is one line on stderr and exit code 2: an error that Lutra or the file system
    raises, wrong usage, too little memory; LUTRA_DEBUG=1 shows where it came from. Any other exception is a fault of
    Lutra's, and its traceback is what a report needs."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text of the terminal's encoding
    try:
        if any("\0" in argument for argument in sys.argv):
            raise LutraError("an argument holds a NUL character")
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough
        _give_up_output()
        sys.exit(1)
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # the help, where arguments are missing altogether
            print(message, file=sys.stderr)
            sys.exit(2)
        _fail(f"{message.rstrip('.')} (--help says what there is)")
    except (LutraError, OSError, MemoryError) as error:
        _fail(str(error) or "there is not enough memory")
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # which is what torch calls it
            raise
        _fail(str(error))
    sys.exit(code or 0)


def _give_up_output() -> None:
    """What cannot be written is not tried again, and told again, when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> NoReturn:
    _give_up_output()
    if os.environ.get("LUTRA_DEBUG"):
        raise
    line = "; ".join(filter(None, map(str.strip, message.splitlines())))
    print(f"lutra: {shortened(line, 5000)}", file=sys.stderr)
    sys.exit(2)


def _cached(given: str | None) -> tuple[Path, list[Item]]:
    """The cache folder and what lies there; nothing while it does not exist."""
    folder = Options.parse({"cache_dir": given}).cache_directory()
    return folder, items(folder) if os.path.lexists(folder) else []


def _counted(found: list[Item]) -> str:
    counts = Counter({"executable": 0})
    counts.update(str(item.kind) for item in found)
    return ", ".join(f"{count} {kind}s" for kind, count in counts.items())


def _table(*headings: str) -> Table:
    return Table(*headings, header_style="bold", show_lines=False)


def _print_indented(text: str, columns: int) -> None:
    """In lines of the terminal's width; words stay whole."""
    lines = wrap(text, max(Console().width - columns, 1), break_long_words=False, break_on_hyphens=False)
    print(indent("\n".join(lines), " " * columns))


def _show(table: Table) -> None:
    Console().print(table)
