"""Some rows of activations times a few tiles of weight rows: what all products with packed weights are made of.

Inside a group of columns the sum is of integers; at its end scale and zero point are applied once (MixPE;
docs/techniques.md, 1.1). The formulas are in `lowbit_linear.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import TILE_ROWS, Expr, quarters
from .packing import BLOCK_ROWS, QUADS, UNIT, quad_fields, quad_runs
from .registers import every, field, loader, zero_buffer
from .step import Step
from .triple_step import triple_sums
from .vector_math import rounded

TILES = BLOCK_ROWS // TILE_ROWS
_ALL = T.ramp(0, 1, TILE_ROWS)


def quad_codes(bits: int, quad: int, load: Callable[[int], Expr]) -> Expr:
    """uint8x64: the codes of four columns in the packed form of the dot family; `load(vector)` reads its vectors."""
    codes: Expr = None
    for part in quad_fields(bits, quad):
        piece = field(load(part.vector), part.shift, part.bits, part.place)
        codes = piece if codes is None else codes | piece
    return codes


Sums = list[list[Any]]
"""`sums[i][number]`: float32x16 in a buffer, the products of row `chosen[i]` with tile `tiles[number]`."""


@dataclass(frozen=True)
class ProductStep(Step):
    """A step that can be multiplied, scaled and stored."""

    def sums(self) -> Sums:
        """Emit the reduction over all groups."""
        sums = self.zeros()
        # Per channel, scale and zero point are the same for all groups: they are applied once, at the end.
        late = self.layout.per_channel
        zero_points = self.operands.zeros is not None
        moments = [zero_buffer("float32", 1) for _ in self.chosen] if late and zero_points else []
        with T.serial(0, -(-self.layout.units * UNIT // self.layout.activation_group)) as g:
            totals = self.add_group(sums, g, late)
            for moment, value in zip(moments, totals, strict=False):
                T.buffer_store(moment, moment[0] + value, [0])
        for number, tile in enumerate(self.tiles if late else []):
            s = T.bind(self.scale_of(0, tile))
            for i, of_row in enumerate(sums):
                value = of_row[number][_ALL]
                if moments:
                    value = value - self.zero_point_of(0, tile) * _broadcast(moments[i][0])
                T.buffer_store(of_row[number], value * s, [_ALL])
        return sums

    def zeros(self) -> Sums:
        """Accumulators to begin with."""
        return [[zero_buffer("float32") for _ in self.tiles] for _ in self.chosen]

    def add_group(self, sums: Sums, g: Expr, late: bool = False) -> list[Expr]:
        """Emit what one group of columns adds to `sums`, with `late` short of the weight's scales and stored zero
        points; what these zero points multiply, for every row."""
        zero_points = self.operands.zeros is not None
        scale_group = T.int32(0) if self.layout.per_channel else g
        # s' = s / 2 after symmetrisation: halved here, once a row, which is exact.
        half = T.float32(0.5 if self.family == "lookup" else 1)
        factors = [T.bind(self.operands.scale[row, g] * half) for row in self.chosen]
        totals = [T.bind(self._total(row, g, factor)) for row, factor in zip(self.chosen, factors, strict=True)]
        for number, (tile, of_tile) in enumerate(zip(self.tiles, self._group_sums(g), strict=True)):
            s = None if late else T.bind(self.scale_of(scale_group, tile))
            z = None if late or not zero_points else T.bind(self.zero_point_of(scale_group, tile))
            for i, acc in enumerate(of_tile):
                value = T.Cast("float32x16", acc) * _broadcast(factors[i])
                if z is not None:
                    value = value - z * _broadcast(totals[i])
                elif not zero_points and self._fixed_zero_point:
                    value = value - _broadcast(totals[i] * T.float32(self._fixed_zero_point))
                value = value if s is None else value * s
                T.buffer_store(sums[i][number], sums[i][number][_ALL] + value, [_ALL])
        return totals

    def store(self, sums: Sums, shift: Any, added: Any, out: Any, origin: Expr = 0) -> None:
        """Emit bias, residual, rounding and the stores; rows of the block from N on are left out. `origin`: the row of
        the weight that is column 0 of `out`."""
        n = self.layout.n

        def finish(value: Expr, row: Expr, columns: Expr, lanes: int) -> None:
            suffix = f"x{lanes}" if lanes > 1 else ""
            if shift is not None:
                value = value + T.Cast(f"float32{suffix}", shift[columns])
            if added is not None:
                value = rounded(value, self.dtype, lanes) + T.Cast(f"float32{suffix}", added[row, columns])
            T.buffer_store(out, T.Cast(self.dtype + suffix, value), [row, columns])

        for row, of_row in zip(self.chosen, sums, strict=True):
            for tile, buffer in zip(self.tiles, of_row, strict=True):
                first = self.block * BLOCK_ROWS + tile * TILE_ROWS
                if n % BLOCK_ROWS == 0:
                    finish(buffer[_ALL], row, T.ramp(first - origin, 1, 16), 16)
                    continue
                with T.If(first + TILE_ROWS <= n):
                    with T.Then():
                        finish(buffer[_ALL], row, T.ramp(first - origin, 1, 16), 16)
                    with T.Else():
                        # A copy: indexing `buffer` by a variable would force it out of registers.
                        tail = T.alloc_buffer((TILE_ROWS,), "float32")
                        T.buffer_store(tail, buffer[_ALL], [_ALL])
                        with T.serial(0, TILE_ROWS) as lane, T.If(first + lane < n), T.Then():
                            finish(tail[lane], row, first + lane - origin, 1)

    def _total(self, row: Expr, g: Expr, factor: Expr) -> Expr:
        """What zero points multiply: the sum of x over the group, for dot of x as it was quantised."""
        total = self.operands.total[row, g]
        if self.family == "dot":
            return factor * T.Cast("float32", total)
        return total * T.float32(0.5) if self.family == "lookup" else total

    @property
    def _fixed_zero_point(self) -> float:
        """The zero point of all groups in a format that stores none; 0 after symmetrisation."""
        if self.family in ("lookup", "triples"):
            return 0.0
        return self.layout.format.implicit_zero_point - self._code_bias

    def scale_of(self, g: Any, tile: Any) -> Expr:
        """Scales of a tile."""
        return self.isa.half_to_float(self.operands.scales[self.block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)

    def zero_point_of(self, g: Any, tile: Any) -> Expr:
        """Zero points of a tile: of codes as `VectorIsa.dot` sees them, or symmetrised (`z' = 2z + 1 - 2**bits`)."""
        value = self.isa.half_to_float(self.operands.zeros[self.block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)
        bits = self.layout.format.bits
        if self.family == "lookup":
            return value * _broadcast(T.float32(2)) - _broadcast(T.float32(2**bits - 1))
        return value - _broadcast(T.float32(self._code_bias))

    @property
    def _code_bias(self) -> int:
        return self.isa.code_bias(self.layout.format.bits) if self.family == "dot" else 0

    def _group_sums(self, g: Expr) -> list[list[Expr]]:
        """Emit the sums of one group; `result[number of tile][i]`: int32x16, or float32x16."""
        if self.family == "triples":
            return triple_sums(self, g)
        cls, most = ProductStep, self.isa.tiles_at_once(self.family, len(self.chosen))
        sums = {"dot": cls._dot_sums, "float": cls._float_sums, "lookup": cls._lookup_sums}[self.family]
        parts = [self.tiles[first : first + most] for first in range(0, len(self.tiles), most)]
        return [of_tile for tiles in parts for of_tile in sums(replace(self, tiles=tiles), g)]

    def _units(self, g: Expr, at_once: int = 1) -> tuple[Expr, Expr]:
        """First unit of group `g`, and how many times `at_once` of them are in it."""
        units = self.layout.activation_group // UNIT
        inside = units if self.layout.units % units == 0 else T.min(units, self.layout.units - g * units)
        return g * units, inside // at_once

    def _dot_sums(self, g: Expr) -> list[list[Expr]]:
        bits, units = self.layout.format.bits, self.layout.activation_group // UNIT
        count, element, calls = self.isa.dot_accumulators(bits)
        # Partial sums of few bits are folded into int32 as often as they must be, in equal steps where groups are.
        most = max(calls // QUADS, 1) if self.layout.units % units == 0 else 1
        at_once = next(n for n in range(min(most, units), 0, -1) if units % n == 0)
        whole = calls >= units * QUADS

        def add_unit(unit: Expr, accs: list[list[list[Any]]]) -> None:
            # All quads in a vector before the next tile: it need not wait in a register for the other tiles.
            for quads in quad_runs(bits):
                for tile, of_tile in zip(self.tiles, accs, strict=True):
                    for quad in quads:
                        self._dot_quad(unit, quad, tile, of_tile)

        def total(accs: list[Any]) -> Expr:
            return self.isa.dot_sum([acc[every(element)] for acc in accs], bits)

        if whole:
            accs = self.accumulators(count, element)
            first, inside = self._units(g)
            with T.serial(0, inside) as i:
                add_unit(T.bind(first + i), accs)
            return [[total(of_row) for of_row in of_tile] for of_tile in accs]
        totals = self.accumulators(1, "int32")
        first, inside = self._units(g, at_once)
        with T.serial(0, inside) as i:
            accs = self.accumulators(count, element)
            with T.serial(0, at_once) as j:
                add_unit(T.bind(first + i * at_once + j), accs)
            for of_tile, partial in zip(totals, accs, strict=True):
                for (buffer,), of_row in zip(of_tile, partial, strict=True):
                    T.buffer_store(buffer, buffer[_ALL] + total(of_row), [_ALL])
        return [[buffer[_ALL] for (buffer,) in of_tile] for of_tile in totals]

    def _float_sums(self, g: Expr) -> list[list[Expr]]:
        accs = self.accumulators(1, "float32")
        first, inside = self._units(g)
        with T.serial(0, inside) as i:
            unit = T.bind(first + i)
            for quad in range(QUADS):
                for tile, of_tile in zip(self.tiles, accs, strict=True):
                    codes = T.bind(self._codes(unit, quad, tile))
                    for column in range(4):
                        value = T.bind(T.Cast("float32x16", self._column(codes, column)))
                        for row, (acc,) in zip(self.chosen, of_tile, strict=True):
                            x = self.operands.q[row, unit * UNIT + 4 * quad + column]
                            T.buffer_store(acc, acc[_ALL] + value * _broadcast(x), [_ALL])
        return [[acc[_ALL] for (acc,) in of_tile] for of_tile in accs]

    def _column(self, codes: Expr, column: int) -> Expr:
        """int32x16: the codes of one of the four columns of a quad."""
        if self.layout.slot_order == "row":
            words = T.reinterpret("uint32x16", codes) >> T.broadcast(T.uint32(8 * column), TILE_ROWS)
            return T.reinterpret("int32x16", words & T.broadcast(T.uint32(255), TILE_ROWS))
        return T.Cast("int32x16", quarters(codes, "uint8")[column])

    def _lookup_sums(self, g: Expr) -> list[list[Expr]]:
        weights = self.layout.format.plane_weights
        sets, each, element = self.isa.lookup_accumulators(weights)
        accs = self.accumulators(sets * each, element, TILE_ROWS)
        first, inside = self._units(g)
        with T.serial(0, inside) as i:
            unit = T.bind(first + i)
            for vector in range(len(weights)):
                for tile, of_tile in zip(self.tiles, accs, strict=True):
                    self._lookup_vector(unit, vector, tile, of_tile)
        tables = inside * (UNIT // 4)

        def total(parts: list[Any]) -> Expr:
            return self.isa.lookup_sum([part[_ALL] for part in parts], weights, tables)

        return [[total(of_row) for of_row in of_tile] for of_tile in accs]

    def _vector(self, unit: Expr, vector: int, tile: Any) -> Expr:
        return self.operands.packed[self.block, unit, vector, T.ramp(64 * tile, 1, 64)]

    def _codes(self, unit: Expr, quad: int, tile: Any) -> Expr:
        if self.codes is not None:
            return self.codes(unit, quad, tile)
        for part in quad_fields(self.layout.format.bits, quad):
            if part.shift == 0:  # the first quad that reads the vector
                self.prefetch(unit, part.vector, 64 * tile)
        return quad_codes(self.layout.format.bits, quad, lambda vector: self._vector(unit, vector, tile))

    def _dot_quad(self, unit: Expr, quad: int, tile: Any, accs: list[list[Any]]) -> None:
        """Four columns of a tile, for every chosen row."""
        bits = self.layout.format.bits
        element = self.isa.dot_accumulators(bits)[1]
        codes = T.bind(self._codes(unit, quad, tile))
        for row, of_row in zip(self.chosen, accs, strict=True):
            x = loader(self.operands.q, (row,), unit * UNIT + 4 * quad)
            results = self.isa.dot([acc[every(element)] for acc in of_row], codes, x, bits)
            for acc, result in zip(of_row, results, strict=True):
                T.buffer_store(acc, result, [every(element)])

    def _lookup_vector(self, unit: Expr, vector: int, tile: Any, of_tile: list[list[Any]]) -> None:
        """One vector of a unit of a tile, for every chosen row: a bit plane, or half of two in pair order."""
        all_weights = self.layout.format.plane_weights
        pair = self.layout.slot_order == "pair"
        weights = all_weights[vector // 2 * 2 :][:2] if pair else all_weights[vector : vector + 1]
        sets, each, _ = self.isa.lookup_accumulators(all_weights)
        number = min(vector // 2 if pair else sorted(set(all_weights)).index(weights[0]), sets - 1)
        self.prefetch(unit, vector, 64 * tile)
        packed = T.bind(self._vector(unit, vector, tile))
        for side in range(2):
            index = T.bind(field(packed, 4 * side, 4))
            for row, of_row in zip(self.chosen, of_tile, strict=True):
                accs = of_row[each * number :][:each]
                table = loader(self.operands.q, (row, unit * 2 + side), 32 * (vector % 2) if pair else 0)
                results = self.isa.lookup([acc[_ALL] for acc in accs], index, table, weights)
                for acc, result in zip(accs, results, strict=True):
                    T.buffer_store(acc, result, [_ALL])


def _broadcast(value: Expr) -> Expr:
    return T.broadcast(value, TILE_ROWS)
