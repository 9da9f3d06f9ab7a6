"""Gated feed-forward blocks over one projection that is gate and up together."""

from typing import Any

from ...ir.ops import GatedMlpOp
from ...ir.patterns import Pattern
from ...ir.rewriting import build
from ..matching import section_of, sizes


class MergedGate(Pattern):
    """`gated_mlp(m[..., :F], m[..., F:])` -> `gated_mlp(m)` when m is exactly gate and up.

    %m: f32[2,3,16]
    %gate = lutra.split(%m) {start = 0 : i64} : f32[2,3,8]
    %up = lutra.split(%m) {start = 8 : i64} : f32[2,3,8]
    %r = lutra.gated_mlp(%gate, up = %up) {activation = "silu"}
    =>
    %r = lutra.gated_mlp(%m) {activation = "silu"} : f32[2,3,8]
    """

    roots = ("lutra.gated_mlp",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        if op.up is None:
            return False
        gate, up = section_of(op.gate), section_of(op.up)
        if gate is None or up is None or gate.source != up.source or gate.dim != len(sizes(gate.source)) - 1:
            return False
        if gate.dim != up.dim or gate.range != (0, up.start, 1) or up.range != (gate.stop, 2 * gate.stop, 1):
            return False
        if gate.size != up.stop:
            return False
        new = build(GatedMlpOp, rewriter, op, gate.source, op.activation.value, op.operation.results[0].type)
        rewriter.replace_op(op, new.operation)
        return True
