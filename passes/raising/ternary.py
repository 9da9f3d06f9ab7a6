"""Linears of ternary weights over whole numbers (BitNet b1.58, W1.58A8): integer sums, scaled afterwards.

    %q = clamp(round(%x * %s), -128, 127)                   %i = lutra.linear(%q, %t) {activations = "integers"}
    %y = linear(%q / %s, <-c, 0 or c from parameters>)  =>  %y = %i / %s * c

The weight is whatever the graph computes from parameters alone and that has these three values: a packed tensor that
the model unpacks, a weight that it rounds at every call (Transformers' `BitLinear`, `AutoBitLinear`), or one that is
stored so. Sums are exact (up to 2^24, 131072 columns), so a result is what the arithmetic of the method defines,
rounded once; models in half precision that divide before they multiply round more often by themselves.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ...ir.errors import QuantizationError
from ...ir.ops import LinearOp, ParamOp
from ...ir.patterns import Pattern
from ...ir.rewriting import (
    build,
    build_torch,
    constant,
    defined_by,
    quantized_type,
    set_activations,
    shape_of,
    static_shape,
    vtensor,
)
from ...ir.types import TensorType, tensor_type
from ...ir.weights.expressions import ParameterExpression
from ...ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat
from ...ir.weights.store import ParameterStore

FORMAT = WeightFormat(2, PER_CHANNEL, "ternary")
MOST_COLUMNS = (1 << 24) // 128
"""Columns whose sum of products of int8 and -1, 0, 1 float32 holds exactly."""
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
"""With the former: what holds all whole numbers from -128 to 127."""
_UNIT = "@ternary"
_SCALED = "@ternary-scaled"


@dataclass(frozen=True)
class _Ternary:
    """What `expression` gives, as ternary codes with scales of 1; its magnitude, 1 if `unit`, is taken out."""

    expression: ParameterExpression
    unit: bool

    def __call__(self, *values: torch.Tensor) -> QuantizedWeight:
        weight = self.expression(*values)
        largest = weight.abs().amax()
        # It may have been written to since the graph was compiled.
        if not torch.equal(weight, weight.sign() * largest) or (self.unit and largest != 1):
            raise QuantizationError(
                f"{self.expression.sources[0]} was ternary when the model was compiled and is not any more: compile "
                "it again (torch._dynamo.reset())"
            )
        codes = (weight.sign() + 1).to(torch.uint8)
        return QuantizedWeight(codes, torch.ones(len(codes), 1, dtype=torch.float16), None, FORMAT)


@dataclass(frozen=True)
class _Constant:
    """The one magnitude of what `expression` gives: float32 scalar."""

    expression: ParameterExpression

    def __call__(self, *values: torch.Tensor) -> torch.Tensor:
        return self.expression(*values).abs().amax().float()


@dataclass(frozen=True)
class TernaryLinear(Pattern):
    """`linear(whole numbers (/ scale), ternary weight)` -> integer sums, scaled.

    store: receives the ternary weights."""

    roots = ("torch.aten.linear",)

    store: ParameterStore

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        x, weight, bias = op.operation.operands
        found = _whole_numbers(x)
        if found is None or len(shape_of(weight) or ()) != 2:
            return False
        name = _ternary_name(self.store, weight)
        if name is None:
            return False
        q, scale = found
        n, k = static_shape(weight)
        out = op.operation.results[0]
        wide = TensorType((*tensor_type(q.type).shape[:-1], n), tensor_type(q.type).dtype)
        operand = build(ParamOp, rewriter, op, name, quantized_type(n, k, FORMAT)).out
        linear = build(LinearOp, rewriter, op, q, operand, vtensor(wide.shape, wide))
        set_activations(linear, "integers")
        result = linear.out
        if scale is not None:
            result = build_torch("aten.div.Tensor", rewriter, op, [result, scale], result.type)
        if name.endswith(_SCALED):
            factor = build(ParamOp, rewriter, op, f"{name}-constant", vtensor((), TensorType((), torch.float32))).out
            result = build_torch("aten.mul.Tensor", rewriter, op, [result, factor], result.type)
        if result.type != out.type:
            result = build_torch(
                "prims.convert_element_type", rewriter, op, [result, tensor_type(out.type).dtype], out.type
            )
        if shape_of(bias) is not None:
            result = build_torch("aten.add.Tensor", rewriter, op, [result, bias, 1], out.type)
        rewriter.replace_op(op, result.owner)
        return True


def _whole_numbers(x: Any) -> tuple[Any, Any] | None:
    """`(q, s)` when x is q / s, or q with s None, and q holds whole numbers from -128 to 127, in floating point."""
    division = defined_by(_uncast(x, _FLOATS), "aten.div.Tensor")
    if division is None:
        return (x, None) if _is_whole(x) else None
    q, scale = division.operands
    shape = shape_of(scale)
    if shape is None or not shape or shape[-1] != 1 or q.type != division.results[0].type or not _is_whole(q):
        return None
    return q, scale


def _is_whole(value: Any) -> bool:
    clamp = defined_by(_uncast(value, (*_FLOATS, *_INTEGERS)), "aten.clamp")
    if clamp is None or defined_by(clamp.operands[0], "aten.round") is None:
        return False
    low, high = (constant(bound) for bound in clamp.operands[1:])
    return isinstance(low, int | float) and isinstance(high, int | float) and low >= -128 and high <= 127


def _uncast(value: Any, dtypes: tuple[torch.dtype, ...]) -> Any:
    """`value` before it was converted to any of `dtypes`."""
    while (cast := defined_by(value, "aten._to_copy", "prims.convert_element_type")) is not None:
        if tensor_type(value.type).dtype not in dtypes:
            break
        value = cast.operands[0]
    return value


def _ternary_name(store: ParameterStore, weight: Any) -> str | None:
    """The name of the ternary form of `weight`; None when it has no such form, or more columns than sums are exact
    for."""
    expression = ParameterExpression.of(weight)
    if expression is None or static_shape(weight)[1] > MOST_COLUMNS:
        return None
    key = "fuse-ternary", expression.name
    if key not in store.choices:
        if any(store.original(source) is None for source in expression.sources):
            return None
        values = expression(*(store.tensor(source) for source in expression.sources))
        largest = values.abs().amax()
        if not values.is_floating_point() or not torch.equal(values, values.sign() * largest):
            return None
        name = expression.sources[0] + (_UNIT if largest == 1 else _SCALED)
        if name in store:
            name = expression.name + name[len(expression.sources[0]) :]
        store.choices[key] = name, FORMAT
    name, _ = store.choices[key]  # an earlier graph's, or a packed model's: the values may be gone
    unit = not name.endswith(_SCALED)
    store.derive(name, expression.sources, _Ternary(expression, unit))
    if not unit:
        store.derive(f"{name}-constant", expression.sources, _Constant(expression))
    return name
