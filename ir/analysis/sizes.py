"""What a value of a graph is, as far as sizes tell: shapes and numbers as sympy expressions in the capture's symbols.

The expressions are those of torch's own `ShapeEnv`, which knows from guards that two sizes are one, or that one is the
smaller. The importer writes them beside the operations, as text (`lutra.sizes = "[2*s0, 64]"`): `Graph.sizes` has what
the text stands for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch

SIZES_ATTRIBUTE = "lutra.sizes"


@dataclass(frozen=True)
class SymbolicValue:
    """A tensor (`shape`, `dtype`), a quantised weight (`shape` `[N, K]`) or a number (`number`), in graph symbols."""

    shape: tuple[sympy.Expr, ...] | None = None
    dtype: torch.dtype | None = None
    number: sympy.Expr | None = None


Described = SymbolicValue | tuple[Any, ...] | None
"""What a value is: a `SymbolicValue`, for a list a tuple of them, None for anything else (a string, none, a device)."""


def describe(value: Any) -> Described:
    """A tensor, a whole number, a float that follows from sizes, or a list of them, fake or not.

    Floats that are constants stay what they are: sympy knows no negative zero."""
    if isinstance(value, torch.Tensor):
        return SymbolicValue(tuple(map(expression, value.shape)), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(map(describe, value))
    if isinstance(value, torch.SymInt | torch.SymFloat | int) and not isinstance(value, bool):
        return SymbolicValue(number=expression(value))
    return None


def expression(number: Any) -> sympy.Expr:
    """A number that torch may know as a symbol only."""
    if isinstance(number, torch.SymInt | torch.SymFloat):
        return number.node.expr
    return sympy.Integer(number)


def expressions(value: Described) -> Iterator[sympy.Expr]:
    """Every size and number in `value`."""
    if isinstance(value, tuple):
        for element in value:
            yield from expressions(element)
    elif value is not None:
        yield from value.shape or ()
        if value.number is not None:
            yield value.number


def is_static(value: Described) -> bool:
    """Nothing in `value` waits for a call."""
    return all(e.is_number for e in expressions(value))


def spelled(value: Described) -> str:
    """`value` as text, for people and as the key of `Graph.sizes`: equal for equal values of one dtype."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"({', '.join(map(spelled, value))})"
    if value.number is not None:
        return str(value.number)
    return f"[{', '.join(map(str, value.shape or ()))}]"
