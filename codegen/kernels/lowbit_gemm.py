"""Products of many rows of activations with packed low-bit weights, in integers: a prompt times a weight.

One task takes a tile of 16 weight rows and goes through it by panels of columns: a panel is unpacked once, to a byte a
code, into a scratch that stays in a cache, and multiplied with all rows of activations, a few in registers at a time.
Activations are those of the dot family whatever the weight was packed for; the formula is that of `lowbit_linear.py`.
"""

from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.errors import QuantizationError
from ..targets.base import TILE_ROWS, Expr, Target
from .function import kernel
from .lowbit_linear import product_arguments, split_operands
from .packing import UNIT, PackedLayout, plane_slot
from .product_step import QUADS, TILES, ProductStep, quad_codes

PANEL_UNITS = 64
"""Units of a panel: 32 KB of codes, which the second-level cache holds. 8 to 4096 units differ by 10 % on Zen 3."""
_ALL = T.ramp(0, 1, TILE_ROWS)


@cache
def low_bit_gemm(
    layout: PackedLayout, target: Target, dtype: str, bias: str | None = None, residual: bool = False
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])` for any number of rows.

    As `low_bit_linear`, with q, scale and total of the dot family."""
    if layout.family == "triples":
        raise QuantizationError(
            "weights in triples are looked up for any number of rows; this kernel does not unpack them"
        )
    rows, at_once, group = tirx.Var("m", "int64"), target.gemm_rows, layout.activation_group // UNIT
    groups = -(-layout.units // group)
    panel = max(PANEL_UNITS // group, 1)
    panels = -(-groups // panel)

    def body(*buffers: Any) -> None:
        operands, shift, added, out = split_operands(layout, bias, residual, buffers)
        with T.parallel(0, -(-layout.n // TILE_ROWS)) as number:
            block, tile = T.bind(number // TILES), T.bind(number % TILES)
            scratch = T.alloc_buffer((panel * group, QUADS, 64), "uint8")
            partial = T.alloc_buffer(((rows + at_once - 1) // at_once, at_once, TILE_ROWS), "float32")
            with T.serial(0, panels) as p:
                first = T.bind(p * panel)
                with T.serial(0, T.min(panel * group, layout.units - first * group)) as i:
                    _unpack_unit(layout, target, operands.packed, scratch, block, first * group + i, i, tile)

                def codes(unit: Expr, quad: int, tile: Expr) -> Expr:
                    return scratch[unit - first * group, quad, T.ramp(0, 1, 64)]

                with T.serial(0, (rows + at_once - 1) // at_once) as chunk:
                    # A chunk that is not full computes the last row more than once, with the same result.
                    chosen = [T.bind(T.min(chunk * at_once + i, rows - 1)) for i in range(at_once)]
                    step = ProductStep(layout, target, dtype, "dot", block, [tile], chosen, operands, codes)
                    sums = step.zeros()
                    with T.If(p > 0), T.Then():
                        for i, (buffer,) in enumerate(sums):
                            T.buffer_store(buffer, partial[chunk, i, _ALL], [_ALL])
                    with T.serial(0, T.min(panel, groups - first)) as g:
                        step.add_group(sums, first + g)
                    with T.If(p < panels - 1):
                        with T.Then():
                            for i, (buffer,) in enumerate(sums):
                                T.buffer_store(partial, buffer[_ALL], [chunk, i, _ALL])
                        with T.Else():
                            step.store(sums, shift, added, out)

    return kernel(product_arguments(layout, "dot", rows, dtype, bias, residual), body)


def _unpack_unit(
    layout: PackedLayout, target: Target, packed: Any, scratch: Any, block: Expr, unit: Expr, slot: Expr, tile: Expr
) -> None:
    """Emit `scratch[slot, quad] = codes` of one unit of a tile, in the slot order in which `target` multiplies."""

    def load(vector: int) -> Expr:
        return packed[block, unit, vector, T.ramp(64 * tile, 1, 64)]

    if layout.family == "dot":
        for quad in range(QUADS):
            T.buffer_store(scratch, quad_codes(layout.format.bits, quad, load), [slot, quad, T.ramp(0, 1, 64)])
        return
    vectors = [T.bind(load(vector)) for vector in range(layout.format.bits)]
    places = [0] * len(vectors) if layout.format.scheme == "ternary" else range(len(vectors))
    for quad in range(QUADS):
        total: Expr = None
        for plane, place in enumerate(places):
            bits = _plane_bits(layout, target, vectors, plane, quad)
            # No bit leaves its byte: a code has fewer than eight.
            shifted = bits << _words(place) if place else bits
            total = shifted if total is None else total + shifted
        T.buffer_store(scratch, T.reinterpret("uint8x64", total), [slot, quad, T.ramp(0, 1, 64)])


def _plane_bits(layout: PackedLayout, target: Target, vectors: list[Expr], plane: int, quad: int) -> Expr:
    """uint32x16: the bits of one plane of the four columns of `quad`, a byte each.

    They lie as a nibble of slot quad % 4 of every row: the low nibble for the first four quads."""
    at, side = plane_slot(layout.slot_order, plane, quad % 4), quad // 4
    if layout.slot_order == "row":
        nibbles = T.reinterpret("uint32x16", vectors[at.vector]) >> _words(8 * at.offset + 4 * side)
    else:
        rows = T.Shuffle([vectors[at.vector]], [at.offset + at.row_step * row for row in range(TILE_ROWS)])
        nibbles = T.Cast("uint32x16", rows) >> _words(4 * side)
    nibbles = nibbles & _words(15)
    if target.slot_order["dot"] == "row":
        # Copies at distance 7 put bit c on bit 8 c.
        return (nibbles * _words(0x00204081)) & _words(0x01010101)
    columns = [T.Cast("uint8x16", (nibbles >> _words(c)) & _words(1)) for c in range(4)]
    halves = [T.vectorcombine("uint8x32", *columns[i : i + 2]) for i in (0, 2)]
    return T.reinterpret("uint32x16", T.vectorcombine("uint8x64", *halves))


def _words(value: int) -> Expr:
    return T.broadcast(T.uint32(value), TILE_ROWS)
