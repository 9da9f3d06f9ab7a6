"""`lutra ops`: the operations of the IR, as their classes describe them; docs/operations.md is the same text."""

from inspect import cleandoc
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from ..ir.errors import LutraError, did_you_mean, shown
from ..ir.ops import OPERATIONS, Op, base
from ..ir.ops.base import Field
from .app import app

HEADER = """\
# Operations of the IR

`make figures` writes this file from the classes in `ir/ops/`; `lutra ops` prints it, `lutra ops NAME` one of them.
"""


@app.command()
def ops(
    name: Annotated[str | None, typer.Argument(help="of an operation, `linear` say; all when left out")] = None,
) -> None:
    """List the operations that the IR has besides torch's: what each computes, takes and gives, and what it costs."""
    Console().print(Markdown("\n".join(described(cls) for cls in _named(name))))


def document() -> str:
    """The text of docs/operations.md."""
    _, conventions = cleandoc(base.__doc__ or "").split("\n\n", 1)
    return "\n".join([HEADER, f"{conventions}\n", *map(described, OPERATIONS.values())])


def described(cls: type[Op]) -> str:
    """A section of Markdown: the docstring, then everything else that the class says."""
    fields, file = cls.SIGNATURE, cls.__module__.split(".", 1)[1].replace(".", "/")
    facts = {
        "operands": _listed(fields.operands),
        "attributes": _listed(fields.attributes),
        "results": _listed(fields.results),
        "cost": " ".join((cls.cost.__doc__ or "").split()),
        "memory": _memory(cls),
        "file": f"`{file}.py`",
    }
    lines = [f"* {fact}: {text}\n" for fact, text in facts.items() if text]
    return f"## {cls.OPERATION_NAME}\n\n{cleandoc(cls.__doc__ or '')}\n\n{''.join(lines)}"


def _named(name: str | None) -> list[type[Op]]:
    if name is None:
        return list(OPERATIONS.values())
    found = OPERATIONS.get(f"lutra.{name.removeprefix('lutra.')}")
    if found is None:
        known = [known.removeprefix("lutra.") for known in OPERATIONS]
        raise LutraError(f"there is no operation {shown(name)}: {did_you_mean(name.removeprefix('lutra.'), known)}")
    return [found]


def _listed(fields: tuple[Field, ...]) -> str:
    notes = ["may be left out" if field.optional else field.kind for field in fields]
    return ", ".join(f"`{f.name}` ({note})" if note else f"`{f.name}`" for f, note in zip(fields, notes, strict=True))


def _memory(cls: type[Op]) -> str:
    if cls.IS_VIEW:
        return "the result is a view of the operand"
    return ", ".join(f"`{result}` may take the place of `{operand}`" for operand, result in cls.OVERWRITES.items())
