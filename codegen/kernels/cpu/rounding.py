"""Round-to-nearest quantisation as one kernel: what `ir/weights/rounding.py` defines, a group at a time.

Candidates are compared with reciprocals and another order of summation than the reference's, so that of two ranges
with nearly equal errors either may win; scales and codes of the range that won are computed in the reference's own
operations.
"""

from functools import cache
from typing import Any

import torch
import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ....ir.weights.formats import QuantizedWeight
from ....ir.weights.rounding import LARGEST_SCALE, SMALLEST_SCALE, SMALLEST_SPREAD, RoundToNearest, require_finite
from ...targets.cpu.host import host
from ...targets.cpu.isa import Expr
from .function import kernel
from .vector_math import absolute, constant, reduce_lanes, round_to_int, widened

LANES = 16


def round_to_nearest(weight: torch.Tensor, rule: RoundToNearest, out: QuantizedWeight | None = None) -> QuantizedWeight:
    """`rule(weight)` for a weight `[N, K]`, compiled; written to `out`, rows of a larger weight, where it is given.

    The reference does it where groups are no multiple of 16 columns. Raises `QuantizationError` when the groups do not
    divide K or a value is not finite."""
    n, k = weight.shape
    columns, dtype = k // rule.format.groups(k), str(weight.dtype).removeprefix("torch.")
    out = QuantizedWeight.empty(n, k, rule.format) if out is None else out
    if columns % LANES or dtype not in ("float32", "float16", "bfloat16"):
        out.copy_(rule(weight))
        return out
    require_finite(weight)
    by_group = (n, k // columns, columns)
    scales = [out.scales] if out.zero_points is None else [out.scales, out.zero_points]
    _compiled(rule, columns, dtype)(weight.detach().contiguous().view(by_group), *scales, out.codes.view(by_group))
    return out


@cache
def _compiled(rule: RoundToNearest, columns: int, dtype: str) -> Any:
    return tvm.compile(_kernel(rule, columns, dtype), target=host())["main"]


def _kernel(rule: RoundToNearest, columns: int, dtype: str) -> tirx.PrimFunc:
    """`(weight [N, groups, columns], scales [N, groups], zeros [N, groups]?, codes [N, groups, columns])`."""
    n, groups = tirx.Var("n", "int64"), tirx.Var("groups", "int64")
    asymmetric = rule.format.has_zero_points
    shrinks = rule.shrinks

    def body(weight: Any, scales: Any, *rest: Any) -> None:
        *zeros, codes = rest
        with T.parallel(0, n) as row:
            x = T.alloc_buffer((columns,), "float32")
            scale, inverse, zero = (T.alloc_buffer((len(shrinks),), "float32") for _ in range(3))
            with T.serial(0, groups) as g:
                low, high, mean = _statistics(weight, row, g, x, columns)
                for i, shrink in enumerate(shrinks):
                    s, z = _scale(rule, low, high, mean, shrink)
                    T.buffer_store(scale, s, [i])
                    T.buffer_store(inverse, T.float32(1) / s, [i])
                    T.buffer_store(zero, z, [i])
                best = _least_error(rule, x, columns, scale, inverse, zero) if len(shrinks) > 1 else 0
                s, z = T.bind(scale[best]), T.bind(zero[best])
                if rule.fits:
                    s, z = _fitted(rule, x, columns, s, z)
                T.buffer_store(scales, T.Cast("float16", s), [row, g])
                if asymmetric:
                    T.buffer_store(zeros[0], T.Cast("float16", z), [row, g])
                with T.serial(0, columns // LANES) as i:
                    at = T.ramp(i * LANES, 1, LANES)
                    q = _nearest(rule, x[at] / T.broadcast(s, LANES) + T.broadcast(z, LANES))
                    T.buffer_store(codes, T.Cast("uint8x16", q), [row, g, at])

    by_group = (n, groups, columns)
    per_group = [((n, groups), "float16")] * (2 if asymmetric else 1)
    return kernel([(by_group, dtype), *per_group, (by_group, "uint8")], body)


def _statistics(weight: Any, row: Expr, g: Expr, x: Any, columns: int) -> tuple[Expr, Expr, Expr]:
    """Copy a group to `x` in float32; its least and greatest value and its mean magnitude."""
    every = T.ramp(0, 1, LANES)
    low, high, total = (T.alloc_buffer((LANES,), "float32") for _ in range(3))
    for buffer in (low, high, total):
        T.buffer_store(buffer, constant(0.0, LANES), [every])
    with T.serial(0, columns // LANES) as i:
        at = T.ramp(i * LANES, 1, LANES)
        T.buffer_store(x, widened(weight[row, g, at], LANES), [at])
        T.buffer_store(low, T.min(low[every], x[at]), [every])
        T.buffer_store(high, T.max(high[every], x[at]), [every])
        T.buffer_store(total, total[every] + absolute(x[at], LANES), [every])
    return (
        T.bind(reduce_lanes(lambda a, b: T.min(a, b), low[every], "float32", LANES)),
        T.bind(reduce_lanes(lambda a, b: T.max(a, b), high[every], "float32", LANES)),
        T.bind(reduce_lanes(lambda a, b: a + b, total[every], "float32", LANES) * T.float32(1 / columns)),
    )


def _scale(rule: RoundToNearest, low: Expr, high: Expr, mean: Expr, shrink: float | None) -> tuple[Expr, Expr]:
    """Scale and zero point of one candidate range as float32 values that float16 holds."""
    ternary, asymmetric = rule.format.scheme == "ternary", rule.format.has_zero_points
    if not asymmetric:
        high = T.max(high, T.float32(0) - low)
        low = T.float32(0) - high
    if shrink is None:
        s = mean if ternary else mean * T.float32(2)
    elif ternary:
        s = high * T.float32(shrink)
    else:
        s = (high - low) * T.float32(shrink) / T.float32(rule.levels)
    s = _stored(s, SMALLEST_SCALE, LARGEST_SCALE)
    if not asymmetric:
        return s, T.float32(rule.format.implicit_zero_point)
    return s, _stored((T.float32(0) - low) * T.float32(shrink or 1.0) / s, 0.0, rule.levels)


def _stored(value: Expr, least: float, most: float) -> Expr:
    """`value` within bounds as a float32 value that float16 holds."""
    value = T.max(T.min(value, T.float32(most)), T.float32(least))
    return T.bind(T.Cast("float32", T.Cast("float16", value)))


def _nearest(rule: RoundToNearest, value: Expr) -> Expr:
    """Codes, int32."""
    return round_to_int(T.max(T.min(value, constant(rule.levels, LANES)), constant(0.0, LANES)), LANES)


def _least_error(rule: RoundToNearest, x: Any, columns: int, scale: Any, inverse: Any, zero: Any) -> Expr:
    """Number of the candidate with the least squared error, the first of equals."""
    every = T.ramp(0, 1, LANES)
    choice, least = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "float32")
    for c in range(len(rule.shrinks)):
        s, r, z = (T.bind(T.broadcast(parameter[c], LANES)) for parameter in (scale, inverse, zero))
        error = T.alloc_buffer((LANES,), "float32")
        T.buffer_store(error, constant(0.0, LANES), [every])
        with T.serial(0, columns // LANES) as i:
            value = T.bind(x[T.ramp(i * LANES, 1, LANES)])
            q = T.Cast("float32x16", _nearest(rule, value * r + z))
            difference = T.bind((q - z) * s - value)
            T.buffer_store(error, error[every] + difference * difference, [every])
        total = T.bind(reduce_lanes(lambda a, b: a + b, error[every], "float32", LANES))
        with T.If(True if c == 0 else total < least[0]), T.Then():
            T.buffer_store(choice, T.int32(c), [0])
            T.buffer_store(least, total, [0])
    return T.bind(choice[0])


def _fitted(rule: RoundToNearest, x: Any, columns: int, scale: Expr, zero: Expr) -> tuple[Expr, Expr]:
    """`rule.fits` steps of least squares from `scale` and `zero`: the pair with the least squared error on the way."""
    every, centre = T.ramp(0, 1, LANES), rule.format.implicit_zero_point
    current, best = (T.alloc_buffer((2,), "float32") for _ in range(2))
    least = T.alloc_buffer((1,), "float32")
    sums = [T.alloc_buffer((LANES,), "float32") for _ in range(5)]
    for i, value in enumerate((scale, zero)):
        T.buffer_store(current, value, [i])
        T.buffer_store(best, value, [i])
    with T.serial(0, rule.fits + 1) as step:
        s, z = T.bind(current[0]), T.bind(current[1])
        inverse = T.bind(T.broadcast(T.float32(1) / s, LANES))
        for buffer in sums:
            T.buffer_store(buffer, constant(0.0, LANES), [every])
        with T.serial(0, columns // LANES) as i:
            value = T.bind(x[T.ramp(i * LANES, 1, LANES)])
            q = T.bind(T.Cast("float32x16", _nearest(rule, value * inverse + T.broadcast(z, LANES))))
            difference = T.bind((q - T.broadcast(z, LANES)) * T.broadcast(s, LANES) - value)
            level = T.bind(q - constant(centre, LANES))
            terms = (difference * difference, level * value, level * level, level, value)
            for buffer, term in zip(sums, terms, strict=True):
                T.buffer_store(buffer, buffer[every] + term, [every])
        error, with_level, square, levels, values = (
            T.bind(reduce_lanes(lambda a, b: a + b, buffer[every], "float32", LANES)) for buffer in sums
        )
        with T.If(tirx.any(step == 0, error < least[0])), T.Then():
            T.buffer_store(least, error, [0])
            T.buffer_store(best, s, [0])
            T.buffer_store(best, z, [1])
        mean, mean_level = T.bind(values * T.float32(1 / columns)), T.bind(levels * T.float32(1 / columns))
        spread = T.bind(square - levels * mean_level)
        with T.If(spread > T.float32(SMALLEST_SPREAD)), T.Then():
            fitted = (with_level - levels * mean) / spread
            T.buffer_store(current, _stored(fitted, SMALLEST_SCALE, LARGEST_SCALE), [0])
        moved = T.float32(centre) + mean_level - mean / current[0]
        T.buffer_store(current, _stored(moved, 0.0, rule.levels), [1])
    return T.bind(best[0]), T.bind(best[1])
