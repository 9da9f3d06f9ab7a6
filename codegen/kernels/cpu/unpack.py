"""The codes of a packed weight, a byte each, as products of many rows read them: whatever the weight was packed for."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from ....ir.errors import QuantizationError
from ...targets.cpu.isa import TILE_ROWS, Expr, VectorIsa
from .packing import QUADS, UNIT, PackedLayout, plane_slot
from .product_step import TILES, quad_codes
from .registers import field, prefetch
from .triple_step import fours
from .triples import FOURS, SPAN
from .vector_math import constants

Store = Callable[[Expr, Expr, int, Expr], None]
"""`store(tile, unit, quad, codes)` with uint8x64, four columns of 16 rows in the slot order in which the ISA
multiplies codes; units are counted from the first one that is unpacked."""


def check_unpacks(layout: PackedLayout) -> None:
    """Raise `QuantizationError` for a packed form whose codes cannot be unpacked."""
    if layout.family == "triples" and layout.slot_order != "row":
        raise QuantizationError(
            "weights in triples are looked up for any number of rows; this kernel does not unpack them"
        )


def unpack_units(
    layout: PackedLayout,
    isa: VectorIsa,
    packed: Any,
    block: Expr,
    first: Expr,
    count: Expr,
    store: Store,
    prefetch_bytes: int,
    tile: Expr | None = None,
) -> None:
    """Emit the unpacking of `count` units of a block, from unit `first` on (whole spans for triples): of its tiles in
    the order in which they lie in memory, or of one `tile`."""
    at_once = SPAN // UNIT if layout.family == "triples" else 1
    with T.serial(0, count // at_once) as i:
        step = T.bind(first // at_once + i)
        with T.serial(0, TILES if tile is None else 1) as number:
            place = number if tile is None else tile

            def put(quad: int, codes: Expr) -> None:
                store(place, i * at_once + quad // QUADS, quad % QUADS, codes)

            if layout.family == "triples":
                _unpack_span(isa, packed, block, step, place, put, prefetch_bytes)
            else:
                for vector in range(layout.format.bits):
                    prefetch(prefetch_bytes, packed, block, step, vector, 64 * place)
                _unpack_unit(layout, isa, lambda v: packed[block, step, v, T.ramp(64 * place, 1, 64)], put)


def _unpack_unit(
    layout: PackedLayout, isa: VectorIsa, load: Callable[[int], Expr], store: Callable[[int, Expr], None]
) -> None:
    if layout.family == "dot":
        for quad in range(QUADS):
            store(quad, quad_codes(layout.format.bits, quad, load))
        return
    vectors = [T.bind(load(vector)) for vector in range(layout.format.bits)]
    emit = _planes_by_fields if layout.slot_order == "row" else _planes_by_bits
    emit(layout, isa, vectors, store)


def _planes_by_fields(
    layout: PackedLayout, isa: VectorIsa, planes: list[Expr], store: Callable[[int, Expr], None]
) -> None:
    """Two bit planes at a time are transposed into bytes that hold a field of two bits for each slot."""
    ternary = layout.format.scheme == "ternary"
    parts = []
    for first in range(0, len(planes), 2):
        pair = planes[first : first + 2]
        sides = isa.plane_fields(pair[0], pair[-1])
        if ternary:  # both planes weigh 1: of the fields 0, 1 and 3, subtract the upper bit
            ones = T.broadcast(T.uint8(0x55), 64)
            sides = [side - (field(side, 1, 8) & ones) for side in sides]
        parts.append(([T.bind(side) for side in sides], len(pair)))
    for quad in range(QUADS):
        codes: Expr = None
        for place, (sides, bits) in enumerate(parts):
            piece = field(sides[quad // 4], 2 * (quad % 4), bits, 2 * place)
            codes = piece if codes is None else codes | piece
        store(quad, codes)


def _planes_by_bits(
    layout: PackedLayout, isa: VectorIsa, planes: list[Expr], store: Callable[[int, Expr], None]
) -> None:
    places = [0] * len(planes) if layout.format.scheme == "ternary" else range(len(planes))
    for quad in range(QUADS):
        total: Expr = None
        for plane, place in enumerate(places):
            bits = _plane_bits(layout, isa, planes, plane, quad)
            # No bit leaves its byte: a code has fewer than eight.
            shifted = bits << _words(place) if place else bits
            total = shifted if total is None else total + shifted
        store(quad, T.reinterpret("uint8x64", total))


def _plane_bits(layout: PackedLayout, isa: VectorIsa, vectors: list[Expr], plane: int, quad: int) -> Expr:
    """uint32x16: the bits of one plane of the four columns of `quad`, a byte each.

    They lie as a nibble of slot quad % 4 of every row: the low nibble for the first four quads."""
    at, side = plane_slot(layout.slot_order, plane, quad % 4), quad // 4
    rows = T.Shuffle([vectors[at.vector]], [at.offset + at.row_step * row for row in range(TILE_ROWS)])
    nibbles = (T.Cast("uint32x16", rows) >> _words(4 * side)) & _words(15)
    if isa.slot_order["dot"] == "row":
        # Copies at distance 7 put bit c on bit 8 c.
        return (nibbles * _words(0x00204081)) & _words(0x01010101)
    columns = [T.Cast("uint8x16", (nibbles >> _words(c)) & _words(1)) for c in range(4)]
    halves = [T.vectorcombine("uint8x32", *columns[i : i + 2]) for i in (0, 2)]
    return T.reinterpret("uint32x16", T.vectorcombine("uint8x64", *halves))


def _words(value: int) -> Expr:
    return T.broadcast(T.uint32(value), TILE_ROWS)


def _unpack_span(
    isa: VectorIsa,
    packed: Any,
    block: Expr,
    span: Expr,
    tile: Any,
    store: Callable[[int, Expr], None],
    prefetch_bytes: int,
) -> None:
    """Four triples are the columns of three quads; of the last four, those of two."""
    middle, zero = T.broadcast(T.uint8(13), 64), T.broadcast(T.uint8(0), 64)
    tables = [constants([number // place % 3 for number in range(27)] + [0] * 37, "uint8") for place in (9, 3, 1)]
    for four in fours(isa, packed, block, span, tile, prefetch_bytes):
        word = sum(bit << 8 * slot for slot, bit in enumerate(four.bits))
        negative = four.signs & T.reinterpret("uint8x64", T.broadcast(T.uint32(word), TILE_ROWS))
        number = T.bind(T.Select(negative != zero, middle - four.index, middle + four.index))
        digits = [T.bind(isa.permute_bytes(table, number)) for table in tables]
        for part in range(3 if four.number < FOURS - 1 else 2):
            # Column c of the twelve is digit c % 3 of slot c // 3.
            columns = [4 * part + i for i in range(4)]
            two = T.bind(
                T.Shuffle(digits[:2], [64 * (c % 3 == 1) + 4 * row + c // 3 for row in range(16) for c in columns])
            )
            at = [64 + 4 * row + c // 3 if c % 3 == 2 else 4 * row + i
                  for row in range(TILE_ROWS) for i, c in enumerate(columns)]  # fmt: skip
            store(3 * four.number + part, T.Shuffle([two, digits[2]], at))
