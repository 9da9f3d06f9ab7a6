"""Ternary weights in 1.6875 bits: three of them as a 4-bit table index and a sign (docs/techniques.md, 1.3).

Three values in {-1, 0, 1} make a number v = 9 a + 3 b + c from -13 to 13; |v| is the index into a table of 14 sums of
three activations, and T[-v] = -T[v] takes care of the sign. A *span* of 128 columns has 43 triples (the last has two
columns) in 27 bytes a row; `packed [N/64][K/128][27][64]` holds the spans of 64 rows, in table order side by side:

    byte b < 21   of row r, indices of triples 2b (low nibble) and 2b+1 (high)
    byte 21       index of triple 42 (low nibble); bits 4..6: signs of triples 40..42
    bytes 22..26  bit i of byte b: sign of triple 8 (b - 22) + i

In row order triples go by fours, one a slot, so that byte 4r + j of a vector is slot j of row r; tile t of 16 rows has

    vectors 6t + p, p < 5   indices of fours 2p (low nibble) and 2p + 1 (high)
    vector 6t + 5           bit i: sign of four i
    bytes 48t + 3r + j      from vector 24 on, slots j < 3: index of four 10 (low nibble); bits 4..6: signs of fours
                            8..10; bit 7: sign of slot 3 of four 8 (j = 0) and of four 9 (j = 1)
"""

from functools import cache
from typing import Any, NamedTuple

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ....ir.weights.formats import PER_CHANNEL, WeightFormat
from ...targets.cpu.host import host
from ...targets.cpu.isa import TILE_ROWS, Expr, SlotOrder
from .function import kernel

SPAN = 128
"""Columns that are packed together."""
TRIPLES = 43
"""Triples of a span."""
FOURS = 11
"""Fours of triples in a span, in row order."""
TABLES = 4 * FOURS
"""Tables of a span of activations, in fours: the last one holds zeros."""
SPAN_BYTES = 27
"""Bytes of a span of one row."""
ENTRIES = 14
"""Entries of a table that are used, of 16."""
SIGNED_VECTORS = 6
"""Vectors of a tile in row order: those of ten fours, and the signs of eight."""
LAST_VECTOR = 24
"""The first of the vectors that hold what is left."""
_ROWS = 64


class Bits(NamedTuple):
    """Where a triple's index or sign lies: in `byte` of its span, from bit `shift`."""

    byte: Any
    shift: int


def index_bits(triple: int) -> Bits:
    """The four bits of the table index of `triple`, in table order."""
    return Bits(triple // 2, 4 * (triple % 2))


def sign_bit(triple: int) -> Bits:
    """The bit that says that `triple` is negative, in table order."""
    return Bits(22 + triple // 8, triple % 8) if triple < 40 else Bits(21, triple - 36)


def places(order: SlotOrder, triple: int, tile: Any, row: Any) -> tuple[Bits, Bits]:
    """Index and sign of `triple` in `row` of `tile`: bytes of the span of 64 rows."""
    if order != "row":
        index, sign = index_bits(triple), sign_bit(triple)
        beside = TILE_ROWS * tile + row
        return Bits(index.byte * _ROWS + beside, index.shift), Bits(sign.byte * _ROWS + beside, sign.shift)
    four, slot = divmod(triple, 4)
    whole, last = _ROWS * SIGNED_VECTORS * tile + 4 * row + slot, _ROWS * LAST_VECTOR + 48 * tile + 3 * row
    index = Bits(whole + _ROWS * (four // 2), 4 * (four % 2)) if four < 10 else Bits(last + slot, 0)
    if four < 8:
        return index, Bits(whole + _ROWS * (SIGNED_VECTORS - 1), four)
    return index, Bits(last + slot, four - 4) if slot < 3 else Bits(last + four - 8, 7)


def fits(format: WeightFormat, k: int) -> bool:
    """True when a weight of `format` with `k` columns can be packed in triples: whole spans, ternary."""
    whole = format.group_size == PER_CHANNEL or format.group_size % SPAN == 0
    return format.scheme == "ternary" and k % SPAN == 0 and whole


@cache
def repack_kernel(order: SlotOrder, unpack: bool) -> Any:
    """`f(codes [N, K] uint8, packed [N/64, K/128, 1728])`, packing or with `unpack` the reverse, parallel over blocks
    of rows."""

    def columns(span: Expr, triple: int) -> list[Expr]:
        return [span * SPAN + 3 * triple + i for i in range(3 if triple < TRIPLES - 1 else 2)]

    def pack_row(codes: Any, packed: Any, n: Expr, block: Expr, local: Expr, span: Expr) -> None:
        row = T.bind(T.min(block * _ROWS + local, n - 1))  # padded rows repeat the last one: their scale is 0

        def put(at: Bits, value: Expr) -> None:
            place = [block, span, T.bind(at.byte)]
            T.buffer_store(packed, packed[tuple(place)] | T.Cast("uint8", value << at.shift), place)

        for triple in range(TRIPLES):
            digits = [T.Cast("int32", codes[row, column]) - 1 for column in columns(span, triple)]
            number = T.bind(sum((9 // 3**i * digit for i, digit in enumerate(digits)), T.int32(0)))
            index, sign = places(order, triple, local // TILE_ROWS, local % TILE_ROWS)
            put(index, T.abs(number))
            put(sign, T.Cast("int32", number < 0))

    def unpack_row(codes: Any, packed: Any, n: Expr, block: Expr, local: Expr, span: Expr) -> None:
        def get(at: Bits, bits: int) -> Expr:
            return T.Cast("int32", packed[block, span, at.byte]) >> at.shift & (2**bits - 1)

        with T.If(block * _ROWS + local < n), T.Then():
            for triple in range(TRIPLES):
                index, sign = places(order, triple, local // TILE_ROWS, local % TILE_ROWS)
                magnitude = T.bind(get(index, 4))
                number = T.bind(T.Select(get(sign, 1) == 1, 13 - magnitude, 13 + magnitude))
                for i, column in enumerate(columns(span, triple)):
                    digit = T.Cast("uint8", number // 3 ** (2 - i) % 3)
                    T.buffer_store(codes, digit, [block * _ROWS + local, column])

    n, k = tirx.Var("n", "int64"), tirx.Var("k", "int64")

    def body(codes: Any, packed: Any) -> None:
        with T.parallel(0, (n + _ROWS - 1) // _ROWS) as block, T.serial(0, k // SPAN) as span:
            if not unpack:
                with T.serial(0, SPAN_BYTES) as vector:
                    every = T.ramp(vector * _ROWS, 1, _ROWS)
                    T.buffer_store(packed, T.broadcast(T.uint8(0), _ROWS), [block, span, every])
            with T.serial(0, _ROWS) as local:
                (unpack_row if unpack else pack_row)(codes, packed, n, block, local, span)

    shape = ((n + _ROWS - 1) // _ROWS, k // SPAN, SPAN_BYTES * _ROWS)
    return tvm.compile(kernel([((n, k), "uint8"), (shape, "uint8")], body), target=host())["main"]
