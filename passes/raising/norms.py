"""Root-mean-square norms spelled out in primitive operators, and the composite norms, to `lutra.rms_norm` and
`lutra.layer_norm`.

    %n = %x * rsqrt(mean(%x ^ 2) + eps)        in float32, of half precision that was widened; or `(...) ^ -0.5`
    %y = %w * to(%n, dtype of x)               =>   lutra.rms_norm(%x, %w) {round_before_weight = 1}   (Llama)
    %y = to(%w * %n, dtype of x)               =>   lutra.rms_norm(%x, %w) {round_before_weight = 0}   (gpt-oss, Gemma)

Statistics in float32 only: a norm that the model computes in half or double precision stays as it is.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ...ir.ops import LayerNormOp, ParamOp, RmsNormOp
from ...ir.patterns import Pattern, Patterns
from ...ir.rewriting import build, constant, constant_list, defined_by, parameter_symbol, shape_of, single_use
from ...ir.types import tensor_type
from ...ir.weights.expressions import ParameterExpression
from ...ir.weights.store import ParameterStore
from ..matching import both_orders, cast_source, is_fused_float, sizes


def _epsilon(value: Any) -> float | None:
    """A constant that may be added to a mean of squares."""
    number = constant(value)
    usable = isinstance(number, int | float) and not isinstance(number, bool) and number >= 0
    return float(number) if usable else None


def _inverse_root(value: Any) -> Any | None:
    """x when `value` is `1 / sqrt(x)`."""
    op = defined_by(value, "aten.rsqrt", "aten.pow.Tensor_Scalar")
    if op is None or (len(op.operands) > 1 and constant(op.operands[1]) != -0.5):
        return None
    return op.operands[0]


def _normalised(value: Any) -> tuple[Any, float] | None:
    """`(x, eps)` when `value` is `x * rsqrt(mean(x^2, -1, keepdim) + eps)`, all in float32."""
    product = defined_by(value, "aten.mul.Tensor")
    if product is None:
        return None
    for x, scale in both_orders(product):
        root = _inverse_root(scale)
        shifted = root and defined_by(root, "aten.add.Scalar")
        mean = shifted and defined_by(shifted.operands[0], "aten.mean.dim")
        square = mean and defined_by(mean.operands[0], "aten.pow.Tensor_Scalar")
        if not shifted or not mean or not square or square.operands[0] != x or x.type != value.type:
            continue
        if tensor_type(x.type).dtype != torch.float32 or tensor_type(scale.type).dtype != torch.float32:
            continue
        axes, last = constant_list(mean.operands[1]), len(sizes(x)) - 1
        if constant(square.operands[1]) != 2 or axes not in ([-1], [last]) or constant(mean.operands[2]) is not True:
            continue
        eps = _epsilon(shifted.operands[1])
        if eps is not None and constant(shifted.operands[2]) == 1 and constant(mean.operands[3]) in (None, _FLOAT32):
            return x, eps
    return None


_FLOAT32 = 6
"""torch-mlir's number of the dtype."""


def _is_weight(weight: Any, x: Any) -> bool:
    """`weight` is a parameter with an entry for each of x's last dimension."""
    return parameter_symbol(weight) is not None and _weighs(weight, x)


def _weighs(weight: Any, x: Any) -> bool:
    return is_fused_float(weight, x) and len(sizes(weight)) == 1 and sizes(weight) == sizes(x)[-1:]


@dataclass(frozen=True)
class RmsNorm(Pattern):
    """`weight * normalised x`, which is rounded first where x was widened, -> `lutra.rms_norm`.

    store: receives weights that are computed from parameters (Gemma's `1 + w`).

        @w: f32[8]
        %square = aten.pow.Tensor_Scalar(%x, 2)
        %mean = aten.mean.dim(%square, [-1], true, none) : f32[2,3,1]
        %shifted = aten.add.Scalar(%mean, 0.5, 1)
        %scale = aten.rsqrt(%shifted)
        %normal = aten.mul.Tensor(%x, %scale)
        %r = aten.mul.Tensor(@w, %normal) : f32[2,3,8]
        =>
        %r = lutra.rms_norm(%x, @w) {eps = 0.5 : f64, round_before_weight = 1 : i64}
    """

    roots = ("torch.aten.mul.Tensor",)

    store: ParameterStore

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        result = op.operation.results[0]
        for weight, rest in both_orders(op.operation):
            found = _normalised(rest)
            x = None if found is None else found[0]
            if found is None and (inner := cast_source(rest)) is not None:
                found = _normalised(inner)
                x = None if found is None else cast_source(found[0])
            if found is None or x is None or not x.type == rest.type == result.type or not _weighs(weight, x):
                continue
            parameter = _as_parameter(self.store, op, rewriter, weight)
            if parameter is None:
                continue
            new = build(RmsNormOp, rewriter, op, x, parameter, found[1], True, result.type)
            rewriter.replace_op(op, new.operation)
            return True
        return False


def _as_parameter(store: ParameterStore, op: Any, rewriter: Any, value: Any) -> Any | None:
    """`value` as a parameter: itself, or a derived one where it is computed from parameters alone."""
    if parameter_symbol(value) is not None:
        return value
    expression = ParameterExpression.of(value)
    if expression is None:
        return None
    name = store.derive(expression.name, expression.sources, expression)
    return build(ParamOp, rewriter, op, name, value.type).out


class RoundingAfterWeight(Pattern):
    """`to(rms_norm(to(x, float32), weight), dtype of x)` -> `lutra.rms_norm` of x, rounded once.

    %x: bf16[2,3,8], @w: f32[8]
    %wide = prims.convert_element_type(%x, 6) : f32[2,3,8]
    %y = lutra.rms_norm(%wide, @w) {eps = 0.5 : f64, round_before_weight = 1 : i64}
    %r = aten._to_copy(%y, 15, none, none, none, false, none) : bf16[2,3,8]
    =>
    %r = lutra.rms_norm(%x, @w) {eps = 0.5 : f64, round_before_weight = 0 : i64}
    """

    roots = ("torch.aten._to_copy",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        value, result = op.operation.operands[0], op.operation.results[0]
        norm = defined_by(value, "lutra.rms_norm")
        x = None if norm is None else cast_source(norm.operands[0])
        if norm is None or x is None or x.type != result.type or not is_fused_float(x) or not single_use(value):
            return False
        if tensor_type(value.type).dtype != torch.float32 or tensor_type(norm.operands[0].type).dtype != torch.float32:
            return False
        new = build(RmsNormOp, rewriter, op, x, norm.operands[1], norm.opview.eps.value, False, result.type)
        rewriter.replace_op(op, new.operation)
        return True


class CompositeRmsNorm(Pattern):
    """`aten.rms_norm(x, [K], weight, eps)` -> `lutra.rms_norm`.

    @w: f32[8]
    %r = aten.rms_norm(%x, [8], @w, 0.5)
    =>
    %r = lutra.rms_norm(%x, @w) {eps = 0.5 : f64, round_before_weight = 0 : i64}
    """

    roots = ("torch.aten.rms_norm",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        x, _, weight, eps = op.operation.operands
        epsilon, result = _epsilon(eps), op.operation.results[0]
        if epsilon is None or not _is_weight(weight, x) or result.type != x.type:
            return False
        new = build(RmsNormOp, rewriter, op, x, weight, epsilon, False, result.type)
        rewriter.replace_op(op, new.operation)
        return True


class LayerNorm(Pattern):
    """`aten.layer_norm(x, [K], weight, bias, eps)` -> `lutra.layer_norm`.

    @w: f32[8], @b: f32[8]
    %r = aten.layer_norm(%x, [8], @w, @b, 0.5, true)
    =>
    %r = lutra.layer_norm(%x, @w, bias = @b) {eps = 0.5 : f64}
    """

    roots = ("torch.aten.layer_norm",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        x, _, weight, bias, eps, _ = op.operation.operands
        epsilon, result = _epsilon(eps), op.operation.results[0]
        if epsilon is None or not _is_weight(weight, x) or result.type != x.type:
            return False
        if shape_of(bias) is not None and not is_fused_float(bias):
            return False
        keywords = {} if shape_of(bias) is None else {"bias": bias}
        new = build(LayerNormOp, rewriter, op, x, weight, epsilon, result.type, **keywords)
        rewriter.replace_op(op, new.operation)
        return True


def norms(store: ParameterStore) -> Patterns:
    """All of these; `store` receives weights that are computed from parameters."""
    return RmsNorm(store) + RoundingAfterWeight() + CompositeRmsNorm() + LayerNorm()
