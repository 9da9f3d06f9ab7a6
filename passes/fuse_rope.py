"""Rotary embedding, `x * cos + rotate_half(x) * sin`, to `lutra.rope` over tables that all layers share."""

from typing import Any

from ..ir.rewriting import RopeOp, build, constant, defined_by, shape_of


def _halves(value: Any) -> Any | None:
    """x when `value` is `cat([-x[..., D/2:], x[..., :D/2]], -1)`."""
    cat = defined_by(value, "aten.cat")
    parts = cat and defined_by(cat.operands[0], "prim.ListConstruct")
    if cat is None or parts is None or len(parts.operands) != 2:
        return None
    if constant(cat.operands[1]) not in (-1, len(shape_of(value) or ()) - 1):
        return None
    neg = defined_by(parts.operands[0], "aten.neg")
    high = neg and defined_by(neg.operands[0], "aten.slice.Tensor")
    low = defined_by(parts.operands[1], "aten.slice.Tensor")
    if not high or not low or high.operands[0] != low.operands[0]:
        return None
    size = (shape_of(value) or (None,))[-1]
    if size is None or constant(high.operands[2]) != size // 2 or constant(low.operands[3]) != size // 2:
        return None
    return low.operands[0] if constant(low.operands[2]) == 0 else None


def _table(value: Any) -> Any | None:
    """The `[B, S, D]` table behind its `unsqueeze(1)`."""
    op = defined_by(value, "aten.unsqueeze")
    return (
        op.operands[0]
        if op is not None and constant(op.operands[1]) == 1 and len(shape_of(op.operands[0]) or ()) == 3
        else None
    )


def fuse_rope(op: Any, rewriter: Any) -> bool:
    """`x * unsqueeze(cos, 1) + rotate_half(x) * unsqueeze(sin, 1)` -> `lutra.rope(x, cos, sin)`."""
    left = defined_by(op.operation.operands[0], "aten.mul.Tensor")
    right = defined_by(op.operation.operands[1], "aten.mul.Tensor")
    if left is None or right is None or constant(op.operation.operands[2]) != 1:
        return False
    x, cos, sin = left.operands[0], _table(left.operands[1]), _table(right.operands[1])
    if cos is None or sin is None or _halves(right.operands[0]) != x:
        return False
    result = op.operation.results[0]
    if result.type != x.type or len(shape_of(x) or ()) != 4:
        return False
    rewriter.replace_op(op, build(RopeOp, rewriter, op, x, cos, sin, result.type).operation)
    return True


ROPE_PATTERNS = {"torch.aten.add.Tensor": [fuse_rope]}
