"""Gated feed-forward blocks: `act(gate) * up` to `lutra.gated_mlp`."""

from typing import Any

from ...ir.ops import GatedMlpOp
from ...ir.rewriting import build, constant, defined_by, shape_of
from ..matching import both_orders, is_fused_float, section_of, sizes

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
    """`gated_mlp(m[..., :F], m[..., F:])` -> `gated_mlp(m)` when m is exactly gate and up."""
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


GATE_PATTERNS = {"torch.aten.mul.Tensor": [fuse_gate], "lutra.gated_mlp": [gate_takes_merged]}
