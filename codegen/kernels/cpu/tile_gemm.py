"""Products of many rows of activations with packed low-bit weights on a unit that multiplies tiles of bytes (AMX).

Sixteen rows of activations times 64 weight rows at a time: the sums of one group of columns grow in four tiles, and are
scaled and added in float32 when the group ends. One task takes 64 weight rows and some hundred rows of activations and
goes through them by panels of columns, which are unpacked once, to a byte a code. The formula is that of
`lowbit_linear.py` for activations of the dot family.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import TILE_ROWS, Expr, VectorIsa
from .function import kernel
from .lowbit_linear import product_arguments, split_operands
from .packing import BLOCK_ROWS, QUADS, UNIT, PackedLayout
from .product_step import TILES, ProductStep
from .registers import WeightKnobs, zero_buffer
from .unpack import check_unpacks, unpack_units

_ALL = T.ramp(0, 1, TILE_ROWS)
_X, _CODES = 4, 5
"""Tile registers; 0..3 are sums."""


@dataclass(frozen=True)
class TileGemmKnobs(WeightKnobs):
    """panel_units: units of a panel, 32 KB of codes of 64 rows, which the first-level cache holds beside a few rows of
    activations. most_rows: rows of activations of a task, what it reads of which stays in the second-level cache."""

    panel_units: int = 16
    most_rows: int = 256


@cache
def tile_gemm(
    layout: PackedLayout,
    isa: VectorIsa,
    dtype: str,
    bias: str | None = None,
    residual: bool = False,
    knobs: TileGemmKnobs = TileGemmKnobs(),
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])` for any number M."""
    check_unpacks(layout)
    most = knobs.most_rows
    rows, group = tirx.Var("m", "int64"), layout.activation_group // UNIT
    groups = -(-layout.units // group)
    at_once = 2 if group % 2 == 0 and layout.units % 2 == 0 else 1  # units of one product of tiles
    panel = max(knobs.panel_units // group, 1)
    late, has_zeros = layout.per_channel, layout.format.has_zero_points

    def body(*buffers: Any) -> None:
        operands, shift, added, out = split_operands(layout, bias, residual, buffers)
        with T.parallel(0, (rows + most - 1) // most * layout.blocks) as task:
            block, top = T.bind(task % layout.blocks), T.bind(task // layout.blocks * most)
            count = T.bind(T.min(T.int64(most), rows - top))
            height = T.bind(T.min(T.int64(TILE_ROWS), count))
            codes = T.alloc_buffer((TILES, panel * group, QUADS, 64), "uint8")
            tiles = T.alloc_buffer((TILES, TILE_ROWS, TILE_ROWS), "int32")
            partial = T.alloc_buffer((most, BLOCK_ROWS), "float32")
            moments = T.alloc_buffer((most,), "float32") if late and has_zeros else None
            earlier = _configure(height, 32 * at_once)
            with T.serial(0, count) as row:
                for tile in range(TILES):
                    T.buffer_store(partial, T.broadcast(T.float32(0), TILE_ROWS), [row, _part(tile)])
                if moments is not None:
                    T.buffer_store(moments, T.float32(0), [row])

            def step_of(row: Expr) -> ProductStep:
                return ProductStep(layout, isa, dtype, "dot", block, range(TILES), [row], operands)

            def multiply(first: Expr, units: Expr, start: Expr) -> None:
                """`tiles` = rows from `first` on times columns of `units` units from unit `start` of the panel on."""
                for tile in range(TILES):
                    _emit("tilezero", T.uint8(tile))
                with T.serial(0, units // at_once) as i:
                    local = T.bind(start + i * at_once)
                    x = T.address_of(operands.q[top + first, (panel_start + local) * UNIT])
                    _emit("tileloadd64", T.uint8(_X), x, T.int64(layout.units * UNIT))
                    for tile in range(TILES):
                        register = T.uint8(_CODES + tile % 2)
                        _emit("tileloadd64", register, T.address_of(codes[tile, local, 0, 0]), T.int64(64))
                        _emit("tdpbsud", T.uint8(tile), T.uint8(_X), register)
                for tile in range(TILES):
                    _emit("tilestored64", T.uint8(tile), T.address_of(tiles[tile, 0, 0]), T.int64(4 * TILE_ROWS))

            def scale_and_add(first: Expr, done: Expr, g: Expr) -> None:
                """What `tiles` hold of group `g` is added to `partial`, but for the `done` first rows."""
                step = step_of(top + first)
                numbers = range(TILES)
                s = [None if late else T.bind(step.scale_of(g, tile)) for tile in numbers]
                z = [T.bind(step.zero_point_of(g, tile)) if has_zeros and not late else None for tile in numbers]
                fixed = 0.0 if has_zeros else layout.format.implicit_zero_point
                with T.serial(0, height - done) as i:
                    row = T.bind(done + i)
                    factor = T.bind(operands.scale[top + first + row, g])
                    total = T.bind(factor * T.Cast("float32", operands.total[top + first + row, g]))
                    if moments is not None:
                        T.buffer_store(moments, moments[first + row] + total, [first + row])
                    for tile in numbers:
                        value = T.Cast("float32x16", tiles[tile, row, _ALL]) * T.broadcast(factor, TILE_ROWS)
                        if z[tile] is not None:
                            value = value - z[tile] * T.broadcast(total, TILE_ROWS)
                        elif fixed:
                            value = value - T.broadcast(total * T.float32(fixed), TILE_ROWS)
                        value = value if s[tile] is None else value * s[tile]
                        place = [first + row, _part(tile)]
                        T.buffer_store(partial, partial[tuple(place)] + value, place)

            with T.serial(0, -(-groups // panel)) as p:
                panel_start = T.bind(p * (panel * group))

                def put(tile: Expr, unit: Expr, quad: int, vector: Expr) -> None:
                    T.buffer_store(codes, vector, [tile, unit, quad, T.ramp(0, 1, 64)])

                inside = T.min(T.int64(panel * group), layout.units - panel_start)
                unpack_units(layout, isa, operands.packed, block, panel_start, inside, put, knobs.prefetch_bytes)
                with T.serial(0, (count + TILE_ROWS - 1) // TILE_ROWS) as chunk:
                    # A chunk that is not full begins earlier; rows that it shares with the one before are added once.
                    first = T.bind(T.min(chunk * TILE_ROWS, count - height))
                    done = T.bind(chunk * TILE_ROWS - first)
                    with T.serial(0, T.min(T.int64(panel), groups - p * panel)) as i:
                        g = T.bind(p * panel + i)
                        multiply(first, T.min(T.int64(group), layout.units - g * group), i * group)
                        scale_and_add(first, done, g)
            with T.serial(0, count) as row:
                step = step_of(top + row)
                of_row = [zero_buffer("float32") for _ in range(TILES)]
                for tile, buffer in enumerate(of_row):
                    value = partial[row, _part(tile)]
                    if moments is not None:
                        value = value - step.zero_point_of(0, tile) * T.broadcast(moments[row], TILE_ROWS)
                    T.buffer_store(buffer, value * step.scale_of(0, tile) if late else value, [_ALL])
                step.store([of_row], shift, added, out)
            _emit("ldtilecfg", earlier)

    return kernel(product_arguments(layout, "dot", rows, dtype, bias, residual), body)


def _part(tile: int) -> Expr:
    return T.ramp(TILE_ROWS * tile, 1, TILE_ROWS)


def _configure(height: Expr, columns: int) -> Any:
    """Configure the tiles: `height` rows of `columns` bytes of x; a buffer with the configuration that was there, which
    belongs to whoever else multiplies on this thread."""
    # So large that TVM takes it from the heap: LLVM, not knowing that 64 bytes are written, gives less of the stack.
    configurations = T.alloc_buffer((2, 1024), "uint8")
    earlier, ours = (T.address_of(configurations[number, 0]) for number in range(2))

    def put(place: int, count: Any) -> None:
        T.buffer_store(configurations, T.Cast("uint8", count), [1, place])

    _emit("sttilecfg", earlier)
    T.buffer_store(configurations, T.broadcast(T.uint8(0), 64), [1, T.ramp(0, 1, 64)])
    put(0, T.int32(1))  # palette 1: eight tiles of 16 rows of 64 bytes
    shapes = [(height, 64)] * TILES + [(height, columns)] + [(T.int32(columns // 4), 64)] * 2
    for register, (count, width) in enumerate(shapes):
        put(16 + 2 * register, T.int32(width))
        put(48 + register, count)
    _emit("ldtilecfg", ours)
    return earlier


def _emit(name: str, *arguments: Any) -> None:
    T.evaluate(T.call_llvm_intrin("int32", f"llvm.x86.{name}", *arguments))
