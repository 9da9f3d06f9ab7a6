"""Attention's result with its heads merged into features: what the output projection reads."""

from typing import Any

from ...ir.ops import AttentionOp
from ...ir.patterns import Pattern
from ...ir.rewriting import build, defined_by, shape_of, single_use
from ..matching import dimension, sizes


class MergeHeads(Pattern):
    """`view(transpose(attention, 1, 2), [B, S, H * D])` -> `lutra.attention` with `merge_heads`.

    %q: f32[2,4,3,8], %k: f32[2,4,3,8], %v: f32[2,4,3,8]
    %a = lutra.attention(%q, %k, %v) {causal = 0 : i64, merge_heads = 0 : i64, scale = 0.5 : f64}
    %t = aten.transpose.int(%a, 1, 2) : f32[2,3,4,8]
    %r = aten.view(%t, [2, 3, 32]) : f32[2,3,32]
    =>
    %r = lutra.attention(%q, %k, %v) {causal = 0 : i64, merge_heads = 1 : i64, scale = 0.5 : f64} : f32[2,3,32]
    """

    roots = tuple(f"torch.aten.{view}" for view in ("view", "_unsafe_view", "reshape"))

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        shape = sizes(op.operation.results[0])
        value = op.operation.operands[0]
        for name in ("aten.clone", "aten.contiguous"):
            inner = defined_by(value, name)
            value = inner.operands[0] if inner is not None else value
        transpose = defined_by(value, "aten.transpose.int")
        if len(shape) != 3 or transpose is None or {dimension(v, 4) for v in list(transpose.operands)[1:]} != {1, 2}:
            return False
        source = transpose.operands[0]
        view = defined_by(source, "aten.view", "aten._unsafe_view")
        if view is not None and len(sizes(source)) == 4 and len(shape_of(view.operands[0]) or ()) == 4:
            # HF reshapes to [B, H, S, D], which it already is; with symbolic sizes the importer cannot see that.
            inner, outer = shape_of(view.operands[0]) or (), sizes(source)
            if all(a == b or a is None or b is None for a, b in zip(inner, outer, strict=True)):
                source = view.operands[0]
        attention = defined_by(source, "lutra.attention")
        if attention is None or not single_use(source):
            return False
        a = attention.opview
        heads = sizes(source)
        if len(heads) != 4 or heads[1] is None or heads[3] is None:
            return False
        if shape != (heads[0], heads[2], heads[1] * heads[3]):
            return False  # merged already, or into features of something else
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
