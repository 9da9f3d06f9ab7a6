"""A packed weight back as rows of a dense matrix, for products with many rows, which a library computes best.

A row's codes of 16 columns are shifted out of copies of the few bytes that hold them, each lane by its own amount."""

from typing import Any

from tvm.script.ir_builder import tirx as T

from ..targets.base import TILE_ROWS, Expr, Target
from .packing import BLOCK_ROWS, UNIT, PackedLayout, plane_slot, quad_fields
from .vector_math import constants, integer, vector_type

LANES = TILE_ROWS
_TILES = BLOCK_ROWS // TILE_ROWS


def dequantize_tile(
    layout: PackedLayout, target: Target, dtype: str, weight: list[Any], out: Any, first: Expr, number: Expr
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
        _row_factors(factors, layout, target, scales, zeros, block, g, tile_in_block * TILE_ROWS)
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
    factors: Any, layout: PackedLayout, target: Target, scales: Any, zeros: list[Any], block: Expr, g: Expr, row: Expr
) -> None:
    """`factors[0] = s`, `factors[1] = s * z` of the 16 rows of a block that begin at `row`."""
    at, every = T.ramp(row, 1, LANES), T.ramp(0, 1, LANES)
    scale = T.bind(target.half_to_float(scales[block, g, at], LANES))
    if zeros:
        zero = target.half_to_float(zeros[0][block, g, at], LANES)
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

    def shifted(words: Expr, slots: list[int], bits: list[int], width: int) -> Expr:
        """Field of `width` bits at bit `bits[lane]` of the lane's slot."""
        amounts = [bit + (8 * slot if in_row else 0) for slot, bit in zip(slots, bits, strict=True)]
        return (words >> constants(amounts, "int32")) & integer(2**width - 1, LANES)

    total: Expr = None

    def add(value: Expr, place: int) -> None:
        nonlocal total
        value = value << integer(place, LANES) if place else value
        total = value if total is None else total + value

    if layout.family == "lookup":
        slots, bits = [c // 4 for c in range(LANES)], [4 * side + c % 4 for c in range(LANES)]
        for plane in range(layout.format.bits):
            place = 0 if layout.format.scheme == "ternary" else plane
            add(shifted(lanes_of(plane, slots), slots, bits, 1), place)
        return total
    quads = [4 * side + c // 4 for c in range(LANES)]
    slots = [c % 4 for c in range(LANES)]
    for number in range(len(quad_fields(layout.format.bits, 0))):
        fields = [quad_fields(layout.format.bits, quad)[number] for quad in quads]
        vectors = sorted({f.vector for f in fields})
        pieces = [lanes_of(v, [s for s, f in zip(slots, fields, strict=True) if f.vector == v]) for v in vectors]
        words = T.bind(_concatenate(pieces, "int32", LANES // len(vectors)))
        add(shifted(words, slots, [f.shift for f in fields], fields[0].bits), fields[0].place)
    return total


def _gather(load: Any, slots: list[int]) -> Expr:
    """A vector whose lane i is `load(slots[i])`."""
    loaded = {slot: T.bind(load(slot)) for slot in sorted(set(slots))}
    return T.Shuffle([loaded[slot] for slot in slots], list(range(len(slots))))


def _concatenate(pieces: list[Expr], element: str, lanes: int) -> Expr:
    while len(pieces) > 1:
        lanes *= 2
        pieces = [T.vectorcombine(f"{element}x{lanes}", a, b) for a, b in zip(pieces[::2], pieces[1::2], strict=True)]
    return pieces[0]
