"""Attention of one query position over a key/value cache that is read in place.

A task is a key/value head and a span of keys (Flash-Decoding: Dao et al. 2023). Its query heads are worked on together,
so that every key and value is read once, 16 keys at a time with the softmax kept up as they come (Milakov and
Gimelshein 2018, algorithm 3). Sixteens of keys that the mask excludes are not read: the cost follows the context, not
the size of the cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import DataType, tirx
from tvm.script.ir_builder import tirx as T

from ....ir.errors import LoweringError
from ...select import Knobs, Mask
from .function import kernel
from .registers import prefetch_line
from .vector_math import constant, exp, reduce_lanes, sums_of_lanes, vector_type, widened

LANES = 16
"""Keys of one step, and columns of a head in a vector."""
_LEAST = -3.4028234663852886e38
"""The least finite number, which many masks write: softmax forgets such keys beside others, but not among their like.
What is excluded is at -inf."""
_FORGOTTEN = 1.0e30
"""How far below the largest mask of a head a key cannot count, whatever its score."""


@dataclass(frozen=True)
class AttentionKnobs(Knobs):
    """span: keys of one task, a multiple of 16. heads_at_once: query heads whose sums of values fit in registers.
    ahead: keys between the one that is read and the one that is fetched into the cache."""

    span: int = 512
    heads_at_once: int = 4
    ahead: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.span % LANES:
            raise LoweringError(f"the knob span is {self.span}: it must be a multiple of {LANES}")


@cache
def decode_attention(
    heads: int,
    kv_heads: int,
    head: int,
    dtype: str,
    scale: float,
    mask: Mask | None,
    knobs: AttentionKnobs = AttentionKnobs(),
) -> tirx.PrimFunc:
    """`out[B, 1, H * D]` from q `[B, H, 1, D]`, k and v `[B, G, L, D]`, D a multiple of 16, and a regular mask.

    Softmax in float32 over the scores of one head (formula in `ir/ops/attention.py`); a head whose keys are all
    excluded gives 0."""
    share = heads // kv_heads
    batch, length = tirx.Var("batch", "int64"), tirx.Var("length", "int64")
    spans = (length + knobs.span - 1) // knobs.span

    def body(q: Any, keys: Any, values: Any, *rest: Any) -> None:
        admission = _Admission(mask, rest[0], batch, heads, kv_heads, length)
        found = _Found(batch * kv_heads * spans, share, head)
        out = rest[-1]

        def finish(b: Any, g: Any) -> None:
            first = T.bind((b * kv_heads + g) * spans)
            with T.serial(0, share) as r:
                found.merge(first, spans, r, lambda p, value: store(value, b, (g * share + r) * head + p * LANES))

        def store(value: Any, b: Any, column: Any) -> None:
            T.buffer_store(out, T.Cast(vector_type(dtype, LANES), value), [b, 0, T.ramp(column, 1, LANES)])

        admission.read()
        with T.parallel(0, batch * kv_heads * spans) as task:
            b, g = T.bind(task // (kv_heads * spans)), T.bind(task // spans % kv_heads)
            start = T.bind(task % spans * (knobs.span // LANES))
            step = _Step(share, head, keys, values, b, g, length, knobs)
            step.read_query(q, scale)
            found.clear(task)
            end = T.min(start + knobs.span // LANES, admission.blocks)
            with T.serial(start, end) as block, T.If(admission.admits(b, g, block)), T.Then():
                step.attend(block, admission, found, task)
            with T.If(spans == 1), T.Then():
                finish(b, g)
        with T.If(spans > 1), T.Then(), T.parallel(0, batch * kv_heads) as task:
            finish(task // kv_heads, task % kv_heads)

    cache_shape = (batch, kv_heads, length, head)
    arguments = [((batch, heads, 1, head), dtype), (cache_shape, dtype), (cache_shape, dtype)]
    if mask is not None:
        shape = (batch if mask.per_batch else 1, heads if mask.per_head else 1, 1, length)
        arguments.append((shape, mask.dtype))
    return kernel([*arguments, ((batch, 1, heads * head), dtype)], body)


class _Admission:
    """What the mask adds to each score, and which sixteens of keys it lets a head read."""

    def __init__(self, mask: Mask | None, given: Any, batch: Any, heads: int, kv_heads: int, length: Any) -> None:
        self.mask, self.given, self.length = mask, given, length
        self.per_batch, self.per_head = mask is not None and mask.per_batch, mask is not None and mask.per_head
        self.blocks = (length + LANES - 1) // LANES
        self.rows, self.groups = batch if self.per_batch else 1, kv_heads if self.per_head else 1
        self.share = heads // kv_heads if self.per_head else 1
        shape = (self.rows, self.groups * self.share, self.blocks * LANES)
        self._shift = T.alloc_buffer(shape, "float32", scope="global")
        self._most = T.alloc_buffer((self.rows, self.groups, self.blocks), "float32", scope="global")
        self._tops = T.alloc_buffer((self.rows, self.groups, self.share), "float32", scope="global")
        self._floor = T.alloc_buffer((self.rows, self.groups), "float32", scope="global")

    def read(self) -> None:
        """Read the mask once for all heads that share it."""
        rows = (T.parallel if self.per_batch else T.serial)(0, self.rows)
        with rows as b, T.serial(0, self.groups) as g:
            with T.serial(0, self.share) as r:
                T.buffer_store(self._tops, T.float32(_LEAST), [b, g, r])
            with T.serial(0, self.blocks) as block:
                self._read_block(b, g, block)
            T.buffer_store(self._floor, T.float32(float("inf")), [b, g])
            with T.serial(0, self.share) as r:
                least = T.max(self._tops[b, g, r] - T.float32(_FORGOTTEN), T.float32(_LEAST))
                T.buffer_store(self._floor, T.min(self._floor[b, g], least), [b, g])

    def _read_block(self, b: Any, g: Any, block: Any) -> None:
        first = T.bind(block * LANES)
        keys = T.ramp(first, 1, LANES)
        T.buffer_store(self._most, T.float32(-float("inf")), [b, g, block])
        with T.serial(0, self.share) as r:
            head = T.bind(g * self.share + r)
            with T.If(first + LANES <= self.length):
                with T.Then():
                    T.buffer_store(self._shift, self._value(b, head, keys, LANES), [b, head, keys])
                with T.Else():
                    T.buffer_store(self._shift, constant(-float("inf"), LANES), [b, head, keys])
                    with T.serial(first, self.length) as key:
                        T.buffer_store(self._shift, self._value(b, head, key, 1), [b, head, key])
            shift = T.bind(self._shift[b, head, keys])
            most = T.bind(reduce_lanes(T.max, shift, "float32", LANES))
            T.buffer_store(self._tops, T.max(self._tops[b, g, r], most), [b, g, r])
            T.buffer_store(self._most, T.max(self._most[b, g, block], most), [b, g, block])

    def _value(self, b: Any, head: Any, key: Any, lanes: int) -> Any:
        if self.mask is None:
            return constant(0, lanes)
        admitted = self.given[b, head, 0, key]
        if self.mask.dtype == "bool":
            return T.Select(admitted, constant(0, lanes), constant(-float("inf"), lanes))
        return widened(admitted, lanes)

    def admits(self, b: Any, g: Any, block: Any) -> Any:
        """True when some of the 16 keys may count for a head of group `g`."""
        row, group = b if self.per_batch else 0, g if self.per_head else 0
        return self._most[row, group, block] >= self._floor[row, group]

    def shift(self, b: Any, head: Any, block: Any) -> Any:
        """What is added to the scores of 16 keys of a query head."""
        keys = T.ramp(block * LANES, 1, LANES)
        return self._shift[b if self.per_batch else 0, head if self.per_head else 0, keys]


class _Found:
    """What each task has found: per query head the largest score, the sum of weights and the weighted values."""

    def __init__(self, tasks: Any, share: int, head: int) -> None:
        self.share, self.parts = share, head // LANES
        self.largest = T.alloc_buffer((tasks, share), "float32", scope="global")
        self.total = T.alloc_buffer((tasks, share, LANES), "float32", scope="global")
        self.values = T.alloc_buffer((tasks, share, head), "float32", scope="global")

    def clear(self, task: Any) -> None:
        """Nothing yet."""
        with T.serial(0, self.share) as r:
            T.buffer_store(self.largest, T.float32(_LEAST), [task, r])
            T.buffer_store(self.total, constant(0, LANES), [task, r, _columns(0)])
            with T.serial(0, self.parts) as p:
                T.buffer_store(self.values, constant(0, LANES), [task, r, _columns(p)])

    def merge(self, first: Any, spans: Any, r: Any, store: Callable[[Any, Any], None]) -> None:
        """`store(p, vector)` for each 16 columns of what head `r` attends to in the tasks from `first`."""
        state = T.alloc_buffer((2,), "float32")
        total = T.alloc_buffer((LANES,), "float32")
        sums = T.alloc_buffer((self.parts * LANES,), "float32")
        T.buffer_store(total, constant(0, LANES), [_columns(0)])
        with T.serial(0, self.parts) as p:
            T.buffer_store(sums, constant(0, LANES), [_columns(p)])
        T.buffer_store(state, self.largest[first, r], [0])
        with T.serial(1, spans) as s:
            T.buffer_store(state, T.max(state[0], self.largest[first + s, r]), [0])
        with T.serial(first, first + spans) as task:
            T.buffer_store(state, exp(self.largest[task, r] - state[0], 1), [1])
            with T.If(state[1] != T.float32(0)), T.Then():
                factor = T.broadcast(state[1], LANES)
                T.buffer_store(total, total[_columns(0)] + factor * self.total[task, r, _columns(0)], [_columns(0)])
                with T.serial(0, self.parts) as p:
                    term = factor * self.values[task, r, _columns(p)]
                    T.buffer_store(sums, sums[_columns(p)] + term, [_columns(p)])
        whole = T.bind(reduce_lanes(lambda a, b: a + b, total[_columns(0)], "float32", LANES))
        T.buffer_store(state, T.Select(whole > T.float32(0), T.float32(1) / whole, T.float32(0)), [1])
        with T.serial(0, self.parts) as p:
            store(p, sums[_columns(p)] * T.broadcast(state[1], LANES))


class _Step:
    """16 keys of one key/value head for its query heads."""

    def __init__(
        self, share: int, head: int, keys: Any, values: Any, b: Any, g: Any, length: Any, knobs: AttentionKnobs
    ) -> None:
        self.share, self.parts, self.keys, self.values, self.b, self.g = share, head // LANES, keys, values, b, g
        self.length, self.knobs = length, knobs
        self.query = T.alloc_buffer((share, head), "float32")
        self.products = T.alloc_buffer((share, LANES, LANES), "float32")
        self.weights = T.alloc_buffer((share, LANES), "float32")
        self.factors = T.alloc_buffer((share,), "float32")

    def read_query(self, q: Any, scale: float) -> None:
        """The query heads, scaled."""
        with T.serial(0, self.parts) as p, T.serial(0, self.share) as r:
            value = widened(q[self.b, self.g * self.share + r, 0, _columns(p)], LANES)
            T.buffer_store(self.query, value * constant(scale, LANES), [r, _columns(p)])

    def attend(self, block: Any, admission: _Admission, found: _Found, task: Any) -> None:
        """Add to `found` what a sixteen of keys gives."""
        first = T.bind(block * LANES)

        def row(key: Any) -> Any:
            return T.min(first + key, self.length - 1)

        with T.serial(0, LANES) as key:
            at = T.bind(row(key))
            self._prefetch(self.keys, first + key)
            vectors = [T.bind(widened(self.keys[self.b, self.g, at, _columns(p)], LANES)) for p in range(self.parts)]
            for r in range(self.share):
                product = self.query[r, _columns(0)] * vectors[0]
                for p in range(1, self.parts):
                    product = product + self.query[r, _columns(p)] * vectors[p]
                T.buffer_store(self.products, product, [r, key, _columns(0)])
        with T.serial(0, self.share) as r:
            shift = T.bind(admission.shift(self.b, self.g * self.share + r, block))
            sums = sums_of_lanes([self.products[r, key, _columns(0)] for key in range(LANES)])
            # Through a buffer: TVM's simplifier puts what `T.bind` names back into every use, and this tree has many.
            T.buffer_store(self.weights, sums + shift, [r, _columns(0)])
            score = T.bind(self.weights[r, _columns(0)])
            old = T.bind(found.largest[task, r])
            T.buffer_store(found.largest, T.max(old, reduce_lanes(T.max, score, "float32", LANES)), [task, r])
            new = T.bind(found.largest[task, r])
            T.buffer_store(self.factors, exp(old - new, 1), [r])
            T.buffer_store(self.weights, exp(score - T.broadcast(new, LANES), LANES), [r, _columns(0)])
            scaled = found.total[task, r, _columns(0)] * T.broadcast(self.factors[r], LANES)
            T.buffer_store(found.total, scaled + self.weights[r, _columns(0)], [task, r, _columns(0)])
        rows = [T.bind(row(key)) for key in range(LANES)]
        with T.serial(0, self.parts) as p:
            with T.serial(0, LANES // self.parts) as n:
                self._prefetch(self.values, first + p * (LANES // self.parts) + n)
            for start in range(0, self.share, self.knobs.heads_at_once):
                chosen = range(start, min(start + self.knobs.heads_at_once, self.share))
                sums = [
                    T.bind(found.values[task, r, _columns(p)] * T.broadcast(self.factors[r], LANES)) for r in chosen
                ]
                for key in range(LANES):
                    value = T.bind(widened(self.values[self.b, self.g, rows[key], _columns(p)], LANES))
                    sums = [
                        T.bind(acc + T.broadcast(self.weights[r, key], LANES) * value)
                        for acc, r in zip(sums, chosen, strict=True)
                    ]
                for acc, r in zip(sums, chosen, strict=True):
                    T.buffer_store(found.values, acc, [task, r, _columns(p)])

    def _prefetch(self, rows: Any, key: Any) -> None:
        line = 64 * 8 // DataType(rows.dtype).bits
        for column in range(0, self.parts * LANES, line):
            prefetch_line(rows[self.b, self.g, key + self.knobs.ahead, column])


def _columns(part: Any) -> Any:
    return T.ramp(part * LANES, 1, LANES)
