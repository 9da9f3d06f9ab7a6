"""Operations that change no value: clones, casts to the same type, `+ 0`, `* 1`, views to the same shape."""

from typing import Any

from ..ir.rewriting import constant, shape_of, users

_RETURN = "func.return"


def drop_identity(op: Any, rewriter: Any) -> bool:
    """`op(x, ...)` with the type of x -> x, except a result of the graph: it must not alias an argument."""
    source = op.operation.operands[0]
    if source.type != op.operation.results[0].type:
        return False
    if op.operation.name in _VIEWS and list(shape_of(source) or ()).count(None) > 1:
        return False  # two unknown sizes could have changed places
    if any(user.operation.name == _RETURN for user in users(op.operation.results[0])):
        return False
    rewriter.replace_op(op, [source])
    return True


def drop_neutral_scalar(op: Any, rewriter: Any) -> bool:
    """`x + 0` and `x * 1` with Python scalars -> x."""
    neutral = 0 if ".add." in op.operation.name or ".sub." in op.operation.name else 1
    scalar = constant(op.operation.operands[1])
    if isinstance(scalar, int | float) and not isinstance(scalar, bool) and scalar == neutral:
        return drop_identity(op, rewriter)
    return False


_VIEWS = ("torch.aten.view", "torch.aten._unsafe_view", "torch.aten.reshape")
IDENTITY_PATTERNS = {
    **{
        f"torch.aten.{name}": [drop_identity]
        for name in ("alias", "detach", "clone", "contiguous", "_to_copy", "dropout", "expand", "lift_fresh_copy")
    },
    **{view: [drop_identity] for view in _VIEWS},
    **{f"torch.aten.{name}.Scalar": [drop_neutral_scalar] for name in ("add", "sub", "mul", "div")},
}
