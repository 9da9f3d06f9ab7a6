"""Products of many rows of activations with packed low-bit weights, in integers: a prompt times a weight.

One task takes a tile of 16 weight rows and goes through it by panels of columns: a panel is unpacked once, to a byte a
code, into a scratch that stays in a cache, and multiplied with all rows of activations, a few in registers at a time.
Activations are those of the dot family whatever the weight was packed for; the formula is that of `lowbit_linear.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import TILE_ROWS, Expr, VectorIsa
from .function import kernel
from .lowbit_linear import product_arguments, split_operands
from .packing import QUADS, UNIT, PackedLayout
from .product_step import TILES, ProductStep, Sums
from .registers import WeightKnobs
from .step import Operands
from .unpack import check_unpacks, unpack_units

_ALL = T.ramp(0, 1, TILE_ROWS)


@dataclass(frozen=True)
class GemmKnobs(WeightKnobs):
    """panel_units: units of a panel, 32 KB of codes, which the second-level cache holds. 8 to 4096 units differ by 10 %
    on Zen 3."""

    panel_units: int = 64


@cache
def low_bit_gemm(
    layout: PackedLayout,
    isa: VectorIsa,
    dtype: str,
    bias: str | None = None,
    residual: bool = False,
    knobs: GemmKnobs = GemmKnobs(),
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])` for any number of rows.

    As `low_bit_linear`, with q, scale and total of the dot family."""
    check_unpacks(layout)
    rows = tirx.Var("m", "int64")

    def body(*buffers: Any) -> None:
        operands, shift, added, out = split_operands(layout, bias, residual, buffers)
        with T.parallel(0, -(-layout.n // TILE_ROWS)) as number:

            def store(step: ProductStep, sums: Sums) -> None:
                step.store(sums, shift, added, out)

            multiply_tile(layout, isa, dtype, operands, number, T.int64(0), rows, store, knobs)

    return kernel(product_arguments(layout, "dot", rows, dtype, bias, residual), body)


def multiply_tile(
    layout: PackedLayout,
    isa: VectorIsa,
    dtype: str,
    operands: Operands,
    number: Expr,
    begin: Expr,
    end: Expr,
    store: Callable[[ProductStep, Sums], None],
    knobs: GemmKnobs,
) -> None:
    """Emit the products of tile `number` of the weight with the rows of activations from `begin` to `end`."""
    at_once, group = isa.gemm_rows, layout.activation_group // UNIT
    groups = -(-layout.units // group)
    panel = max(knobs.panel_units // group, 1)
    panels = -(-groups // panel)
    chunks = (end - begin + at_once - 1) // at_once
    block, tile = T.bind(number // TILES), T.bind(number % TILES)
    scratch = T.alloc_buffer((panel * group, QUADS, 64), "uint8")
    partial = T.alloc_buffer((chunks, at_once, TILE_ROWS), "float32")
    with T.serial(0, panels) as p:
        first = T.bind(p * panel)

        def put(_: Expr, unit: Expr, quad: int, codes: Expr) -> None:
            T.buffer_store(scratch, codes, [unit, quad, T.ramp(0, 1, 64)])

        count = T.min(panel * group, layout.units - first * group)
        unpack_units(layout, isa, operands.packed, block, first * group, count, put, knobs.prefetch_bytes, tile)

        def codes(unit: Expr, quad: int, tile: Expr) -> Expr:
            return scratch[unit - first * group, quad, T.ramp(0, 1, 64)]

        with T.serial(0, chunks) as chunk:
            # A chunk that is not full computes the last row more than once, with the same result.
            chosen = [T.bind(T.min(begin + chunk * at_once + i, end - 1)) for i in range(at_once)]
            step = ProductStep(layout, isa, dtype, "dot", block, [tile], chosen, operands, codes)
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
                    store(step, sums)
