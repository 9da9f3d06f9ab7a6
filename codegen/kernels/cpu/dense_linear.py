"""Matrix-vector products with floating-point weights, for the few rows of a decode step: bounded by reading the
weight once.

bfloat16 weights are read as pairs in 32-bit words: the low half shifted up and the high half masked are float32
values, even and odd columns in two vectors; x is laid out the same way beforehand.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...select import Knobs
from .function import kernel
from .vector_math import reduce_lanes, rounded, widened

LANES = 16
COLUMNS = 2 * LANES
"""K must be a multiple of these."""


@dataclass(frozen=True)
class DenseKnobs(Knobs):
    """rows: of the weight that one step of the inner loop reads, four memory streams a thread. rows_of_x: that share
    one reading of these, with accumulators in registers; others find the weight in the cache."""

    rows: int = 4
    rows_of_x: int = 4


@cache
def dense_linear(
    m: int,
    n: int,
    k: int,
    weight_dtype: str,
    dtype: str,
    bias: str | None,
    residual: bool,
    parts: tuple[int, ...] = (),
    knobs: DenseKnobs = DenseKnobs(),
) -> tirx.PrimFunc:
    """`out[m, n] = round(x[m, k] W[n, k]^T) (+ bias[n]) (+ residual[m, n])`, accumulated in float32.

    parts: rows of each of several matrices that W is made of, each an argument of its own where it lies: n in sum.
    `weight_dtype`: float32, float16 or bfloat16 (the weight is passed as uint16). `dtype`: of x, residual and out.
    k is a multiple of 32."""
    chunk = 2 * LANES if weight_dtype == "bfloat16" else LANES
    at_once = knobs.rows
    packed = weight_dtype == "bfloat16"
    stored = "uint16" if packed else weight_dtype
    parts = parts or (n,)

    def weight_columns(weight: Any, row: Any, column: Any) -> list[Any]:
        """The columns `column...` of a row as float32 vectors: even and odd ones for bfloat16."""
        if not packed:
            return [T.Cast("float32x16", weight[row, T.ramp(column, 1, LANES)])]
        words = T.reinterpret("uint32x16", weight[row, T.ramp(column, 1, 2 * LANES)])
        even = words << T.broadcast(T.uint32(16), LANES)
        odd = words & T.broadcast(T.uint32(0xFFFF0000), LANES)
        return [T.reinterpret("float32x16", even), T.reinterpret("float32x16", odd)]

    def step(weight: Any, x: Any, acc: Any, block: Any, size: int, rows: range, c: Any) -> None:
        for row in range(at_once):
            columns = weight_columns(weight, T.min(block * at_once + row, size - 1), c * chunk)
            for number, i in enumerate(rows):
                value = acc[number * at_once + row, T.ramp(0, 1, LANES)]
                for half, part in enumerate(columns):
                    value = value + part * x[i, half, T.ramp(c * LANES, 1, LANES)]
                T.buffer_store(acc, value, [number * at_once + row, T.ramp(0, 1, LANES)])

    def finish(acc: Any, out: Any, extra: list[Any], block: Any, first: int, size: int, rows: range) -> None:
        for row in range(at_once):
            with T.If(block * at_once + row < size), T.Then():
                for number, i in enumerate(rows):
                    column, lanes = first + block * at_once + row, acc[number * at_once + row, T.ramp(0, 1, LANES)]
                    value = rounded(reduce_lanes(lambda a, b: a + b, lanes, "float32", LANES), dtype, 1)
                    for position, operand in enumerate(extra):
                        added = operand[column] if bias and position == 0 else operand[i, column]
                        value = rounded(value + widened(added, 1), dtype, 1)
                    T.buffer_store(out, T.Cast(dtype, value), [i, column])

    def product(weight: Any, x: Any, out: Any, extra: list[Any], first_column: int, size: int) -> None:
        with T.parallel(0, -(-size // at_once)) as block:
            acc = T.alloc_buffer((min(m, knobs.rows_of_x) * at_once, LANES), "float32")
            for first in range(0, m, knobs.rows_of_x):
                rows = range(first, min(first + knobs.rows_of_x, m))
                for index in range(len(rows) * at_once):
                    T.buffer_store(acc, T.broadcast(T.float32(0), LANES), [index, T.ramp(0, 1, LANES)])
                with T.serial(0, k // chunk) as c:
                    step(weight, x, acc, block, size, rows, c)
                finish(acc, out, extra, block, first_column, size, rows)

    def body(x: Any, *rest: Any) -> None:
        weights, (*extra, out) = rest[: len(parts)], rest[len(parts) :]
        halves = chunk // LANES
        spread = T.alloc_buffer((m, halves, k // halves), "float32", scope="global")
        with T.serial(0, m) as i, T.serial(0, k // chunk) as c, T.serial(0, LANES) as lane:
            for half in range(halves):
                source = c * chunk + (2 * lane + half if packed else lane)
                T.buffer_store(spread, T.Cast("float32", x[i, source]), [i, half, c * LANES + lane])
        for number, (weight, size) in enumerate(zip(weights, parts, strict=True)):
            product(weight, spread, out, extra, sum(parts[:number]), size)

    extra = [*([((n,), bias)] if bias else []), *([((m, n), dtype)] if residual else [])]
    return kernel([((m, k), dtype), *(((size, k), stored) for size in parts), *extra, ((m, n), dtype)], body)
