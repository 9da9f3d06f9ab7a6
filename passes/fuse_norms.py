"""RMSNorm, written out in primitive operators, and the composite norms, to `lutra.rms_norm` and `lutra.layer_norm`."""

from typing import Any

from ..ir.rewriting import (
    LayerNormOp,
    RmsNormOp,
    build,
    constant,
    constant_list,
    defined_by,
    parameter_symbol,
    shape_of,
)


def _uncast(value: Any) -> Any:
    """Through a dtype conversion to what was converted."""
    cast = defined_by(value, "aten._to_copy")
    return cast.operands[0] if cast is not None else value


def _normalised(value: Any) -> tuple[Any, float] | None:
    """`(x, eps)` when `value` is `x * rsqrt(mean(x^2, -1, keepdim) + eps)`, computed in a wider dtype or not."""
    product = defined_by(value, "aten.mul.Tensor")
    if product is None:
        return None
    for x, scale in (product.operands, reversed(list(product.operands))):
        rsqrt = defined_by(scale, "aten.rsqrt")
        shifted = rsqrt and defined_by(rsqrt.operands[0], "aten.add.Scalar")
        mean = shifted and defined_by(shifted.operands[0], "aten.mean.dim")
        square = mean and defined_by(mean.operands[0], "aten.pow.Tensor_Scalar")
        if shifted is None or mean is None or square is None:
            continue
        if constant(square.operands[1]) != 2 or square.operands[0] != x:
            continue
        rank = len(shape_of(x) or ())
        if constant_list(mean.operands[1]) in ([-1], [rank - 1]) and constant(mean.operands[2]) is True:
            return x, float(constant(shifted.operands[1]))
    return None


def fuse_rms_norm(op: Any, rewriter: Any) -> bool:
    """`weight * cast(normalised x)` -> `lutra.rms_norm` (the form of Llama, Mistral, Qwen)."""
    for weight, rest in (op.operation.operands, reversed(list(op.operation.operands))):
        if parameter_symbol(weight) is None or len(shape_of(weight) or ()) != 1:
            continue
        found = _normalised(_uncast(rest))
        if found is None:
            continue
        x, eps = found
        source = _uncast(x)
        if source.type != op.operation.results[0].type:
            source = x
        if source.type != op.operation.results[0].type or (shape_of(source) or ())[-1:] != shape_of(weight):
            continue
        new = build(RmsNormOp, rewriter, op, source, weight, eps, True, op.operation.results[0].type)
        rewriter.replace_op(op, new.operation)
        return True
    return False


def fuse_composite_rms_norm(op: Any, rewriter: Any) -> bool:
    """`aten.rms_norm(x, [K], weight, eps)` -> `lutra.rms_norm`."""
    x, _, weight, eps = op.operation.operands
    epsilon = constant(eps)
    if parameter_symbol(weight) is None or len(shape_of(weight) or ()) != 1 or not isinstance(epsilon, float):
        return False
    new = build(RmsNormOp, rewriter, op, x, weight, epsilon, False, op.operation.results[0].type)
    rewriter.replace_op(op, new.operation)
    return True


def fuse_layer_norm(op: Any, rewriter: Any) -> bool:
    """`aten.layer_norm(x, [K], weight, bias, eps)` -> `lutra.layer_norm`."""
    x, _, weight, bias, eps, _ = op.operation.operands
    if parameter_symbol(weight) is None or len(shape_of(weight) or ()) != 1:
        return False
    keywords = {} if shape_of(bias) is None else {"bias": bias}
    new = build(LayerNormOp, rewriter, op, x, weight, float(constant(eps)), op.operation.results[0].type, **keywords)
    rewriter.replace_op(op, new.operation)
    return True


NORM_PATTERNS = {
    "torch.aten.mul.Tensor": [fuse_rms_norm],
    "torch.aten.rms_norm": [fuse_composite_rms_norm],
    "torch.aten.layer_norm": [fuse_layer_norm],
}
