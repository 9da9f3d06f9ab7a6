"""A packed weight back as rows of a dense matrix, for products with many rows, which a library computes best.

A row's codes of 16 columns are shifted out of copies of the few bytes that hold them, each lane by its own amount."""

from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import TILE_ROWS, Expr, VectorIsa
from .packing import BLOCK_ROWS, UNIT, Field, PackedLayout, plane_slot, quad_fields
from .vector_math import constants, vector_type

LANES = TILE_ROWS
_TILES = BLOCK_ROWS // TILE_ROWS


def dequantize_tile(
    layout: PackedLayout, isa: VectorIsa, dtype: str, weight: list[Any], out: Any, first: Expr, number: Expr
) -> None:
    """Emit the unpacking of tile `first + number` (16 rows) into rows `16 * number...` of `out [.., K]`.

    weight: packed, scales and, for asymmetric formats, zero points. Values are `s * (q - z)`, computed in float32 and
    rounded once to `dtype`. Rows of padding past N are written like others."""
    packed, scales, *zeros = weight
    units = layout.activation_group // UNIT if not layout.per_channel else layout.units
    tile = T.bind(first + number)
    block, tile_in_block = T.bind(tile // _TILES), T.bind(tile % _TILES)
    factors = T.alloc_buffer((2, TILE_ROWS), "float32")
    with T.serial(0, layout.groups) as g:
        _row_factors(factors, layout, isa, scales, zeros, block, g, tile_in_block * TILE_ROWS)
        with T.serial(0, units) as i, T.serial(0, TILE_ROWS) as local:
            unit, row = g * units + i, number * TILE_ROWS + local
            scale, offset = (T.bind(factors[part, local]) for part in range(2))
            for side in range(2):
                codes = _codes(layout, packed, block, unit, tile_in_block * 64, local, side)
                value = T.Cast("float32x16", codes) * T.broadcast(scale, LANES) - T.broadcast(offset, LANES)
                if dtype != "float32":
                    value = T.Cast(vector_type(dtype, LANES), value)
                _store(out, value, dtype, row, unit * UNIT + side * LANES, layout.k)


def _store(out: Any, value: Expr, dtype: str, row: Expr, first: Expr, columns: int) -> None:
    """16 columns from `first` on, as many as there are."""
    if columns % UNIT == 0:
        T.buffer_store(out, value, [row, T.ramp(first, 1, LANES)])
        return
    with T.If(first + LANES <= columns):
        with T.Then():
            T.buffer_store(out, value, [row, T.ramp(first, 1, LANES)])
        with T.Else():
            edge = T.alloc_buffer((LANES,), dtype)
            T.buffer_store(edge, value, [T.ramp(0, 1, LANES)])
            with T.serial(0, LANES) as lane, T.If(first + lane < columns), T.Then():
                T.buffer_store(out, edge[lane], [row, first + lane])


def _row_factors(
    factors: Any, layout: PackedLayout, isa: VectorIsa, scales: Any, zeros: list[Any], block: Expr, g: Expr, row: Expr
) -> None:
    """`factors[0] = s`, `factors[1] = s * z` of the 16 rows of a block that begin at `row`."""
    at, every = T.ramp(row, 1, LANES), T.ramp(0, 1, LANES)
    scale = T.bind(isa.half_to_float(scales[block, g, at], LANES))
    if zeros:
        zero = isa.half_to_float(zeros[0][block, g, at], LANES)
    else:
        zero = T.broadcast(T.float32(layout.format.implicit_zero_point), LANES)
    T.buffer_store(factors, scale, [0, every])
    T.buffer_store(factors, scale * zero, [1, every])


def _codes(layout: PackedLayout, packed: Any, block: Expr, unit: Expr, base: Expr, local: Expr, side: int) -> Expr:
    """int32x16: the codes of one row in columns 16 * side... of a unit. Column c is in slot c % 4 (dot) or c // 4."""
    in_row = layout.slot_order == "row"

    def lanes_of(vector: int, slots: list[int]) -> Expr:
        """What the lanes of one vector shift: the row's word of four slots, or each lane's own byte."""
        if in_row:
            word = packed[block, unit, vector, T.ramp(base + 4 * local, 1, 4)]
            return T.broadcast(T.reinterpret("int32", word), len(slots))

        def byte(slot: int) -> Expr:
            at = plane_slot(layout.slot_order, vector, slot)
            return T.Cast("int32", packed[block, unit, at.vector, base + at.offset + at.row_step * local])

        return _gather(byte, slots)

    def moved(words: Expr, slots: list[int], fields: list[Field]) -> Expr:
        """Each lane's field of its slot, at its place in the code."""
        amounts = [field.shift + (8 * slot if in_row else 0) for slot, field in zip(slots, fields, strict=True)]
        value = (words >> constants(amounts, "int32")) & constants([2**field.bits - 1 for field in fields], "int32")
        places = [field.place for field in fields]
        return value << constants(places, "int32") if any(places) else value

    if layout.family == "lookup":
        slots, bits = [c // 4 for c in range(LANES)], [4 * side + c % 4 for c in range(LANES)]
        places = [0 if layout.format.scheme == "ternary" else plane for plane in range(layout.format.bits)]
        planes = [[Field(plane, bit, 1, place) for bit in bits] for plane, place in enumerate(places)]
        return reduce(add, [moved(lanes_of(plane, slots), slots, fields) for plane, fields in enumerate(planes)])
    slots = [c % 4 for c in range(LANES)]
    parts = [quad_fields(layout.format.bits, 4 * side + quad) for quad in range(4)]
    terms = []
    for number in range(max(map(len, parts))):
        # No bits where a code has fewer parts than another.
        of_quads = [part[number] if number < len(part) else replace(part[0], bits=0) for part in parts]
        words = T.bind(_concatenate([lanes_of(field.vector, slots[:4]) for field in of_quads], "int32", 4))
        terms.append(moved(words, slots, [field for field in of_quads for _ in range(4)]))
    return reduce(add, terms)


def _gather(load: Any, slots: list[int]) -> Expr:
    """A vector whose lane i is `load(slots[i])`."""
    loaded = {slot: T.bind(load(slot)) for slot in sorted(set(slots))}
    return T.Shuffle([loaded[slot] for slot in slots], list(range(len(slots))))


def _concatenate(pieces: list[Expr], element: str, lanes: int) -> Expr:
    while len(pieces) > 1:
        lanes *= 2
        pieces = [T.vectorcombine(f"{element}x{lanes}", a, b) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
    return pieces[0]
