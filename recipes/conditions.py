"""`when:` conditions: comparisons over named shape and hardware facts, parsed without evaluating any Python."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from ..ir.errors import RecipeError, did_you_mean

FACTS = ("batch", "sequence", "cores", "avx2", "avx512", "amx", "neon")
"""Names a condition may use: graph sizes (a symbolic size is a free symbol) and 0/1 hardware facts, `cores` a count."""

_COMPARE: dict[type, Any] = {
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
}
_ARITHMETIC: dict[type, Any] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: lambda a, b: sympy.Mod(a, b),
}


@dataclass(frozen=True)
class Condition:
    """A parsed condition such as `batch <= 4 and avx512`."""

    text: str
    expression: sympy.Basic

    @staticmethod
    def parse(text: str) -> "Condition":
        """Raises `RecipeError` for unknown names and for anything but arithmetic, comparisons, and / or / not."""
        try:
            tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise RecipeError(f"condition {text!r} does not parse: {error.msg}") from None
        try:
            return Condition(text, _convert(tree, text))
        except TypeError:
            raise RecipeError(f"condition {text!r} compares truth values: join them with and/or/not") from None

    def holds(self, facts: Mapping[str, int]) -> bool:
        """True when the condition is certain under `facts`; an unknown one (a symbolic size) leaves it false."""
        value = self.expression.subs({sympy.Symbol(k, integer=True): v for k, v in facts.items()})
        return value == sympy.true or (value.is_number is True and bool(value != 0))


def _truth(value: Any) -> Any:
    return value if isinstance(value, sympy.logic.boolalg.Boolean) and not value.is_Symbol else sympy.Ne(value, 0)


def _convert(node: ast.AST, text: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() as value):
            return sympy.Integer(int(value))
        case ast.Name(id=name):
            if name not in FACTS:
                raise RecipeError(f"condition {text!r} uses an unknown name {name!r}: {did_you_mean(name, FACTS)}")
            return sympy.Symbol(name, integer=True)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            divisor = _convert(right, text)
            if isinstance(op, ast.FloorDiv | ast.Mod) and divisor == 0:
                raise RecipeError(f"condition {text!r} has a division by zero")
            return _ARITHMETIC[type(op)](_convert(left, text), divisor)
        case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(o) in _COMPARE for o in ops):
            sides = [_convert(side, text) for side in (left, *rights)]
            return sympy.And(*(_COMPARE[type(o)](a, b) for o, a, b in zip(ops, sides, sides[1:], strict=False)))
        case ast.BoolOp(op=op, values=values):
            parts = [_truth(_convert(v, text)) for v in values]
            return sympy.And(*parts) if isinstance(op, ast.And) else sympy.Or(*parts)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_convert(operand, text)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return sympy.Not(_truth(_convert(operand, text)))
    raise RecipeError(f"condition {text!r} may hold names, integers, + - * // %, comparisons and and/or/not only")
