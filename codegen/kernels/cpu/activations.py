"""What low-bit kernels read of x: int8 activations or int8 lookup tables, one scale per group of columns, or float32.

Computed once for all linears that share an input, and fused with what produces it (a norm, a gate). Kp is K padded with
zeros to a multiple of 32, A the columns of an activation group, G = ceil(Kp / A):

    dot     q int8 [M, Kp]             scale float32 [M, G] = max|x| / 127       total int32 [M, G] = sum of q
    integers q int8 [M, Kp] = x        scale float32 [M, G] = 1                  total int32 [M, G] = sum of q
    lookup  q int8 [M, Kp/16, 64]      scale float32 [M, G] = max|T| / 127       total float32 [M, G] = sum of x
    triples q int8 [M, K/128, 44, 16]      scale float32 [M, G] = max|T| / 127       total float32 [M, G] = sum of x
    float   q float32 [M, Kp]          scale float32 [M, G] = 1                  total float32 [M, G] = sum of x

Byte 16*j + w of a table register is `round(T_j[w] / scale)`, `T_j[w] = sum_k (2 w_k - 1) x[4j + k]` of 16 columns
(docs/techniques.md, 1.2); rounding is symmetric, so `T[w] = -T[~w]` holds exactly. Tables of triples: see `triples.py`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...prologues import GatedMlpPrologue, Prologue, RmsNormPrologue
from ...targets.cpu.isa import Activations, Expr
from . import vector_math
from .function import kernel
from .packing import UNIT
from .triples import ENTRIES, SPAN, TABLES, TRIPLES
from .vector_math import absolute, constant, reduce_lanes, round_to_int

LANES = 16
_TASK_COLUMNS = 16384
"""Columns that are worth a task of their own: less takes about as long as waking a thread."""

Value = Callable[[Expr, Expr, int], Expr]
"""`value(row, columns, lanes)`: columns of x in float32, as the fused operation would have rounded them."""


def precompute_outputs(family: Activations, k: int, group: int, m: Any) -> list[tuple[tuple[Any, ...], str]]:
    """Shapes and dtypes of the three results for `m` rows (an int or an expression) of `k` columns."""
    padded = -(-k // UNIT) * UNIT
    shapes = {"lookup": (m, padded // 16, 64), "triples": (m, padded // SPAN, TABLES, 16)}
    q = shapes.get(family, (m, padded))
    groups = (m, -(-padded // group))
    total = "int32" if family in ("dot", "integers") else "float32"
    return [(q, "float32" if family == "float" else "int8"), (groups, "float32"), (groups, total)]


@cache
def precompute(
    family: Activations, k: int, group: int, m: int | None, dtype: str, prologue: Prologue | None = None
) -> tirx.PrimFunc:
    """`(inputs..., q, scale, total)`; inputs: x `[M, k]`; x and a norm's weight `[k]`; gate and up merged `[M, 2k]`.

    `group`: columns that share a scale, a multiple of 32. `m` None: any number of rows. `dtype`: of x and the gate."""
    rows: Any = tirx.Var("m", "int64") if m is None else m
    outputs = precompute_outputs(family, k, group, rows)
    padded, groups = -(-k // UNIT) * UNIT, outputs[1][0][1]
    splittable = m is not None and not isinstance(prologue, RmsNormPrologue)
    chunks = min(groups, -(-k // _TASK_COLUMNS)) if splittable and m == 1 else 1
    share = -(-groups // chunks)
    forms = {"dot": _quantize, "integers": _convert, "lookup": _build_tables, "triples": _build_triples, "float": _keep}
    quantize = forms[family]

    def body(*buffers: Any) -> None:
        *inputs, q, scale, total = buffers
        with T.parallel(0, rows * chunks) as task:
            row, first = (task, 0) if chunks == 1 else (task // chunks, task % chunks * share)
            value = _value(prologue, inputs, k, dtype, row)
            x = T.alloc_buffer((group,), "float32")
            with T.serial(0, share if groups % chunks == 0 else T.min(share, groups - first)) as i:
                g = T.bind(first + i)
                columns = group if padded % group == 0 else T.bind(T.min(group, padded - g * group))
                _load(x, value, row, g * group, columns, k)
                quantize(x, q, scale, total, row, g, group, columns)

    return kernel([*_inputs(prologue, rows, k, dtype), *outputs], body)


def _inputs(prologue: Prologue | None, rows: Any, k: int, dtype: str) -> list[tuple[Sequence[Any], str]]:
    if prologue is None:
        return [((rows, k), dtype)]
    if isinstance(prologue, RmsNormPrologue):
        return [((rows, k), dtype), ((k,), prologue.weight_dtype)]
    return [((rows, 2 * k), dtype)]


def _value(prologue: Prologue | None, inputs: list[Any], k: int, dtype: str, row: Expr) -> Value:
    """What is quantised; may first emit statistics of the row."""
    x = inputs[0]

    def load(source_row: Expr, columns: Expr, lanes: int) -> Expr:
        return _float(x[source_row, columns], lanes)

    def rounded(value: Expr, lanes: int) -> Expr:
        return vector_math.rounded(value, dtype, lanes)

    if prologue is None:
        return load
    if isinstance(prologue, GatedMlpPrologue):
        activation = vector_math.ACTIVATIONS[prologue.activation]

        def gated(source_row: Expr, columns: Expr, lanes: int) -> Expr:
            gate = rounded(activation(load(source_row, columns, lanes), lanes), lanes)
            return rounded(gate * load(source_row, columns + k, lanes), lanes)

        return gated
    inverse = _inverse_rms(lambda columns, lanes: load(row, columns, lanes), k, prologue.eps)

    def normed(source_row: Expr, columns: Expr, lanes: int) -> Expr:
        value = load(source_row, columns, lanes) * (inverse if lanes == 1 else T.broadcast(inverse, lanes))
        value = rounded(value, lanes) if prologue.round_before_weight else value
        return rounded(value * _float(inputs[1][columns], lanes), lanes)

    return normed


def _inverse_rms(load: Callable[[Expr, int], Expr], k: int, eps: float) -> Expr:
    lanes = max(gcd(k, 64), LANES)  # several registers wide: the additions of one would wait for each other
    total = T.alloc_buffer((lanes,), "float32")
    T.buffer_store(total, constant(0.0, lanes), [T.ramp(0, 1, lanes)])
    with T.serial(0, k // lanes) as i:
        value = T.bind(load(T.ramp(i * lanes, 1, lanes), lanes))
        T.buffer_store(total, total[T.ramp(0, 1, lanes)] + value * value, [T.ramp(0, 1, lanes)])
    if k % lanes:
        with T.serial(0, k % lanes) as i:
            value = T.bind(load(k // lanes * lanes + i, 1))
            T.buffer_store(total, total[0] + value * value, [0])
    mean = reduce_lanes(_add, total[T.ramp(0, 1, lanes)], "float32", lanes) * T.float32(1 / k)
    return T.bind(T.float32(1) / T.sqrt(mean + T.float32(eps)))


def _load(x: Any, value: Value, row: Expr, start: Expr, columns: Any, k: int) -> None:
    """`x[: columns]` = columns `start...` of the row, zero from column `k` on."""
    with T.serial(0, columns // LANES) as i:
        inside, column = T.ramp(i * LANES, 1, LANES), start + i * LANES
        if k % UNIT == 0:
            T.buffer_store(x, value(row, T.ramp(column, 1, LANES), LANES), [inside])
            return
        with T.If(column + LANES <= k):
            with T.Then():
                T.buffer_store(x, value(row, T.ramp(column, 1, LANES), LANES), [inside])
            with T.Else():
                T.buffer_store(x, constant(0.0, LANES), [inside])
                with T.serial(0, LANES) as lane, T.If(column + lane < k), T.Then():
                    T.buffer_store(x, value(row, column + lane, 1), [i * LANES + lane])


def _quantize(x: Any, q: Any, scale: Any, total: Any, row: Expr, g: Expr, group: int, columns: Any) -> None:
    """One group of the dot family."""
    every = T.ramp(0, 1, LANES)
    largest = T.alloc_buffer((LANES,), "float32")
    T.buffer_store(largest, constant(0.0, LANES), [every])
    with T.serial(0, columns // LANES) as i:
        T.buffer_store(largest, T.max(largest[every], absolute(x[T.ramp(i * LANES, 1, LANES)], LANES)), [every])
    inverse = T.broadcast(_store_scale(largest[every], scale, row, g), LANES)
    _store_int8(lambda inside: x[inside] * inverse, q, total, row, g, group, columns)


def _convert(x: Any, q: Any, scale: Any, total: Any, row: Expr, g: Expr, group: int, columns: Any) -> None:
    """One group of x that holds whole numbers from -128 to 127."""
    T.buffer_store(scale, T.float32(1), [row, g])
    _store_int8(lambda inside: x[inside], q, total, row, g, group, columns)


def _store_int8(
    value: Callable[[Expr], Expr], q: Any, total: Any, row: Expr, g: Expr, group: int, columns: Any
) -> None:
    """Store `value(lanes of the group)` rounded, and the sum, which 128 * 256 columns bound."""
    every = T.ramp(0, 1, LANES)
    sums = T.alloc_buffer((LANES,), "int32")
    T.buffer_store(sums, vector_math.integer(0, LANES), [every])
    with T.serial(0, columns // LANES) as i:
        whole = T.bind(round_to_int(value(T.ramp(i * LANES, 1, LANES)), LANES))
        T.buffer_store(sums, sums[every] + whole, [every])
        T.buffer_store(q, T.Cast("int8x16", whole), [row, T.ramp(g * group + i * LANES, 1, LANES)])
    T.buffer_store(total, reduce_lanes(_add, sums[every], "int32", LANES), [row, g])


def _keep(x: Any, q: Any, scale: Any, total: Any, row: Expr, g: Expr, group: int, columns: Any) -> None:
    """One group of x as it is."""
    every = T.ramp(0, 1, LANES)
    sums = T.alloc_buffer((LANES,), "float32")
    T.buffer_store(sums, constant(0.0, LANES), [every])
    with T.serial(0, columns // LANES) as i:
        value = T.bind(x[T.ramp(i * LANES, 1, LANES)])
        T.buffer_store(sums, sums[every] + value, [every])
        T.buffer_store(q, value, [row, T.ramp(g * group + i * LANES, 1, LANES)])
    T.buffer_store(scale, T.float32(1), [row, g])
    T.buffer_store(total, reduce_lanes(_add, sums[every], "float32", LANES), [row, g])


def _build_tables(x: Any, q: Any, scale: Any, total: Any, row: Expr, g: Expr, group: int, columns: Any) -> None:
    """One group of the lookup family: the tables are computed twice, first for their largest entry."""
    every = T.ramp(0, 1, LANES)
    largest = T.alloc_buffer((LANES,), "float32")
    sums = T.alloc_buffer((LANES,), "float32")
    T.buffer_store(largest, constant(0.0, LANES), [every])
    T.buffer_store(sums, constant(0.0, LANES), [every])
    entry = vector_math.integer(0, LANES) + T.ramp(0, 1, LANES)
    signs = [
        T.Cast("float32x16", ((entry >> vector_math.integer(bit, LANES)) & vector_math.integer(1, LANES)))
        * constant(2.0, LANES)
        - constant(1.0, LANES)
        for bit in range(4)
    ]

    def table(start: Expr) -> Expr:
        terms = [T.broadcast(x[start + bit], LANES) * signs[bit] for bit in range(4)]
        return terms[0] + terms[1] + terms[2] + terms[3]

    with T.serial(0, columns // LANES) as i:
        T.buffer_store(sums, sums[every] + x[T.ramp(i * LANES, 1, LANES)], [every])
        for j in range(4):
            T.buffer_store(largest, T.max(largest[every], table(i * LANES + 4 * j)), [every])
    inverse = _store_scale(largest[every], scale, row, g)
    with T.serial(0, columns // LANES) as i:
        for j in range(4):
            value = round_to_int(table(i * LANES + 4 * j) * T.broadcast(inverse, LANES), LANES)
            T.buffer_store(q, T.Cast("int8x16", value), [row, g * (group // 16) + i, T.ramp(16 * j, 1, LANES)])
    T.buffer_store(total, reduce_lanes(_add, sums[every], "float32", LANES), [row, g])


def _build_triples(x: Any, q: Any, scale: Any, total: Any, row: Expr, g: Expr, group: int, columns: Any) -> None:
    """One group of triples: entry v is the sum of x with the digits of v in balanced ternary, 0 from entry 14 on."""
    every = T.ramp(0, 1, LANES)
    sums, peak = (T.alloc_buffer((LANES,), "float32") for _ in range(2))
    T.buffer_store(sums, constant(0.0, LANES), [every])
    T.buffer_store(peak, constant(0.0, LANES), [every])
    digits = [[(number + 13) // place % 3 - 1 for number in range(ENTRIES)] for place in (9, 3, 1)]
    signs = [vector_math.constants([*of_place, *[0] * (LANES - ENTRIES)], "float32") for of_place in digits]

    def table(start: Expr, width: int) -> Expr:
        terms = [T.broadcast(x[start + i], LANES) * signs[i] for i in range(width)]
        return sum(terms[1:], terms[0])

    def every_table(emit: Callable[[Expr, Expr, Expr], None]) -> None:
        with T.serial(0, columns // SPAN) as span:
            with T.serial(0, TRIPLES - 1) as triple:
                emit(span, triple, table(span * SPAN + 3 * triple, 3))
            emit(span, T.int32(TRIPLES - 1), table(span * SPAN + SPAN - 2, 2))

    with T.serial(0, columns // LANES) as i:
        T.buffer_store(sums, sums[every] + x[T.ramp(i * LANES, 1, LANES)], [every])
    every_table(lambda _, __, entries: T.buffer_store(peak, T.max(peak[every], absolute(entries, LANES)), [every]))
    inverse = _store_scale(peak[every], scale, row, g)

    def store(span: Expr, triple: Expr, entries: Expr) -> None:
        value = round_to_int(entries * T.broadcast(inverse, LANES), LANES)
        T.buffer_store(q, T.Cast("int8x16", value), [row, g * (group // SPAN) + span, triple, every])

    every_table(store)
    with T.serial(0, columns // SPAN) as span:
        T.buffer_store(q, T.broadcast(T.int8(0), 16), [row, g * (group // SPAN) + span, TRIPLES, every])
    T.buffer_store(total, reduce_lanes(_add, sums[every], "float32", LANES), [row, g])


def _store_scale(largest: Expr, scale: Any, row: Expr, g: Expr) -> Expr:
    """Store `max / 127`; the factor to multiply by before rounding, 0 where everything is (nearly) zero."""
    peak = T.bind(reduce_lanes(lambda a, b: T.max(a, b), largest, "float32", LANES))
    T.buffer_store(scale, peak * T.float32(1 / 127), [row, g])
    return T.bind(T.Select(peak > T.float32(1e-30), T.float32(127) / peak, T.float32(0)))


def _float(value: Expr, lanes: int) -> Expr:
    return vector_math.widened(value, lanes)


def _add(a: Expr, b: Expr) -> Expr:
    return a + b
