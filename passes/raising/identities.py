"""Operations that change no value: clones, casts to the same type, `* 1`, `- 0`, views to the same shape.

A cast to another dtype is kept even when the next one takes it back: it rounds."""

import math
from typing import Any

from ...ir.patterns import Pattern
from ...ir.rewriting import constant, shape_of, users
from ...ir.types import tensor_type

_RETURN = "func.return"
_VIEWS = ("torch.aten.view", "torch.aten._unsafe_view", "torch.aten.reshape")
_COPIES = ("alias", "detach", "clone", "contiguous", "_to_copy", "expand", "lift_fresh_copy")


class Identity(Pattern):
    """`op(x, ...)` with the type of x -> x, except a result of the graph: it must not alias an argument.

    %a = aten.clone(%x, 0)
    %r = aten.relu(%a)
    =>
    %r = aten.relu(%x)
    """

    roots = (*(f"torch.aten.{name}" for name in _COPIES), *_VIEWS)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        return _dropped(op, rewriter)


def _dropped(op: Any, rewriter: Any) -> bool:
    """Put x in place of `op(x, ...)`; False when its type is another, or the graph returns it."""
    source = op.operation.operands[0]
    if source.type != op.operation.results[0].type:
        return False
    shape = list(shape_of(source) or ())
    if op.operation.name in _VIEWS and shape.count(None) > (0 if 0 in shape else 1):
        return False  # two unknown sizes could have changed places, or be another over no elements
    if any(user.operation.name == _RETURN for user in users(op.operation.results[0])):
        return False
    rewriter.replace_op(op, [source])
    return True


class NeutralScalar(Pattern):
    """`x * 1`, `x / 1`, `x - 0`, and `x + 0` of integers with Python scalars -> x: of floats, -0 + 0 is 0.

    %a = aten.mul.Scalar(%x, 1)
    %r = aten.relu(%a)
    =>
    %r = aten.relu(%x)
    """

    roots = tuple(f"torch.aten.{name}.Scalar" for name in ("add", "sub", "mul", "div"))

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        source, scalar = op.operation.operands[0], constant(op.operation.operands[1])
        name = op.operation.name.removeprefix("torch.aten.")
        if isinstance(scalar, bool) or not isinstance(scalar, int | float) or shape_of(source) is None:
            return False
        if name.startswith(("add", "sub")):
            floating = tensor_type(source.type).dtype.is_floating_point
            if scalar != 0 or constant(op.operation.operands[2]) != 1 or (floating and _adds_zero(name, scalar)):
                return False
        elif scalar != 1:
            return False
        return _dropped(op, rewriter)


def _adds_zero(name: str, scalar: float) -> bool:
    """A positive zero is added."""
    return (math.copysign(1, scalar) > 0) == name.startswith("add")


class NoDropout(Pattern):
    """`dropout(x, p, train)` that is off -> x.

    %a = aten.dropout(%x, 0.1, false)
    %r = aten.relu(%a)
    =>
    %r = aten.relu(%x)
    """

    roots = ("torch.aten.dropout",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        off = constant(op.operation.operands[2]) is False or constant(op.operation.operands[1]) == 0
        return off and _dropped(op, rewriter)


IDENTITIES = Identity() + NeutralScalar() + NoDropout()
