"""Normalisation over features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result
from torch_mlir.ir import FloatAttr, IntegerAttr

from ..analysis.amounts import Amount, ValueSizes
from ..types import tensor_type
from .base import Op, differ, features, first_rows, wide


def _check(op: Any, *vectors: str) -> str | None:
    """`vectors`: operands that hold a number for each feature."""
    k = features(op.x)
    for name in vectors:
        operand = getattr(op, name)
        shape = None if operand is None else tensor_type(operand.type).shape
        if shape is not None and (len(shape) != 1 or differ(k, shape[0])):
            return f"{name} must be [{k}], got {list(shape)}"
    if op.attributes["eps"].value < 0:
        return f"eps must not be negative, got {op.attributes['eps'].value}"
    return None


class RmsNormOp(Op, name="rms_norm"):
    """Root mean square normalisation, statistics in float32.

        out = x / sqrt(mean(x^2, -1) + eps) * weight

    x `[..., K]`, weight `[K]`. `round_before_weight`: the normalised x is rounded to x's dtype before the product
    (Llama), else after. Source: Zhang and Sennrich 2019, equation 4."""

    x: Operand[Any]
    weight: Operand[Any]
    eps: FloatAttr
    round_before_weight: IntegerAttr
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        return _check(op, "weight")

    @staticmethod
    def reference(x: Tensor, weight: Tensor, *, eps: float, round_before_weight: bool) -> Tensor:
        """Dtype of x where the weight's is the same, else the promoted one."""
        normalized = wide(x) * torch.rsqrt(wide(x).square().mean(-1, keepdim=True) + eps)
        if round_before_weight:
            return normalized.to(x.dtype) * weight
        return (normalized * wide(weight)).to(x.dtype)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Four operations for each element: square, sum, two products."""
        return sizes.elementwise(op, 4)

    result_shape = staticmethod(first_rows)


class LayerNormOp(Op, name="layer_norm"):
    """Layer normalisation, statistics in float32.

        out = (x - mean(x, -1)) / sqrt(var(x, -1) + eps) * weight (+ bias)

    x `[..., K]`, weight and bias `[K]`. Source: Ba et al. 2016."""

    x: Operand[Any]
    weight: Operand[Any]
    eps: FloatAttr
    out: Result[Any]
    bias: Operand[Any] | None = None

    @staticmethod
    def check(op: Any) -> str | None:
        return _check(op, "weight", "bias")

    @staticmethod
    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float) -> Tensor:
        """Dtype of x."""
        shift = None if bias is None else bias.to(wide(x).dtype)
        return F.layer_norm(wide(x), weight.shape, weight.to(wide(x).dtype), shift, eps).to(x.dtype)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Seven operations for each element: two sums, difference, square, two products, bias."""
        return sizes.elementwise(op, 7)

    result_shape = staticmethod(first_rows)
