"""Gates of feed-forward blocks, small copies."""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from . import vector_math
from .function import kernel

LANES = 16
CHUNK = 16
"""Vectors of one parallel step."""


@cache
def gated_mlp(features: int, activation: str, dtype: str, merged: bool) -> tirx.PrimFunc:
    """`out[m, F] = activation(gate) * up`, gate and up in one `[m, 2F]` buffer (`merged`) or in two.

    The activation is rounded to `dtype` before the product, as torch does."""
    m = tirx.Var("m", "int64")
    vectors, tail = divmod(features, LANES)

    def body(*buffers: Any) -> None:
        gate, up, out = buffers[0], buffers[-2], buffers[-1]
        shift = features if merged else 0

        def column(row: Any, c: Any, lanes: int) -> None:
            at, above = (c, c + shift) if lanes == 1 else (T.ramp(c, 1, lanes), T.ramp(c + shift, 1, lanes))
            value = vector_math.ACTIVATIONS[activation](vector_math.widened(gate[row, at], lanes), lanes)
            value = vector_math.rounded(value, dtype, lanes) * vector_math.widened(up[row, above], lanes)
            T.buffer_store(out, T.Cast(vector_math.vector_type(dtype, lanes), value), [row, at])

        chunks = -(-vectors // CHUNK)
        if chunks:
            with T.parallel(0, m * chunks) as task:
                row, first = task // chunks, task % chunks * CHUNK
                with T.serial(first, T.min(first + CHUNK, T.int64(vectors))) as c:
                    column(row, c * LANES, LANES)
        if tail:
            with T.serial(0, m) as row, T.serial(vectors * LANES, features) as c:
                column(row, c, 1)

    inputs = [((m, 2 * features), dtype)] if merged else [((m, features), dtype)] * 2
    return kernel([*inputs, ((m, features), dtype)], body)


@cache
def overwrite(shape: tuple[int, ...], dtype: str) -> tirx.PrimFunc:
    """`target = value`, two buffers of `shape`; for few elements."""

    def body(target: Any, value: Any) -> None:
        if not shape:
            T.buffer_store(target, value[()], [])
            return
        with T.grid(*shape) as axes:
            place = [axes] if len(shape) == 1 else list(axes)
            T.buffer_store(target, value[tuple(place)], place)

    return kernel([(shape, dtype), (shape, dtype)], body)
