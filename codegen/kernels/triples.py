"""Ternary weights in 1.6875 bits: three of them as a 4-bit table index and a sign (PAPERS.md section 1).

Three values in {-1, 0, 1} make a number v = 9 a + 3 b + c from -13 to 13; |v| is the index into a table of 14 sums of
three activations, and T[-v] = -T[v] takes care of the sign. A *span* of 128 columns has 43 triples (the last has two
columns) in 27 bytes a row, 64 rows side by side:

    packed [N/64][K/128][27][64]    byte b < 21   indices of triples 2b (low nibble) and 2b+1 (high)
                                    byte 21       index of triple 42 (low nibble); bits 4..6: signs of triples 40..42
                                    bytes 22..26  bit i of byte b: sign of triple 8 (b - 22) + i
"""

from functools import cache
from typing import Any, NamedTuple

import tvm
from tvm.script import tirx as T

from ...ir.quantization import PER_CHANNEL, WeightFormat
from ..targets.base import Expr, host

SPAN = 128
"""Columns that are packed together."""
TRIPLES = 43
"""Triples of a span."""
SPAN_BYTES = 27
"""Bytes of a span of one row."""
ENTRIES = 14
"""Entries of a table that are used, of 16."""
_ROWS = 64


class Bits(NamedTuple):
    """Where a triple's index or sign lies: in `byte` of its span, from bit `shift`."""

    byte: int
    shift: int


def index_bits(triple: int) -> Bits:
    """The four bits of the table index of `triple`."""
    return Bits(triple // 2, 4 * (triple % 2))


def sign_bit(triple: int) -> Bits:
    """The bit that says that `triple` is negative."""
    return Bits(22 + triple // 8, triple % 8) if triple < 40 else Bits(21, triple - 36)


def fits(format: WeightFormat, k: int) -> bool:
    """True when a weight of `format` with `k` columns can be packed in triples: whole spans, ternary."""
    whole = format.group_size == PER_CHANNEL or format.group_size % SPAN == 0
    return format.scheme == "ternary" and k % SPAN == 0 and whole


@cache
def repack_kernel(unpack: bool) -> Any:
    """`f(codes [N, K] uint8, packed)`, packing or with `unpack` the reverse, parallel over blocks of rows."""

    def pack_row(codes: Any, packed: Any, row: Expr, block: Expr, local: Expr, span: Expr) -> None:
        values = T.alloc_buffer((44,), "int32")
        bytes_ = T.alloc_buffer((SPAN_BYTES,), "int32")
        for t in range(TRIPLES - 1):
            T.buffer_store(values, _number([codes[row, span * SPAN + 3 * t + i] for i in range(3)]), [t])
        last = [codes[row, span * SPAN + 126], codes[row, span * SPAN + 127], T.uint8(1)]
        T.buffer_store(values, _number(last), [42])
        T.buffer_store(values, T.int32(0), [43])
        for b in range(SPAN_BYTES):
            T.buffer_store(bytes_, T.int32(0), [b])
        for t in range(TRIPLES):
            for at, value in (
                (index_bits(t), T.abs(values[t])),
                (sign_bit(t), T.Cast("int32", values[t] < 0)),
            ):
                T.buffer_store(bytes_, bytes_[at.byte] | value << T.int32(at.shift), [at.byte])
        for b in range(SPAN_BYTES):
            T.buffer_store(packed, T.Cast("uint8", bytes_[b]), [block, span, b, local])

    def unpack_row(codes: Any, packed: Any, row: Expr, block: Expr, local: Expr, span: Expr) -> None:
        def bits(at: Bits, width: int) -> Expr:
            byte = T.Cast("int32", packed[block, span, at.byte, local])
            return byte >> T.int32(at.shift) & T.int32(2**width - 1)

        for t in range(TRIPLES):
            index = T.bind(bits(index_bits(t), 4))
            number = T.bind(T.Select(bits(sign_bit(t), 1) == 1, 13 - index, 13 + index))
            digits = [number // 9, number // 3 % 3, number % 3]
            for i, digit in enumerate(digits if t < TRIPLES - 1 else digits[:2]):
                T.buffer_store(codes, T.Cast("uint8", digit), [row, span * SPAN + 3 * t + i])

    move = unpack_row if unpack else pack_row

    @T.prim_func(s_tir=True)
    def repack(codes_handle: T.handle, packed_handle: T.handle):
        n = T.int32()
        k = T.int32()
        codes = T.match_buffer(codes_handle, (n, k), "uint8", align=1)
        packed = T.match_buffer(packed_handle, ((n + 63) // 64, k // 128, 27, 64), "uint8", align=64)
        for block in T.parallel((n + 63) // 64):
            for span in range(k // 128):
                for local in range(64):
                    if unpack:
                        if block * 64 + local < n:
                            move(codes, packed, block * 64 + local, block, local, span)
                    else:
                        # Padded rows repeat the last one: their scale is 0.
                        move(codes, packed, T.min(block * 64 + local, n - 1), block, local, span)

    return tvm.compile(repack, target=host())["repack"]


def _number(codes: list[Expr]) -> Expr:
    """-13..13 of three codes 0, 1, 2, which stand for -1, 0, 1."""
    a, b, c = (T.Cast("int32", code) for code in codes)
    return a * 9 + b * 3 + c - 13
