"""Operations that change no value: clones, casts to the same type, `* 1`, `- 0`, views to the same shape.

A cast to another dtype is kept even when the next one takes it back: it rounds."""

import math
from typing import Any

from ...ir.rewriting import constant, shape_of, users
from ...ir.types import tensor_type

_RETURN = "func.return"


def drop_identity(op: Any, rewriter: Any) -> bool:
    """`op(x, ...)` with the type of x -> x, except a result of the graph: it must not alias an argument."""
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


def drop_neutral_scalar(op: Any, rewriter: Any) -> bool:
    """`x * 1`, `x / 1`, `x - 0`, and `x + 0` of integers with Python scalars -> x: of floats, -0 + 0 is 0."""
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
    return drop_identity(op, rewriter)


def _adds_zero(name: str, scalar: float) -> bool:
    """A positive zero is added."""
    return (math.copysign(1, scalar) > 0) == name.startswith("add")


def drop_dropout(op: Any, rewriter: Any) -> bool:
    """`dropout(x, p, train)` that is off -> x."""
    off = constant(op.operation.operands[2]) is False or constant(op.operation.operands[1]) == 0
    return off and drop_identity(op, rewriter)


_VIEWS = ("torch.aten.view", "torch.aten._unsafe_view", "torch.aten.reshape")
IDENTITY_PATTERNS = {
    **{
        f"torch.aten.{name}": [drop_identity]
        for name in ("alias", "detach", "clone", "contiguous", "_to_copy", "expand", "lift_fresh_copy")
    },
    **{view: [drop_identity] for view in _VIEWS},
    **{f"torch.aten.{name}.Scalar": [drop_neutral_scalar] for name in ("add", "sub", "mul", "div")},
    "torch.aten.dropout": [drop_dropout],
}
