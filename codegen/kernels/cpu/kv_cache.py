"""What is written into key/value caches: new entries as they are, or keys rotated on their way in, and queries too."""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .function import kernel
from .indexing import check
from .vector_math import rounded, vector_type, widened


@cache
def kv_update(kv_heads: int, head: int, dtype: str) -> tirx.PrimFunc:
    """`cache[:, :, positions] = new` on `[B, G, L, D]`, in place; `IndexError` for a position outside [0, L), before
    anything is written."""
    batch, length, count = (tirx.Var(name, "int64") for name in ("batch", "length", "count"))

    def body(target: Any, new: Any, positions: Any) -> None:
        check(positions, (count,), length, "index_copy")
        with T.parallel(0, batch * kv_heads) as task:
            b, g = task // kv_heads, task % kv_heads
            with T.serial(0, count) as i, T.serial(0, head) as c:
                T.buffer_store(target, new[b, g, i, c], [b, g, positions[i], c])

    shape = (batch, kv_heads, length, head)
    return kernel([(shape, dtype), ((batch, kv_heads, count, head), dtype), ((count,), "int64")], body)


@dataclass(frozen=True)
class Columns:
    """Where heads stand in the rows of a projection: `width` columns, those of the first head from `start`."""

    width: int
    start: int


@cache
def rope_kv_update(
    heads: int, kv_heads: int, head: int, dtype: str, q: Columns, k: Columns, v: Columns, batched: bool, one_row: bool
) -> tirx.PrimFunc:
    """`lutra.rope_kv_update`: caches in place, then the query into `[B, H, S, D]`.

    Buffers: the rows `[B, S, width]` that q, k and v stand in; cos and sin `[B or 1, S, D]` (`batched`: B); caches
    `[B, G, L, D]`; positions int64 `[S]`; query. Each product is rounded to `dtype`, as torch does. `IndexError` for a
    position outside [0, L), before anything is written. `one_row`: B and S are 1, and starting threads would cost more
    than the work."""
    batch, count = (1, 1) if one_row else (tirx.Var("batch", "int64"), tirx.Var("count", "int64"))
    length = tirx.Var("length", "int64")
    half, lanes = head // 2, math.gcd(head // 2, 16)
    element = vector_type(dtype, lanes)

    def body(
        q_rows: Any,
        k_rows: Any,
        v_rows: Any,
        cos: Any,
        sin: Any,
        keys: Any,
        values: Any,
        positions: Any,
        query: Any,
    ) -> None:
        def at(column: Any) -> Any:
            return T.ramp(column, 1, lanes) if lanes > 1 else column

        check(positions, (count,), length, "index_copy")
        with (T.serial if one_row else T.parallel)(0, batch * count) as row:
            b, s = T.bind(row // count), T.bind(row % count)

            def product(x: Any, table: Any, column: Any) -> Any:
                turned = widened(table[b if batched else 0, s, at(column)], lanes)
                return rounded(x * turned, dtype, lanes)

            def rotate(rows: Any, columns: Columns, number: Any, target: Any, place: list[Any]) -> None:
                """Head `number` of a row into `target[*place, :]`."""
                with T.serial(0, half // lanes) as part:
                    low, high = part * lanes, half + part * lanes
                    first = T.bind(columns.start + number * head)
                    x, y = (widened(rows[b, s, at(first + column)], lanes) for column in (low, high))
                    T.buffer_store(
                        target,
                        T.Cast(element, product(x, cos, low) - product(y, sin, low)),
                        [*place, at(low)],
                    )
                    T.buffer_store(
                        target,
                        T.Cast(element, product(y, cos, high) + product(x, sin, high)),
                        [*place, at(high)],
                    )

            with T.serial(0, heads) as h:
                rotate(q_rows, q, h, query, [b, h, s])
            position = T.bind(positions[s])
            with T.serial(0, kv_heads) as g:
                rotate(k_rows, k, g, keys, [b, g, position])
                with T.serial(0, head // lanes) as part:
                    entry = v_rows[b, s, at(v.start + g * head + part * lanes)]
                    T.buffer_store(values, entry, [b, g, position, at(part * lanes)])

    table = ((batch if batched else 1, count, head), dtype)
    cache_ = ((batch, kv_heads, length, head), dtype)
    sources = [((batch, count, columns.width), dtype) for columns in (q, k, v)]
    return kernel(
        [*sources, table, table, cache_, cache_, ((count,), "int64"), ((batch, heads, count, head), dtype)], body
    )
