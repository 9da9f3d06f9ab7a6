"""Attention of one query position over a key/value cache that is read in place, and the update of that cache.

One task a key/value head: its query heads are worked on together, so that every key and value is read once. Keys that
the mask excludes are not read: the cost follows the context, not the size of the cache.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .function import kernel
from .vector_math import exp, reduce_lanes

LANES = 16


@dataclass(frozen=True)
class Mask:
    """A mask `[B or 1, H or 1, 1, L]`: its dtype, and whether batch and heads have sizes of their own."""

    dtype: str
    per_batch: bool
    per_head: bool


@cache
def decode_attention(
    heads: int, kv_heads: int, head: int, dtype: str, scale: float, mask: Mask | None
) -> tirx.PrimFunc | None:
    """`out[B, 1, H * D]` from q `[B, H, 1, D]`, k and v `[B, G, L, D]` and a mask; None where D is no multiple of 16.

    Softmax in float32 over the scores of one head (formula in `ir/dialect.py`); a head whose keys are all excluded
    gives 0."""
    if head % LANES:
        return None
    share, parts = heads // kv_heads, head // LANES
    batch, length = tirx.Var("batch", "int64"), tirx.Var("length", "int64")
    lanes = T.ramp(0, 1, LANES)

    def widened(buffer: Any, *index: Any) -> Any:
        return T.Cast("float32x16", buffer[(*index[:-1], T.ramp(index[-1], 1, LANES))])

    def body(q: Any, keys: Any, values: Any, *rest: Any) -> None:
        out = rest[-1]
        with T.parallel(0, batch * kv_heads) as task:
            b, g = task // kv_heads, task % kv_heads
            scores = T.alloc_buffer((share, length), "float32", scope="global")
            query = T.alloc_buffer((share * parts, LANES), "float32")
            acc = T.alloc_buffer((share * parts, LANES), "float32")
            largest = T.alloc_buffer((share,), "float32")
            total = T.alloc_buffer((share,), "float32")
            for r in range(share):
                T.buffer_store(largest, T.float32(-3.0e38), [r])
                T.buffer_store(total, T.float32(0), [r])
                for p in range(parts):
                    scaled = widened(q, b, g * share + r, 0, p * LANES) * T.broadcast(T.float32(scale), LANES)
                    T.buffer_store(query, scaled, [r * parts + p, lanes])
                    T.buffer_store(acc, T.broadcast(T.float32(0), LANES), [r * parts + p, lanes])

            def mask_at(r: int, key: Any) -> Any:
                assert mask is not None
                at = (b if mask.per_batch else 0, g * share + r if mask.per_head else 0, 0, key)
                return rest[0][at]

            def attended(key: Any) -> Any:
                """True when some head of the group may read the key."""
                if mask is None:
                    return None
                heads_ = range(share) if mask.per_head else range(1)
                seen = [
                    m if mask.dtype == "bool" else T.Cast("float32", m) > T.float32(-1.0e30)
                    for m in (mask_at(r, key) for r in heads_)
                ]
                condition = seen[0]
                for other in seen[1:]:
                    condition = tirx.any(condition, other)
                return condition

            def score(key: Any) -> None:
                for r in range(share):
                    product = query[r * parts, lanes] * widened(keys, b, g, key, 0)
                    for p in range(1, parts):
                        product = product + query[r * parts + p, lanes] * widened(keys, b, g, key, p * LANES)
                    value = reduce_lanes(lambda x, y: x + y, product, "float32", LANES)
                    if mask is not None and mask.dtype != "bool":
                        value = value + T.Cast("float32", mask_at(r, key))
                    elif mask is not None and mask.per_head:
                        value = T.Select(mask_at(r, key), value, T.float32(-3.0e38))
                    T.buffer_store(scores, value, [r, key])
                    T.buffer_store(largest, T.max(largest[r], scores[r, key]), [r])

            def gather(key: Any) -> None:
                for r in range(share):
                    weight = exp(scores[r, key] - largest[r], 1)
                    T.buffer_store(scores, weight, [r, key])
                    T.buffer_store(total, total[r] + scores[r, key], [r])
                for p in range(parts):
                    value = widened(values, b, g, key, p * LANES)
                    for r in range(share):
                        place = [r * parts + p, lanes]
                        T.buffer_store(
                            acc, acc[r * parts + p, lanes] + T.broadcast(scores[r, key], LANES) * value, place
                        )

            for step in (score, gather):
                with T.serial(0, length) as key:
                    condition = attended(key)
                    if condition is None:
                        step(key)
                    else:
                        with T.If(condition), T.Then():
                            step(key)
            for r in range(share):
                factor = T.Select(total[r] > T.float32(0), T.float32(1) / total[r], T.float32(0))
                for p in range(parts):
                    value = acc[r * parts + p, lanes] * T.broadcast(factor, LANES)
                    column = (g * share + r) * head + p * LANES
                    T.buffer_store(out, T.Cast(f"{dtype}x{LANES}", value), [b, 0, T.ramp(column, 1, LANES)])

    cache_shape = (batch, kv_heads, length, head)
    masks = (
        []
        if mask is None
        else [((batch if mask.per_batch else 1, heads if mask.per_head else 1, 1, length), mask.dtype)]
    )
    arguments = [((batch, heads, 1, head), dtype), (cache_shape, dtype), (cache_shape, dtype), *masks]
    return kernel([*arguments, ((batch, 1, heads * head), dtype)], body)


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
