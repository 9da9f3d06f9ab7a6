"""Gated feed-forward blocks: `act(gate) * up` to `lutra.gated_mlp`."""

from typing import Any

from ..ir.rewriting import GatedMlpOp, build, constant, defined_by, shape_of
from .matching import both_orders, is_fused_float

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


def fuse_gate(op: Any, rewriter: Any) -> bool:
    """`mul(act(gate), up)` over equal shapes -> `lutra.gated_mlp(gate, up)`."""
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


def gate_takes_merged(op: Any, rewriter: Any) -> bool:
    """`gated_mlp(split(m, 0), split(m, F))` -> `gated_mlp(m)` when m is exactly gate and up."""
    if op.up is None:
        return False
    gate, up = defined_by(op.gate, "lutra.split"), defined_by(op.up, "lutra.split")
    if gate is None or up is None or gate.operands[0] != up.operands[0]:
        return False
    size, merged = (shape_of(op.gate) or (None,))[-1], gate.operands[0]
    if size is None or (shape_of(merged) or (None,))[-1] != 2 * size:
        return False
    if gate.attributes["start"].value != 0 or up.attributes["start"].value != size:
        return False
    new = build(GatedMlpOp, rewriter, op, merged, op.activation.value, op.operation.results[0].type)
    rewriter.replace_op(op, new.operation)
    return True


GATE_PATTERNS = {"torch.aten.mul.Tensor": [fuse_gate], "lutra.gated_mlp": [gate_takes_merged]}
