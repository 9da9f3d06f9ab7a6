"""`when:` conditions: comparisons over named shape and hardware facts, evaluated without running any Python."""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..ir.errors import RecipeError, did_you_mean, shown

FACTS = ("batch", "sequence", "cores", "avx2", "avx512", "amx", "neon")
"""Names a condition may use: graph sizes (none where they are symbolic) and 0/1 hardware facts, `cores` a count."""
MAX_CHARACTERS = 500
MAX_DEPTH = 50

_COMPARE: dict[type, Callable[[int, int], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class Condition:
    """A parsed condition such as `batch <= 4 and avx512`."""

    text: str
    tree: ast.expr = field(compare=False, repr=False)

    @staticmethod
    def parse(text: str) -> "Condition":
        """Raises `RecipeError` for unknown names and for anything but arithmetic, comparisons, and / or / not, and for
        what is longer than `MAX_CHARACTERS` or nested deeper than `MAX_DEPTH`."""
        if len(text) > MAX_CHARACTERS:
            raise RecipeError(f"condition {shown(text)} has {len(text)} characters, at most {MAX_CHARACTERS} are read")
        try:
            tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise RecipeError(f"condition {text!r} does not parse: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:  # NUL and surrogates; the parser's own stack
            raise RecipeError(f"condition {text!r} does not parse: {error or 'it is nested too deeply'}") from None
        _check(tree, text, MAX_DEPTH)
        return Condition(text, tree)

    def holds(self, facts: Mapping[str, int]) -> bool:
        """True when the condition is certain under `facts`; one that depends on a fact that is not there (a symbolic
        size) is not. Raises `RecipeError` for a division by zero."""
        try:
            return bool(_value(self.tree, facts))
        except ZeroDivisionError:
            raise RecipeError(f"condition {self.text!r} divides by zero here ({_used(self.tree, facts)})") from None


def _check(node: ast.expr, text: str, depth: int, arithmetic: bool = False) -> None:
    """`arithmetic`: the value is compared or calculated with, which a truth value is not."""
    if depth == 0:
        raise RecipeError(f"condition {text!r} is nested more than {MAX_DEPTH} levels deep")
    if arithmetic and (isinstance(node, ast.Compare | ast.BoolOp) or _is_not(node)):
        raise RecipeError(f"condition {text!r} compares truth values: join them with and/or/not")
    parts: list[ast.expr] = []
    match node:
        case ast.Constant(value=bool() | int()):
            pass
        case ast.Name(id=name):
            if name not in FACTS:
                raise RecipeError(f"condition {text!r} uses an unknown name {name!r}: {did_you_mean(name, FACTS)}")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            if isinstance(op, ast.FloorDiv | ast.Mod) and isinstance(right, ast.Constant) and right.value == 0:
                raise RecipeError(f"condition {text!r} has a division by zero")
            parts, arithmetic = [left, right], True
        case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(o) in _COMPARE for o in ops):
            parts, arithmetic = [left, *rights], True
        case ast.BoolOp(values=values):
            parts, arithmetic = values, False
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            parts, arithmetic = [operand], True
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            parts, arithmetic = [operand], False
        case _:
            raise RecipeError(
                f"condition {text!r} may hold names, integers, + - * // %, comparisons and and/or/not only"
            )
    for part in parts:
        _check(part, text, depth - 1, arithmetic)


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _value(node: ast.expr, facts: Mapping[str, int]) -> int | None:
    """The value of a checked expression; None where it depends on a fact that is not there."""
    match node:
        case ast.Constant(value=int() as value):
            return int(value)
        case ast.Name(id=name):
            return facts.get(name)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _value(left, facts), _value(right, facts)
            return None if a is None or b is None else _ARITHMETIC[type(op)](a, b)
        case ast.Compare(left=left, ops=ops, comparators=rights):
            sides = [_value(side, facts) for side in (left, *rights)]
            return _all(
                None if a is None or b is None else _COMPARE[type(op)](a, b)
                for op, a, b in zip(ops, sides, sides[1:], strict=False)
            )
        case ast.BoolOp(op=ast.And(), values=values):
            return _all(_value(value, facts) for value in values)
        case ast.BoolOp(values=values):
            return _negated(_all(_negated(_value(value, facts)) for value in values))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _negated(_value(operand, facts))
        case ast.UnaryOp(operand=operand):
            value = _value(operand, facts)
            return None if value is None else -value
    raise AssertionError(f"{ast.dump(node)} was checked")


def _all(values: Iterable[int | None]) -> int | None:
    """0 when one is false, else None when one is unknown; as `and` does, what follows a false one is not looked at."""
    unknown = False
    for value in values:
        if value == 0:
            return 0
        unknown |= value is None
    return None if unknown else 1


def _negated(value: int | None) -> int | None:
    return None if value is None else int(not value)


def _used(tree: ast.expr, facts: Mapping[str, int]) -> str:
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    return ", ".join(f"{name} = {facts[name]}" for name in names if name in facts)
