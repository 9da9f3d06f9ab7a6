"""Attention: grouped heads without repeated keys and values, heads merged into features, caches updated in place."""

import math
from typing import Any

from ..ir.rewriting import AttentionOp, KvUpdateOp, build, constant, defined_by, operator_name, shape_of, single_use


def _ungrouped(value: Any) -> Any:
    """Through `repeat_kv`: `view(clone(expand(unsqueeze(x, 2))))` -> x `[B, G, L, D]`; else `value` itself."""
    view = defined_by(value, "aten.view", "aten._unsafe_view", "aten.reshape")
    if view is None:
        return value
    clone = defined_by(view.operands[0], "aten.clone")
    expand = defined_by((clone or view).operands[0], "aten.expand")
    unsqueeze = expand and defined_by(expand.operands[0], "aten.unsqueeze")
    if expand is None or unsqueeze is None or constant(unsqueeze.operands[1]) != 2:
        return value
    source, wide, result = (shape_of(v) for v in (unsqueeze.operands[0], expand.results[0], value))
    if not (source and wide and result and len(source) == 4 and len(wide) == 5 and len(result) == 4):
        return value
    if source[1] is None or wide[2] is None or result[1] != source[1] * wide[2] or result[3] != source[3]:
        return value
    return unsqueeze.operands[0]


def fuse_attention(op: Any, rewriter: Any) -> bool:
    """`aten.scaled_dot_product_attention` -> `lutra.attention`."""
    q, k, v, mask, dropout, causal, scale, gqa = op.operation.operands
    shape = shape_of(q)
    if shape is None or len(shape) != 4 or constant(dropout) != 0.0 or not isinstance(constant(causal), bool):
        return False
    head = shape[3]
    factor = constant(scale)
    if factor is None and head is not None:
        factor = 1 / math.sqrt(head)
    if not isinstance(factor, float):
        return False
    if constant(gqa) is not True:
        k, v = _ungrouped(k), _ungrouped(v)
    keys, values = shape_of(k), shape_of(v)
    if not (keys and values and len(keys) == len(values) == 4) or None in (shape[1], keys[1]) or keys[1] != values[1]:
        return False
    keywords = {} if shape_of(mask) is None else {"mask": mask}
    result = op.operation.results[0].type
    new = build(AttentionOp, rewriter, op, q, k, v, factor, constant(causal), False, result, **keywords)
    rewriter.replace_op(op, new.operation)
    return True


def merge_heads(op: Any, rewriter: Any) -> bool:
    """`view(transpose(attention, 1, 2), [B, S, H * D])` -> `lutra.attention` with `merge_heads`."""
    shape = shape_of(op.operation.results[0])
    value = op.operation.operands[0]
    for name in ("aten.clone", "aten.contiguous"):
        inner = defined_by(value, name)
        value = inner.operands[0] if inner is not None else value
    transpose = defined_by(value, "aten.transpose.int")
    if shape is None or len(shape) != 3 or transpose is None:
        return False
    if sorted(d % 4 if isinstance(d := constant(v), int) else -1 for v in list(transpose.operands)[1:]) != [1, 2]:
        return False
    source = transpose.operands[0]
    view = defined_by(source, "aten.view", "aten._unsafe_view")
    if view is not None and len(shape_of(source) or ()) == 4 and len(shape_of(view.operands[0]) or ()) == 4:
        # HF reshapes to [B, H, S, D], which it already is; with symbolic sizes the importer cannot see that.
        inner, outer = shape_of(view.operands[0]) or (), shape_of(source) or ()
        if all(a == b or a is None or b is None for a, b in zip(inner, outer, strict=True)):
            source = view.operands[0]
    attention = defined_by(source, "lutra.attention")
    if attention is None or not single_use(source):
        return False
    heads = shape_of(source)
    if heads is None or heads[1] is None or heads[3] is None or shape[2] != heads[1] * heads[3]:
        return False
    a = attention.opview
    keywords = {} if a.mask is None else {"mask": a.mask}
    new = build(
        AttentionOp,
        rewriter,
        op,
        a.q,
        a.k,
        a.v,
        a.scale.value,
        bool(a.causal.value),
        True,
        op.operation.results[0].type,
        **keywords,
    )
    rewriter.replace_op(op, new.operation)
    return True


def fuse_kv_update(op: Any, rewriter: Any) -> bool:
    """`aten.index_copy(cache, 2, positions, new)` on `[B, G, L, D]` -> `lutra.kv_update`."""
    if operator_name(op) != "torch.aten.index_copy":
        return False
    cache, dim, positions, new = op.operation.operands
    if len(shape_of(cache) or ()) != 4 or constant(dim) not in (2, -2):
        return False
    if op.operation.results[0].type != cache.type:
        return False
    built = build(KvUpdateOp, rewriter, op, cache, new, positions, op.operation.results[0].type)
    rewriter.replace_op(op, built.operation)
    return True


ATTENTION_PATTERNS = {
    "torch.aten.scaled_dot_product_attention": [fuse_attention],
    "torch.operator": [fuse_kv_update],  # `index_copy` is not in the torch dialect
}
MERGE_HEADS_PATTERNS = {f"torch.aten.{view}": [merge_heads] for view in ("view", "_unsafe_view", "reshape")}
