"""Rotary embedding together with what is written into the caches: `lutra.rope_kv_update`."""

from typing import Any

from ...ir.ops import RopeKvUpdateOp
from ...ir.patterns import Pattern
from ...ir.rewriting import build, constant, defined_by, shape_of, users
from ...ir.types import tensor_type
from ..matching import is_fused_float


def _update(value: Any) -> Any | None:
    """The `lutra.kv_update` that gives `value`, or the cache that `value` is a part of."""
    part = defined_by(value, "aten.slice.Tensor")
    update = defined_by(value if part is None else part.operands[0], "lutra.kv_update")
    return None if update is None else update.opview


def _projected(value: Any) -> Any | None:
    """x `[B, S, heads, D]` when `value` is `transpose(x, 1, 2)`."""
    op = defined_by(value, "aten.transpose.int")
    return op.operands[0] if op is not None and {constant(d) for d in list(op.operands)[1:]} == {1, 2} else None


class RopeKvUpdate(Pattern):
    """`attention(rope(q), kv_update(.., rope(k)), kv_update(.., v))`: its operands from one `lutra.rope_kv_update`."""

    roots = ("lutra.attention",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        attention = op.operation.opview
        query, keys, values = defined_by(attention.q, "lutra.rope"), _update(attention.k), _update(attention.v)
        if query is None or keys is None or values is None or keys.positions != values.positions:
            return False
        key = defined_by(keys.new, "lutra.rope")
        if key is None:
            return False
        query, key = query.opview, key.opview
        if query.pairs.value != "halves" or key.pairs.value != "halves":
            return False
        projected = [x for value in (query.x, key.x, values.new) if (x := _projected(value)) is not None]
        if len(projected) < 3 or query.cos != key.cos or query.sin != key.sin:
            return False
        q, k, v = (shape_of(x) or () for x in projected)
        if q[3:] != k[3:] or k[2:] != v[2:] or not is_fused_float(query.x):
            return False
        tensors = (*projected, query.cos, query.sin, keys.cache, values.cache)
        if len({tensor_type(x.type).dtype for x in tensors}) > 1:
            return False
        old = [query.out, keys.out, values.out]
        last = old[0].owner
        for value in old[1:]:
            last = value.owner if last.is_before_in_block(value.owner) else last
        if any(not last.is_before_in_block(u) for value in old for u in users(value)):
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
        for value, result in zip(old, new.operation.results, strict=True):
            rewriter.replace_op(value.owner, [result])
        return True
