"""Attention: grouped heads without repeated keys and values, and caches updated in place."""

import math
from typing import Any

from ...ir.operator_call import operation_name
from ...ir.ops import AttentionOp, KvUpdateOp
from ...ir.patterns import Pattern
from ...ir.rewriting import build, constant, defined_by, shape_of
from ...ir.types import tensor_type
from ..matching import is_fused_float, sizes


def _ungrouped(value: Any) -> Any:
    """Through `repeat_kv`: `view(clone(expand(unsqueeze(x, 2))))` -> x `[B, G, L, D]`; else `value` itself."""
    view = defined_by(value, "aten.view", "aten._unsafe_view", "aten.reshape")
    if view is None:
        return value
    clone = defined_by(view.operands[0], "aten.clone")
    expand = defined_by((clone or view).operands[0], "aten.expand")
    unsqueeze = expand and defined_by(expand.operands[0], "aten.unsqueeze")
    if expand is None or unsqueeze is None or constant(unsqueeze.operands[1]) not in (2, -3):
        return value
    source, wide, result = (shape_of(v) for v in (unsqueeze.operands[0], expand.results[0], value))
    if not (source and wide and result and len(source) == 4 and len(wide) == 5 and len(result) == 4):
        return value
    batch, groups, *rest = source
    if groups is None or wide[2] is None or wide != (batch, groups, wide[2], *rest):
        return value  # more than heads was repeated
    return unsqueeze.operands[0] if result == (batch, groups * wide[2], *rest) else value


def _can_attend(q: Any, k: Any, v: Any) -> bool:
    """The operands are those of `lutra.attention`: nothing is broadcast but heads in groups."""
    queries, keys, values = (sizes(x) for x in (q, k, v))
    if not len(queries) == len(keys) == len(values) == 4 or not is_fused_float(q, k, v):
        return False
    if queries[1] is None or keys[1] is None or keys[1] == 0 or queries[1] % keys[1]:
        return False
    return queries[0] == keys[0] and queries[3] == keys[3] and keys[:3] == values[:3]


class Attention(Pattern):
    """`aten.scaled_dot_product_attention` -> `lutra.attention`.

    %q: f32[2,4,3,8], %k: f32[2,2,3,8], %v: f32[2,2,3,8]
    %r = aten.scaled_dot_product_attention(%q, %k, %v, none, 0.0, true, 0.5, true)
    =>
    %r = lutra.attention(%q, %k, %v) {causal = 1 : i64, merge_heads = 0 : i64, scale = 0.5 : f64}
    """

    roots = ("torch.aten.scaled_dot_product_attention",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        q, k, v, mask, dropout, causal, scale, gqa = op.operation.operands
        head, result = (shape_of(q) or (None,))[-1], op.operation.results[0]
        if constant(dropout) != 0.0 or not isinstance(constant(causal), bool):
            return False
        factor = constant(scale)
        if factor is None and head:
            factor = 1 / math.sqrt(head)
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            return False
        if constant(gqa) is not True and _can_attend(q, _ungrouped(k), _ungrouped(v)):
            k, v = _ungrouped(k), _ungrouped(v)
        if not _can_attend(q, k, v) or tensor_type(q.type).dtype != tensor_type(result.type).dtype:
            return False
        keywords = {} if shape_of(mask) is None else {"mask": mask}
        new = build(AttentionOp, rewriter, op, q, k, v, float(factor), constant(causal), False, result.type, **keywords)
        rewriter.replace_op(op, new.operation)
        return True


class KvUpdate(Pattern):
    """`aten.index_copy(cache, 2, positions, new)` on `[B, G, L, D]` -> `lutra.kv_update`.

    %cache: f32[2,4,16,8], %new: f32[2,4,3,8], %places: si64[3]
    %r = aten.index_copy(%cache, 2, %places, %new)
    =>
    %r = lutra.kv_update(%cache, %new, %places)
    """

    roots = ("torch.operator",)  # `index_copy` is not in the torch dialect

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        if operation_name(op) != "aten.index_copy":
            return False
        cache, dim, positions, new = op.operation.operands
        if len(shape_of(cache) or ()) != 4 or constant(dim) not in (2, -2) or len(shape_of(positions) or ()) != 1:
            return False
        if op.operation.results[0].type != cache.type or tensor_type(new.type).dtype != tensor_type(cache.type).dtype:
            return False
        built = build(KvUpdateOp, rewriter, op, cache, new, positions, op.operation.results[0].type)
        rewriter.replace_op(op, built.operation)
        return True
