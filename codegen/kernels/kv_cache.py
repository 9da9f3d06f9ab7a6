"""The update of a key/value cache."""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .function import kernel


@cache
def kv_update(kv_heads: int, head: int, dtype: str, copy: bool) -> tirx.PrimFunc:
    """`cache[:, :, positions] = new` on `[B, G, L, D]`: in place, or with `copy` into a fourth buffer.

    A position outside [0, L) is left out rather than written outside the cache."""
    batch, length, count = (tirx.Var(name, "int64") for name in ("batch", "length", "count"))

    def body(buffer: Any, new: Any, positions: Any, *out: Any) -> None:
        target = out[0] if copy else buffer
        with T.parallel(0, batch * kv_heads) as task:
            b, g = task // kv_heads, task % kv_heads
            if copy:
                with T.serial(0, length) as row, T.serial(0, head) as c:
                    T.buffer_store(target, buffer[b, g, row, c], [b, g, row, c])
            with T.serial(0, count) as i:
                position = positions[i]
                with T.If(tirx.all(position >= 0, position < length)), T.Then(), T.serial(0, head) as c:
                    T.buffer_store(target, new[b, g, i, c], [b, g, position, c])

    shape = (batch, kv_heads, length, head)
    arguments = [(shape, dtype), ((batch, kv_heads, count, head), dtype), ((count,), "int64")]
    return kernel([*arguments, *([(shape, dtype)] if copy else [])], body)
