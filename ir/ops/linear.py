"""Products of activations with weights."""

from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result
from torch_mlir.ir import IntegerAttr

from ..analysis.amounts import Amount, ValueSizes
from ..types import tensor_type
from ..weights.formats import QuantizedWeight, dequantize
from .base import Op, add_float, differ, features, first_rows, quantized_format, weight_shape


def check_product(op: Any, in_features: int | None) -> str | None:
    """Why weight, bias, residual and result of a linear do not fit an x of `in_features` (None: any)."""
    weight = weight_shape(op.weight)
    if len(weight) != 2:
        return f"weight must be [N, K], got rank {len(weight)}"
    if differ(in_features, weight[1]):
        return f"x has {in_features} features but the weight takes {weight[1]}"
    if differ(features(op.out), weight[0]):
        return f"result has {features(op.out)} features but the weight gives {weight[0]}"
    if op.bias is not None and tensor_type(op.bias.type).shape != (weight[0],):
        return f"bias must be [{weight[0]}], got {list(tensor_type(op.bias.type).shape)}"
    if op.residual is not None and differ(features(op.residual), weight[0]):
        return f"residual must end in {weight[0]} features"
    return None


def product_cost(op: Any, sizes: ValueSizes) -> Amount:
    """The cost of a product with one weight matrix."""
    added = sum(operand is not None for operand in (op.bias, op.residual))
    operations = sizes.elements(op.out) * (2 * _columns(op.weight) + added)
    return sizes.moved(op) + Amount(operations=operations)


class LinearOp(Op, name="linear"):
    """The product with a weight matrix.

        out[..., N] = x[..., K] @ weight[N, K]^T (+ bias[N]) (+ residual[..., N])

    `weight` is a tensor or `!lutra.quantized`. Float weights: the product is rounded to x's dtype, then bias and
    residual are added, as torch does. Quantised: evaluated in float32 with `s * (q - z)` and rounded once; a lowering
    may quantise x to int8 per group."""

    x: Operand[Any]
    weight: Operand[Any]
    out: Result[Any]
    bias: Operand[Any] | None = None
    residual: Operand[Any] | None = None

    @staticmethod
    def check(op: Any) -> str | None:
        return check_product(op, features(op.x))

    @staticmethod
    def reference(
        x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """Dtype of x."""
        if isinstance(weight, QuantizedWeight):
            return add_float(F.linear(x.float(), dequantize(weight)), bias, residual).to(x.dtype)
        out = F.linear(x, weight)
        out = out if bias is None else out + bias
        return out if residual is None else out + residual

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """2 K operations for each element of the result, one more for a bias and one for a residual; the weight is read
        once."""
        return product_cost(op, sizes)

    result_shape = staticmethod(first_rows)


class GroupedLinearOp(Op, name="grouped_linear"):
    """Rows of x times the matrix of their group, as experts are multiplied by the tokens that are routed to them.

        out[i] = x[i] @ weight[e N : (e + 1) N]^T    for offsets[e - 1] <= i < offsets[e]
        out[i] = 0                                   from offsets[E - 1] on

    x `[S, K]`; weight `!lutra.quantized` `[E N, K]`, the matrices of E groups below each other; offsets int32 or int64
    `[E]`, where each group ends. Evaluated as `lutra.linear` is."""

    x: Operand[Any]
    weight: Operand[Any]
    offsets: Operand[Any]
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        quantized = quantized_format(op.weight.type)
        if quantized is None:
            return f"weight must be !lutra.quantized, got {op.weight.type}"
        x, offsets, out = (tensor_type(value.type).shape for value in (op.x, op.offsets, op.out))
        if len(x) != 2 or len(out) != 2 or len(offsets) != 1 or not offsets[0]:
            return f"x must be [S, K] and offsets [E], got {list(x)} and {list(offsets)}"
        if differ(x[1], quantized[1]):
            return f"x has {x[1]} features but the weight takes {quantized[1]}"
        if differ(out[1] and out[1] * offsets[0], quantized[0]):
            return f"{offsets[0]} groups of {out[1]} features need as many rows, the weight has {quantized[0]}"
        return None

    @staticmethod
    def reference(x: Tensor, weight: QuantizedWeight, offsets: Tensor) -> Tensor:
        """Dtype of x."""
        rows = torch.arange(x.shape[0], device=x.device)
        matrices = dequantize(weight).unflatten(0, (offsets.shape[0], -1))
        ends = offsets.to(rows.dtype)
        out = x.new_zeros((x.shape[0], matrices.shape[1]), dtype=torch.float32)
        for index, matrix in enumerate(matrices):
            inside = rows < ends[index] if index == 0 else (rows >= ends[index - 1]) & (rows < ends[index])
            out = torch.where(inside.unsqueeze(-1), F.linear(x.float(), matrix), out)
        return out.to(x.dtype)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """2 K operations for each element of the result; of the weight at most the matrices of as many groups as there
        are rows are read."""
        moved, rows, groups = sizes.moved(op), sizes.shape(op.x)[0], tensor_type(op.offsets.type).shape[0]
        weights = moved.weights * sympy.Min(rows, groups) / groups
        return Amount(weights, moved.read, moved.written, sizes.elements(op.out) * 2 * _columns(op.weight))

    result_shape = staticmethod(first_rows)


class SplitOp(Op, name="split"):
    """One projection's share of a merged linear.

        out = x[..., start : start + size]

    `size` is the last size of the result's type."""

    IS_VIEW = True

    x: Operand[Any]
    start: IntegerAttr
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        x, out, start = features(op.x), features(op.out), op.attributes["start"].value
        if x is not None and out is not None and not 0 <= start <= start + out <= x:
            return f"[{start}, {start + out}) is not inside the {x} features of x"
        return None

    @staticmethod
    def reference(x: Tensor, *, start: int, size: int) -> Tensor:
        return x[..., start : start + size]

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Nothing: a view."""
        return Amount()

    @staticmethod
    def from_result(type_: Any) -> dict[str, Any]:
        return {"size": tensor_type(type_).shape[-1]}

    result_shape = staticmethod(first_rows)


def _columns(weight: Any) -> int:
    columns = weight_shape(weight)[1]
    assert columns is not None, "weights have static shapes"
    return columns
