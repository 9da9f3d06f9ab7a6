"""Linear layers on packed low-bit weights, for the few rows of activations of a decode step.

One task multiplies a block of 64 weight rows, read strictly in order, with all rows of activations. Inside a group of
columns the sum is of integers; at its end scale and zero point are applied once (MixPE; PAPERS.md section 1):

    dot     out[n] = sum_g s_g[n] * (xs_g * acc - z_g[n] * xs_g * sum(q))        acc = sum of code * q
    lookup  out[n] = sum_g s_g[n]/2 * (ts_g * acc - z'_g[n] * sum(x))            acc = sum of plane weight * table entry
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
from .vector_math import rounded

TILES = BLOCK_ROWS // TILE_ROWS
_PREFETCH_BYTES = 4096
_ALL = T.ramp(0, 1, TILE_ROWS)


@cache
def low_bit_linear(
    layout: PackedLayout, target: Target, m: int | None, dtype: str, bias: str | None = None, residual: bool = False
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])`.

    `out = x W^T (+ bias) (+ residual)`; product and bias are rounded once, then the residual is added and rounded. q,
    scale and total are the results of `activations.precompute` for `layout.activation_group`. `dtype`: of out and
    residual; `bias`: the dtype of the bias, if there is one. `m` None: any number of rows."""
    rows: Any = tirx.Var("m", "int64") if m is None else m
    at_once = target.rows_at_once if m is None else -(-m // -(-m // target.rows_at_once))
    zero_points = layout.format.has_zero_points

    def body(q: Any, scale: Any, total: Any, packed: Any, scales: Any, *rest: Any) -> None:
        *optional, out = rest
        zeros, shift, added = (optional.pop(0) if given else None for given in (zero_points, bias, residual))
        with T.parallel(0, layout.blocks) as block:
            if at_once == m:
                chosen = [T.int32(i) for i in range(at_once)]
                step = _Step(layout, target, dtype, block, chosen, q, scale, total, packed, scales, zeros)
                step.store(step.sums(), shift, added, out)
                return
            with T.serial(0, (rows + at_once - 1) // at_once) as chunk:
                # A chunk that is not full computes the last row more than once, with the same result.
                chosen = [T.bind(T.min(chunk * at_once + i, rows - 1)) for i in range(at_once)]
                step = _Step(layout, target, dtype, block, chosen, q, scale, total, packed, scales, zeros)
                step.store(step.sums(), shift, added, out)

    arguments = [
        *precompute_outputs(layout.family, layout.k, layout.activation_group, rows),
        (layout.packed_shape, "uint8"),
        *[(layout.scales_shape, "float16")] * (2 if zero_points else 1),
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
class _Step:
    """One block of weight rows times the `chosen` rows of activations."""

    layout: PackedLayout
    target: Target
    dtype: str
    block: Expr
    chosen: Sequence[Expr]
    q: Any
    scale: Any
    total: Any
    packed: Any
    scales: Any
    zeros: Any

    def sums(self) -> list[list[Any]]:
        """Emit the reduction; `result[i][tile]`: float32x16 of activation row i."""
        layout, count = self.layout, len(self.chosen)
        sums = [[_zero_buffer("float32") for _ in range(TILES)] for _ in range(count)]
        # Per channel, scale and zero point are the same for all groups: they are applied once, at the end.
        late = layout.per_channel
        moments = [_zero_buffer("float32", 1) for _ in range(count)] if late and self.zeros is not None else []
        with T.serial(0, -(-layout.units * UNIT // layout.activation_group)) as g:
            factors = [T.bind(self.scale[row, g]) for row in self.chosen]
            totals = [T.bind(self._total(row, g, factor)) for row, factor in zip(self.chosen, factors, strict=True)]
            for moment, value in zip(moments, totals, strict=False):
                T.buffer_store(moment, moment[0] + value, [0])
            for tile, of_tile in enumerate(self._group_sums(g)):
                s = None if late else T.bind(self._scale(g, tile))
                z = None if late or self.zeros is None else T.bind(self._zero_point(g, tile))
                for i, acc in enumerate(of_tile):
                    value = T.Cast("float32x16", acc) * _broadcast(factors[i])
                    if z is not None:
                        value = value - z * _broadcast(totals[i])
                    elif self.zeros is None and self._fixed_zero_point:
                        value = value - _broadcast(totals[i] * T.float32(self._fixed_zero_point))
                    value = value if s is None else value * s
                    T.buffer_store(sums[i][tile], sums[i][tile][_ALL] + value, [_ALL])
        for tile in range(TILES if late else 0):
            s = T.bind(self._scale(0, tile))
            for i in range(count):
                value = sums[i][tile][_ALL]
                if moments:
                    value = value - self._zero_point(0, tile) * _broadcast(moments[i][0])
                T.buffer_store(sums[i][tile], value * s, [_ALL])
        return sums

    def store(self, sums: list[list[Any]], shift: Any, added: Any, out: Any) -> None:
        """Emit bias, residual, rounding and the stores; rows of the block from N on are left out."""
        n = self.layout.n

        def finish(value: Expr, row: Expr, columns: Expr, lanes: int) -> None:
            suffix = f"x{lanes}" if lanes > 1 else ""
            if shift is not None:
                value = value + T.Cast(f"float32{suffix}", shift[columns])
            if added is not None:
                value = rounded(value, self.dtype, lanes) + T.Cast(f"float32{suffix}", added[row, columns])
            T.buffer_store(out, T.Cast(self.dtype + suffix, value), [row, columns])

        for row, of_row in zip(self.chosen, sums, strict=True):
            for tile, buffer in enumerate(of_row):
                first = self.block * BLOCK_ROWS + tile * TILE_ROWS
                if n % BLOCK_ROWS == 0:
                    finish(buffer[_ALL], row, T.ramp(first, 1, 16), 16)
                    continue
                with T.If(first + TILE_ROWS <= n):
                    with T.Then():
                        finish(buffer[_ALL], row, T.ramp(first, 1, 16), 16)
                    with T.Else():
                        # A copy: indexing `buffer` by a variable would force it out of registers.
                        tail = T.alloc_buffer((TILE_ROWS,), "float32")
                        T.buffer_store(tail, buffer[_ALL], [_ALL])
                        with T.serial(0, TILE_ROWS) as lane, T.If(first + lane < n), T.Then():
                            finish(tail[lane], row, first + lane, 1)

    def _total(self, row: Expr, g: Expr, factor: Expr) -> Expr:
        """What zero points multiply: the sum of x over the group, for dot of x as it was quantised."""
        total = self.total[row, g]
        return factor * T.Cast("float32", total) if self.layout.family == "dot" else total

    @property
    def _fixed_zero_point(self) -> float:
        """The zero point of all groups in a format that stores none; 0 after symmetrisation."""
        if self.layout.family == "lookup":
            return 0.0
        return self.layout.format.implicit_zero_point - self.target.code_bias(self.layout.format.bits)

    def _scale(self, g: Any, tile: int) -> Expr:
        """Scales of a tile, halved for lookup (`s' = s / 2`)."""
        value = self.target.half_to_float(self.scales[self.block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)
        return value * _broadcast(T.float32(0.5)) if self.layout.family == "lookup" else value

    def _zero_point(self, g: Any, tile: int) -> Expr:
        """Zero points of a tile: of the codes as `Target.dot` sees them, or symmetrised (`z' = 2z + 1 - 2**bits`)."""
        value = self.target.half_to_float(self.zeros[self.block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)
        bits = self.layout.format.bits
        if self.layout.family == "lookup":
            return value * _broadcast(T.float32(2)) - _broadcast(T.float32(2**bits - 1))
        return value - _broadcast(T.float32(self.target.code_bias(bits)))

    def _group_sums(self, g: Expr) -> list[list[Expr]]:
        """Emit the integer sums of one group; `result[tile][i]`: int32x16."""
        layout, weights = self.layout, self.layout.format.plane_weights
        dot = layout.family == "dot"
        count, element = (1, "int32") if dot else self.target.lookup_accumulators(weights)
        accs = [[[_zero_buffer(element) for _ in range(count)] for _ in self.chosen] for _ in range(TILES)]
        units = layout.activation_group // UNIT
        inside = units if layout.units % units == 0 else T.min(units, layout.units - g * units)
        with T.serial(0, inside) as i:
            unit = T.bind(g * units + i)
            self._prefetch(unit)
            for quad in range(8 if dot else 0):
                for tile, of_tile in enumerate(accs):
                    self._dot_quad(unit, quad, tile, of_tile)
            for plane in range(0 if dot else len(weights)):
                for tile, of_tile in enumerate(accs):
                    self._lookup_plane(unit, plane, tile, of_tile)

        def integer_sum(of_row: list[Any]) -> Expr:
            parts = [part[_ALL] for part in of_row]
            return parts[0] if dot else self.target.widen(parts, weights)

        return [[integer_sum(of_row) for of_row in of_tile] for of_tile in accs]

    def _prefetch(self, unit: Expr) -> None:
        vectors = self.layout.format.bits
        ahead = unit + max(1, _PREFETCH_BYTES // (64 * TILES * vectors))
        for vector in range(vectors):
            for tile in range(TILES):
                address = T.address_of(self.packed[self.block, ahead, vector, 64 * tile])
                T.evaluate(T.call_intrin("void", "tirx.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))

    def _vector(self, unit: Expr, vector: int, tile: int) -> Expr:
        return self.packed[self.block, unit, vector, T.ramp(64 * tile, 1, 64)]

    def _dot_quad(self, unit: Expr, quad: int, tile: int, accs: list[list[Any]]) -> None:
        """Four columns of a tile, for every chosen row."""
        bits = self.layout.format.bits
        codes: Expr = None
        for part in quad_fields(bits, quad):
            piece = field(self._vector(unit, part.vector, tile), part.shift, part.bits)
            codes = piece if codes is None else codes | piece << T.broadcast(T.uint8(part.place), 64)
        codes = T.bind(codes)
        for row, (acc,) in zip(self.chosen, accs, strict=True):
            x = _loader(self.q, (row,), unit * UNIT + 4 * quad)
            T.buffer_store(acc, self.target.dot(acc[_ALL], codes, x, bits), [_ALL])

    def _lookup_plane(self, unit: Expr, plane: int, tile: int, accs: list[list[Any]]) -> None:
        """One bit plane of a unit of a tile, for every chosen row."""
        weights = self.layout.format.plane_weights
        number = sorted(set(weights)).index(weights[plane])
        vector = T.bind(self._vector(unit, plane, tile))
        for side in range(2):
            index = T.bind(field(vector, 4 * side, 4))
            for row, of_row in zip(self.chosen, accs, strict=True):
                acc = of_row[number if len(of_row) > 1 else 0]
                table = _loader(self.q, (row, unit * 2 + side), 0)
                T.buffer_store(acc, self.target.lookup(acc[_ALL], index, table, weights[plane]), [_ALL])


def _zero_buffer(element: str, lanes: int = TILE_ROWS) -> Any:
    """A buffer of zeros that LLVM keeps in a register: small, in the default scope, because TVM takes larger buffers
    and all of scope "local" from the heap."""
    buffer = T.alloc_buffer((lanes,), element)
    zero = tirx.const(0, element)
    T.buffer_store(buffer, T.broadcast(zero, lanes) if lanes > 1 else zero, [T.ramp(0, 1, lanes) if lanes > 1 else 0])
    return buffer


def _broadcast(value: Expr) -> Expr:
    return T.broadcast(value, TILE_ROWS)


def _loader(buffer: Any, prefix: tuple[Expr, ...], start: Expr) -> Callable[[Expr], Expr]:
    return lambda index: buffer[(*prefix, start + index)]
