"""Gated feed-forward blocks: `act(gate) * up` to `lutra.gated_mlp`."""

from typing import Any

from ...ir.ops import GatedMlpOp
from ...ir.patterns import Pattern
from ...ir.rewriting import build, constant, defined_by, shape_of
from ..matching import both_orders, is_fused_float

_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


def _activation(value: Any) -> tuple[str, Any] | None:
    """`(name, x)` when `value` is an activation that `lutra.gated_mlp` knows."""
    for name in ("silu", "relu"):
        op = defined_by(value, f"aten.{name}")
        if op is not None:
            return name, op.operands[0]
    op = defined_by(value, "aten.gelu")
    name = _GELU.get(constant(op.operands[1])) if op is not None else None
    return (name, op.operands[0]) if op is not None and name is not None else None


class Gate(Pattern):
    """`mul(act(gate), up)` over equal shapes -> `lutra.gated_mlp(gate, up)`.

    %a = aten.silu(%gate)
    %r = aten.mul.Tensor(%a, %up)
    =>
    %r = lutra.gated_mlp(%gate, up = %up) {activation = "silu"}
    """

    roots = ("torch.aten.mul.Tensor",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        result = op.operation.results[0]
        if not is_fused_float(result) or not shape_of(result):
            return False
        for left, up in both_orders(op.operation):
            found = _activation(left)
            if found is None or not found[1].type == up.type == left.type == result.type:
                continue
            name, gate = found
            new = build(GatedMlpOp, rewriter, op, gate, name, op.operation.results[0].type, up=up)
            rewriter.replace_op(op, new.operation)
            return True
        return False
