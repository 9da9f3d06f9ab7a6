"""Linear layers on packed low-bit weights, for the few rows of activations of a decode step.

One task multiplies a block of 64 weight rows, read strictly in order, with all rows of activations. Inside a group of columns the sum
is of integers; at its end scale and zero point are applied once (MixPE; PAPERS.md section 1):

    dot     out[n] = sum_g s_g[n] * (xs_g * acc - z_g[n] * xs_g * sum(q))                acc = sum of code * q
    lookup  out[n] = sum_g s_g[n]/2 * (ts_g * acc - z'_g[n] * sum(x))                    acc = sum of plane weight * table entry
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..targets.base import Expr, Target
from .activations import precompute_outputs
from .function import kernel
from .packing import BLOCK_ROWS, TILE_ROWS, UNIT, PackedLayout, quad_fields

TILES = BLOCK_ROWS // TILE_ROWS
_PREFETCH_BYTES = 4096
_ROWS_AT_ONCE = 4
"""Activation rows that share one unpacking of the weights when there are many."""
_ACCUMULATORS = 16
"""Tile accumulators that stay in registers: more rows mean fewer tiles at a time."""


@cache
def low_bit_linear(
    layout: PackedLayout, target: Target, m: int | None, dtype: str, bias: str | None = None, residual: bool = False
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])`: `out = x W^T (+ bias) (+ residual)`.

    The first three are `activations.precompute`'s results for `layout.activation_group`. `dtype`: of out and residual; `bias`: the dtype
    of the bias, if there is one. Product and bias are rounded once, then the residual is added and rounded. `m` None: any number of
    rows, `_ROWS_AT_ONCE` at a time."""
    rows: Any = tirx.Var("m", "int64") if m is None else m
    template = _Template(layout, target, m if m is not None and m <= 2 * _ROWS_AT_ONCE else _ROWS_AT_ONCE, dtype)
    format_ = layout.format

    def body(*buffers: Any) -> None:
        q, scale, total, packed, scales, *rest = buffers
        zeros = rest.pop(0) if format_.has_zero_points else None
        shift = rest.pop(0) if bias else None
        added = rest.pop(0) if residual else None
        with T.parallel(0, layout.blocks) as block:

            def multiply(chosen: list[Expr]) -> None:
                sums = template.sums(chosen, block, q, scale, total, packed, scales, zeros)
                template.store(sums, chosen, block, shift, added, rest[0])

            if template.rows == m:
                multiply([T.int32(i) for i in range(template.rows)])
            else:
                # A chunk that is not full computes the last row more than once, with the same result.
                with T.serial(0, (rows + template.rows - 1) // template.rows) as chunk:
                    multiply([T.bind(T.min(chunk * template.rows + i, rows - 1)) for i in range(template.rows)])

    arguments = [
        *precompute_outputs(layout.family, layout.k, layout.activation_group, rows),
        (layout.packed_shape, "uint8"),
        *[(layout.scales_shape, "float16")] * (2 if format_.has_zero_points else 1),
        *([((layout.n,), bias)] if bias else []),
        *([((rows, layout.n), dtype)] if residual else []),
        ((rows, layout.n), dtype),
    ]
    return kernel(arguments, body)


def field(vector: Expr, shift: int, bits: int) -> Expr:
    """`bits` bits of every byte of a uint8x64, from bit `shift`. Shifted as 16-bit words: x86 has no shift of bytes."""
    if shift:
        words = T.reinterpret("uint16x32", vector) >> T.broadcast(T.uint16(shift), 32)
        vector = T.reinterpret("uint8x64", words)
    return vector if bits == 8 else vector & T.broadcast(T.uint8(2**bits - 1), 64)


@dataclass(frozen=True)
class _Template:
    """The parts of the kernel, for `rows` activation rows at a time."""

    layout: PackedLayout
    target: Target
    rows: int
    dtype: str

    def sums(
        self, chosen: Sequence[Expr], block: Expr, q: Any, scale: Any, total: Any, packed: Any, scales: Any, zeros: Any
    ) -> Any:
        """Emit the reduction; float32 `[rows * 4, 16]`, tile `t` of row `i` at `4 * i + t`."""
        layout = self.layout
        sums = _zeros(self.rows * TILES, "float32")
        offsets = _zeros(self.rows, "float32", lanes=1) if layout.per_channel and zeros is not None else None
        units = layout.activation_group // UNIT
        tiles = max(1, min(TILES, _ACCUMULATORS // self.rows))
        with T.serial(0, -(-layout.units // units)) as g:
            factors = [T.bind(scale[row, g]) for row in chosen]
            if layout.family == "dot":
                moments = [T.bind(f * T.Cast("float32", total[r, g])) for f, r in zip(factors, chosen, strict=True)]
            else:
                moments = [T.bind(total[row, g]) for row in chosen]
            if offsets is not None:
                for i, moment in enumerate(moments):
                    T.buffer_store(offsets, offsets[i, 0] + moment, [i, 0])
            for first in range(0, TILES, tiles):
                chosen_tiles = range(first, first + tiles)
                accs = self._group_sums(chosen, block, g, units, chosen_tiles, q, packed)
                for tile in chosen_tiles:
                    # Per channel the scale is the same for all groups: it is applied once, below.
                    s = None if layout.per_channel else T.bind(self._half(scales, block, g, tile))
                    z = None if layout.per_channel or zeros is None else T.bind(self._zero(zeros, block, g, tile))
                    for i in range(self.rows):
                        value = T.Cast("float32x16", accs(i, tile)) * T.broadcast(factors[i], 16)
                        if z is not None:
                            value = value - z * T.broadcast(moments[i], 16)
                        elif zeros is None and self._fixed_zero:
                            value = value - T.broadcast(moments[i] * T.float32(self._fixed_zero), 16)
                        at = (TILES * i + tile, T.ramp(0, 1, 16))
                        T.buffer_store(sums, sums[at] + (value if s is None else value * s), at)
        if layout.per_channel:
            for tile in range(TILES):
                s = T.bind(self._half(scales, block, 0, tile))
                for i in range(self.rows):
                    at = (TILES * i + tile, T.ramp(0, 1, 16))
                    value = sums[at]
                    if offsets is not None:
                        value = value - self._zero(zeros, block, 0, tile) * T.broadcast(offsets[i, 0], 16)
                    T.buffer_store(sums, value * s, at)
        return sums

    def store(self, sums: Any, chosen: Sequence[Expr], block: Expr, shift: Any, added: Any, out: Any) -> None:
        """Emit bias, residual, rounding and the stores; rows of the block from N on are left out."""
        n = self.layout.n
        for i, row in enumerate(chosen):
            for tile in range(TILES):
                value = sums[TILES * i + tile, T.ramp(0, 1, 16)]
                first = block * BLOCK_ROWS + tile * TILE_ROWS
                whole = self._finish(shift, added, row, T.ramp(first, 1, 16), 16)
                if n % BLOCK_ROWS == 0:
                    T.buffer_store(out, whole(value), [row, T.ramp(first, 1, 16)])
                    continue
                with T.If(first + TILE_ROWS <= n):
                    with T.Then():
                        T.buffer_store(out, whole(value), [row, T.ramp(first, 1, 16)])
                    if n % TILE_ROWS:
                        with T.Else():
                            # A copy: indexing `sums` by a variable would force it out of registers.
                            tail = T.alloc_buffer((16,), "float32", scope="local")
                            T.buffer_store(tail, value, [T.ramp(0, 1, 16)])
                            with T.serial(0, 16) as lane, T.If(first + lane < n), T.Then():
                                single = self._finish(shift, added, row, first + lane, 1)
                                T.buffer_store(out, single(tail[lane]), [row, first + lane])

    @property
    def _fixed_zero(self) -> float:
        """The zero point of all groups in a format that stores none; 0 after symmetrisation."""
        if self.layout.family == "lookup":
            return 0.0
        return self.layout.format.implicit_zero_point - self.target.code_bias(self.layout.format.bits)

    def _half(self, values: Any, block: Expr, g: Any, tile: int) -> Expr:
        """Scales of a tile, halved for lookup (`s' = s / 2`)."""
        value = self.target.half_to_float(values[block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)
        return value * T.broadcast(T.float32(0.5), 16) if self.layout.family == "lookup" else value

    def _zero(self, zeros: Any, block: Expr, g: Any, tile: int) -> Expr:
        value = self.target.half_to_float(zeros[block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)
        bits = self.layout.format.bits
        if self.layout.family == "lookup":
            return value * T.broadcast(T.float32(2), 16) - T.broadcast(T.float32(2**bits - 1), 16)
        bias = self.target.code_bias(bits)
        return value - T.broadcast(T.float32(bias), 16) if bias else value

    def _group_sums(
        self, chosen: Sequence[Expr], block: Expr, g: Expr, units: int, tiles: range, q: Any, packed: Any
    ) -> Callable[[int, int], Expr]:
        """Emit the integer sums of one group; `f(i, tile)` reads them, int32x16."""
        layout, weights = self.layout, self.layout.format.plane_weights
        count, type_ = (1, "int32x16") if layout.family == "dot" else self.target.lookup_accumulators(weights)
        accs = _zeros(self.rows * len(tiles) * count, type_.split("x")[0])

        def at(i: int, tile: int, number: int = 0) -> tuple[Any, ...]:
            return (i * len(tiles) + tile - tiles[0]) * count + number, T.ramp(0, 1, 16)

        whole = layout.units % units == 0
        with T.serial(0, units if whole else T.min(units, layout.units - g * units)) as i:
            unit = T.bind(g * units + i)
            self._prefetch(packed, block, unit, tiles)
            emit = self._dot if layout.family == "dot" else self._lookup
            emit(chosen, block, unit, tiles, q, packed, accs, at)

        def read(i: int, tile: int) -> Expr:
            parts = [accs[at(i, tile, number)] for number in range(count)]
            return parts[0] if layout.family == "dot" else self.target.widen(parts, weights)

        return read

    def _prefetch(self, packed: Any, block: Expr, unit: Expr, tiles: range) -> None:
        vectors = self.layout.format.bits
        ahead = unit + max(1, _PREFETCH_BYTES // (64 * TILES * vectors))
        for vector in range(vectors):
            for tile in tiles:
                address = T.address_of(packed[block, ahead, vector, 64 * tile])
                T.evaluate(T.call_intrin("void", "tirx.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))

    def _dot(
        self, chosen: Sequence[Expr], block: Expr, unit: Expr, tiles: range, q: Any, packed: Any, accs: Any, at: Any
    ) -> None:
        bits = self.layout.format.bits
        for quad in range(8):
            for tile in tiles:
                codes: Expr = None
                for part in quad_fields(bits, quad):
                    piece = field(packed[block, unit, part.vector, T.ramp(64 * tile, 1, 64)], part.shift, part.bits)
                    piece = piece << T.broadcast(T.uint8(part.place), 64) if part.place else piece
                    codes = piece if codes is None else codes | piece
                codes = T.bind(codes)
                for i, row in enumerate(chosen):
                    x = _loader(q, (row,), unit * UNIT + 4 * quad)
                    T.buffer_store(accs, self.target.dot(accs[at(i, tile)], codes, x, bits), at(i, tile))

    def _lookup(
        self, chosen: Sequence[Expr], block: Expr, unit: Expr, tiles: range, q: Any, packed: Any, accs: Any, at: Any
    ) -> None:
        weights = self.layout.format.plane_weights
        count, _ = self.target.lookup_accumulators(weights)
        order = sorted(set(weights))
        for plane, weight in enumerate(weights):
            number = order.index(weight) if count > 1 else 0
            for tile in tiles:
                vector = T.bind(packed[block, unit, plane, T.ramp(64 * tile, 1, 64)])
                for side in range(2):
                    index = T.bind(field(vector, 4 * side, 4))
                    for i, row in enumerate(chosen):
                        table = _loader(q, (row, unit * 2 + side), 0)
                        value = self.target.lookup(accs[at(i, tile, number)], index, table, weight)
                        T.buffer_store(accs, value, at(i, tile, number))

    def _finish(self, shift: Any, added: Any, row: Expr, columns: Expr, lanes: int) -> Callable[[Expr], Expr]:
        """From float32 sums to the result, at `columns`."""
        suffix = f"x{lanes}" if lanes > 1 else ""

        def finish(value: Expr) -> Expr:
            if shift is not None:
                value = value + T.Cast(f"float32{suffix}", shift[columns])
            value = T.Cast(self.dtype + suffix, value) if self.dtype != "float32" else value
            if added is None:
                return value
            value = T.Cast(f"float32{suffix}", value) + T.Cast(f"float32{suffix}", added[row, columns])
            return T.Cast(self.dtype + suffix, value)

        return finish


def _zeros(vectors: int, element: str, lanes: int = 16) -> Any:
    """A local buffer `[vectors, lanes]` of zeros; only ever indexed by constants, so that it lives in registers."""
    buffer = T.alloc_buffer((vectors, lanes), element, scope="local")
    zero = tirx.const(0, element)
    for i in range(vectors):
        at = T.ramp(0, 1, lanes) if lanes > 1 else 0
        T.buffer_store(buffer, T.broadcast(zero, lanes) if lanes > 1 else zero, [i, at])
    return buffer


def _loader(buffer: Any, prefix: tuple[Expr, ...], start: Expr) -> Callable[[Expr], Expr]:
    return lambda index: buffer[(*prefix, start + index)]
