"""Reductions and scans along axes.

Sums of floats run in float64 and are rounded once: as exact as torch's pairwise sums however many terms there are.
"""

import math
from collections.abc import Callable
from functools import reduce
from operator import mul
from typing import Any

import torch
from tvm import te, tirx, topi

from ....ir.rewriting import constant, constant_list
from .. import ieee
from ..builder import Lowering
from ..ieee import Expr
from ..registry import DECLINED, lowers
from ..symbols import dtype_name
from .pointwise import Operand, cast, computable, compute_dtype, elementwise


def _axes(low: Lowering, op: Any) -> list[int] | None:
    axes = constant_list(op.operation.operands[1])
    rank = len(low.sizes(op.operation.operands[0]))
    if axes is None:
        return list(range(rank)) if constant(op.operation.operands[1]) is None else None
    return sorted(a % rank for a in axes) or list(range(rank))


def _is_empty(low: Lowering, value: Any) -> bool:
    """Torch knows what is left of nothing: 0, NaN or an error."""
    return any(size == 0 for size in low.sizes(value) if isinstance(size, int))


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point else dtype


def _reduced(x: te.Tensor, axes: list[int], keep: bool) -> tuple[list[Any], list[Any], Callable[..., Expr]]:
    """Sizes of what is left of `x`, the axes of the reduction, and what is read for a place."""
    over = {axis: te.reduce_axis((0, x.shape[axis]), name=f"k{axis}") for axis in axes}
    sizes = [1 if axis in over else size for axis, size in enumerate(x.shape) if keep or axis not in over]

    def read(*at: Any) -> Expr:
        left = iter(place for axis, place in enumerate(at) if not (keep and axis in over))
        return x(*(over[axis] if axis in over else next(left) for axis in range(len(x.shape))))

    return sizes, list(over.values()), read


@lowers("torch.aten.mean.dim", "torch.aten.sum.dim_IntList")
def _reduce(low: Lowering, op: Any) -> Any:
    source, keep, out = op.operation.operands[0], constant(op.operation.operands[2]), op.operation.results[0]
    axes = _axes(low, op)
    if axes is None or not isinstance(keep, bool) or _is_empty(low, source) or not computable(low, source, out=out):
        return DECLINED
    dtype = _sum_dtype(low.dtype(out))
    number = dtype_name(dtype)

    def total(x: te.Tensor) -> te.Tensor:
        sizes, over, read = _reduced(x, axes, keep)
        return te.compute(sizes, lambda *at: te.sum(ieee.convert(read(*at), number), axis=over), name="total")

    result = low.emit(low.builder.call_te(total, low[source], primfunc_name_hint="sum"))
    if op.operation.name == "torch.aten.sum.dim_IntList":
        return low.emit(cast(low, result, low.dtype(out)), out)
    count = reduce(mul, (low.sizes(source)[axis] for axis in axes))
    terms = [Operand(result, lambda x: x), Operand(None, lambda _: tirx.Cast(number, tirx.const(count, "int64")))]
    return low.emit(elementwise(low, "mean", ieee.divide, terms, low.dtype(out)), out)


@lowers("torch.aten.max.dim")
def _largest(low: Lowering, op: Any) -> Any:
    """The values alone; NaN where there is one, as in torch."""
    x, axis, keep = (op.operation.operands[0], *(constant(v) for v in op.operation.operands[1:]))
    values, indices = op.operation.results
    if (
        not isinstance(axis, int)
        or not isinstance(keep, bool)
        or list(indices.uses)
        or _is_empty(low, x)
        or not low.dtype(x).is_floating_point
        or not computable(low, x)
        or not low.sizes(x)
    ):
        return DECLINED
    number = dtype_name(compute_dtype(low.dtype(x)))
    reducer = te.comm_reducer(ieee.larger, lambda _: ieee.number(-math.inf, number), name="largest")

    def largest(source: te.Tensor) -> te.Tensor:
        sizes, over, read = _reduced(source, [axis % len(source.shape)], keep)
        return te.compute(sizes, lambda *at: reducer(ieee.convert(read(*at), number), axis=over), name="largest")

    result = low.emit(low.builder.call_te(largest, low[x], primfunc_name_hint="largest"))
    return [low.emit(cast(low, result, low.dtype(values)), values), None]


@lowers("torch.aten.softmax.int", "torch.aten._softmax")
def _softmax(low: Lowering, op: Any) -> Any:
    x, axis, out = op.operation.operands[0], constant(op.operation.operands[1]), op.operation.results[0]
    if not isinstance(axis, int) or not computable(low, x, out=out) or not low.sizes(x):
        return DECLINED
    dtype = low.dtype(out)
    number = dtype_name(compute_dtype(dtype))

    def softmax(x: te.Tensor) -> te.Tensor:
        """Powers of e below the largest element, over their sum."""
        place = axis % len(x.shape)
        sizes, over, read = _reduced(x, [place], True)
        largest = te.compute(sizes, lambda *at: te.max(ieee.convert(read(*at), number), axis=over), name="largest")

        def power(*at: Any) -> Expr:
            return tirx.exp(ieee.subtract(ieee.convert(x(*at), number), largest(*at[:place], 0, *at[place + 1 :])))

        powers = te.compute(x.shape, power, name="powers")
        _, over_powers, read_power = _reduced(powers, [place], True)
        total = te.compute(
            sizes, lambda *at: te.sum(ieee.convert(read_power(*at), "float64"), axis=over_powers), name="total"
        )

        def share(*at: Any) -> Expr:
            return powers(*at) / ieee.convert(total(*at[:place], 0, *at[place + 1 :]), number)

        return te.compute(x.shape, lambda *at: ieee.convert(share(*at), dtype_name(dtype)), name="softmax")

    return low.emit(low.builder.call_te(softmax, low[x], primfunc_name_hint="softmax"), out)


@lowers("torch.aten.cumsum")
def _cumsum(low: Lowering, op: Any) -> Any:
    x, axis, out = op.operation.operands[0], constant(op.operation.operands[1]), op.operation.results[0]
    if not isinstance(axis, int) or not low.sizes(out) or _is_empty(low, x) or not computable(low, x, out=out):
        return DECLINED
    dtype = _sum_dtype(low.dtype(out))
    source = cast(low, cast(low, low[x], low.dtype(out)), dtype)
    sums = low.emit(low.builder.call_te(topi.cumsum, source, axis % len(low.sizes(out)), dtype_name(dtype)))
    return low.emit(cast(low, sums, low.dtype(out)), out)
