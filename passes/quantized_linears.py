"""What passes that give linears quantised weights share."""

from typing import Any, Literal

from ..ir.ops import LinearOp, ParamOp
from ..ir.rewriting import build, quantized_type, set_activations, static_shape
from ..ir.weights.formats import WeightFormat


def take_weight(op: Any, rewriter: Any, name: str, format: WeightFormat, activations: Literal["int8", "float"]) -> None:
    """Replace a linear by one over the quantised weight `name`; raises `QuantizationError` where it does not fit."""
    n, k = static_shape(op.weight)
    weight = build(ParamOp, rewriter, op, name, quantized_type(n, k, format)).out
    keywords = {key: value for key in ("bias", "residual") if (value := getattr(op, key)) is not None}
    new = build(LinearOp, rewriter, op, op.x, weight, op.out.type, **keywords)
    if activations == "float":
        set_activations(new, "float")
    rewriter.replace_op(op, new.operation)
