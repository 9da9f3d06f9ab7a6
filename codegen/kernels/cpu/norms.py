"""RMSNorm and LayerNorm over the last dimension, one row a task, statistics in float32."""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .function import kernel
from .vector_math import reduce_lanes, rounded, widened

LANES = 16


@cache
def norm(
    k: int, dtype: str, weight_dtype: str, eps: float, kind: str, bias: bool, round_before_weight: bool
) -> tirx.PrimFunc:
    """`out[m, k]` from `(x[m, k], weight[k], bias[k]?)`; `kind`: "rms" or "layer". The formulas stand in
    `ir/ops/norm.py`."""
    m = tirx.Var("m", "int64")
    vectors, tail = divmod(k, LANES)

    def add_up(x: Any, row: Any, value: Any) -> Any:
        """The sum of `value(x)` over a row, vectors first, then the columns that are left."""
        acc = T.alloc_buffer((LANES + 1,), "float32")
        T.buffer_store(acc, T.broadcast(T.float32(0), LANES), [T.ramp(0, 1, LANES)])
        T.buffer_store(acc, T.float32(0), [LANES])
        if vectors:
            with T.serial(0, vectors) as c:
                part = value(T.Cast("float32x16", x[row, T.ramp(c * LANES, 1, LANES)]), LANES)
                T.buffer_store(acc, acc[T.ramp(0, 1, LANES)] + part, [T.ramp(0, 1, LANES)])
        if tail:
            with T.serial(vectors * LANES, k) as c:
                T.buffer_store(acc, acc[LANES] + value(T.Cast("float32", x[row, c]), 1), [LANES])
        return reduce_lanes(lambda a, b: a + b, acc[T.ramp(0, 1, LANES)], "float32", LANES) + acc[LANES]

    def body(x: Any, weight: Any, *rest: Any) -> None:
        shift, out = (rest[0] if bias else None), rest[-1]
        with T.parallel(0, m) as row:
            statistics = T.alloc_buffer((2,), "float32")
            mean = T.float32(0)
            if kind == "layer":
                T.buffer_store(statistics, add_up(x, row, lambda v, lanes: v) * T.float32(1 / k), [0])
                mean = statistics[0]

            def squared(v: Any, lanes: int) -> Any:
                centred = v - (mean if lanes == 1 else T.broadcast(mean, lanes))
                return centred * centred

            variance = add_up(x, row, squared) * T.float32(1 / k)
            T.buffer_store(statistics, T.float32(1) / T.sqrt(variance + T.float32(eps)), [1])
            with T.serial(0, k) as c:
                value = (widened(x[row, c], 1) - mean) * statistics[1]
                if round_before_weight:
                    value = rounded(value, dtype, 1)
                value = value * T.Cast("float32", weight[c])
                if shift is not None:
                    value = value + T.Cast("float32", shift[c])
                T.buffer_store(out, T.Cast(dtype, value), [row, c])

    parameters = [((k,), weight_dtype)] * (2 if bias else 1)
    return kernel([((m, k), dtype), *parameters, ((m, k), dtype)], body)
