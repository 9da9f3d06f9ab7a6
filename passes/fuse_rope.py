"""Rotary embedding, `x * cos + rotate_half(x) * sin`, to `lutra.rope` over tables that all layers share; with what is
written into the caches to `lutra.rope_kv_update`."""

from typing import Any

from ..ir.rewriting import RopeKvUpdateOp, RopeOp, build, constant, defined_by, shape_of, users


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


def _update(value: Any) -> Any | None:
    """The `lutra.kv_update` that gives `value`, or the cache that `value` is a part of."""
    part = defined_by(value, "aten.slice.Tensor")
    update = defined_by(value if part is None else part.operands[0], "lutra.kv_update")
    return None if update is None else update.opview


def _projected(value: Any) -> Any | None:
    """x `[B, S, heads, D]` when `value` is `transpose(x, 1, 2)`."""
    op = defined_by(value, "aten.transpose.int")
    return op.operands[0] if op is not None and {constant(d) for d in list(op.operands)[1:]} == {1, 2} else None


def fuse_rope_kv_update(op: Any, rewriter: Any) -> bool:
    """`attention(rope(q), kv_update(.., rope(k)), kv_update(.., v))`: its operands from one `lutra.rope_kv_update`."""
    attention = op.operation.opview
    query, keys, values = defined_by(attention.q, "lutra.rope"), _update(attention.k), _update(attention.v)
    key = keys and defined_by(keys.new, "lutra.rope")
    if query is None or keys is None or values is None or key is None or keys.positions != values.positions:
        return False
    query, key = query.opview, key.opview
    projected = [_projected(x) for x in (query.x, key.x, values.new)]
    if any(x is None for x in projected) or query.cos != key.cos or query.sin != key.sin:
        return False
    q, k, v = (shape_of(x) or () for x in projected)
    if q[3:] != k[3:] or k[2:] != v[2:]:
        return False
    old = [query.out, keys.out, values.out]
    last = old[0].owner
    for value in old[1:]:
        last = value.owner if last.is_before_in_block(value.owner) else last
    early = [u for value in old for u in users(value) if not last.is_before_in_block(u)]
    if any(user.name != "torch.bind_symbolic_shape" for user in early):
        return False
    new = build(
        RopeKvUpdateOp,
        rewriter,
        op,
        *projected,
        query.cos,
        query.sin,
        keys.cache,
        values.cache,
        keys.positions,
        *(value.type for value in old),
    )
    new.operation.move_before(last)
    for user in early:
        user.move_after(new.operation)
    for value, result in zip(old, new.operation.results, strict=True):
        rewriter.replace_op(value.owner, [result])
    return True


CACHE_PATTERNS = {"lutra.attention": [fuse_rope_kv_update]}
