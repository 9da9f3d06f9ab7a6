"""Some rows of activations times a few tiles of weight rows: what all products with packed weights are made of.

Inside a group of columns the sum is of integers; at its end scale and zero point are applied once (MixPE; PAPERS.md
section 1). The formulas are in `lowbit_linear.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ..targets.base import TILE_ROWS, Activations, Expr, Target, quarters
from .packing import BLOCK_ROWS, UNIT, PackedLayout, quad_fields
from .triples import SPAN, SPAN_BYTES, TRIPLES, Bits, index_bits, sign_bit
from .vector_math import rounded

TILES = BLOCK_ROWS // TILE_ROWS
QUADS = UNIT // 4
LANES = {"int16": 32, "int32": 16, "float32": 16}
"""Elements of 64 bytes, which is what an accumulator takes."""
_PREFETCH_BYTES = 4096
_ALL = T.ramp(0, 1, TILE_ROWS)


def field(vector: Expr, shift: int, bits: int) -> Expr:
    """`bits` bits of every byte of a uint8x64, from bit `shift`. Shifted as 16-bit words: x86 has no shift of bytes."""
    if shift:
        words = T.reinterpret("uint16x32", vector) >> T.broadcast(T.uint16(shift), 32)
        vector = T.reinterpret("uint8x64", words)
    return vector if bits == 8 else vector & T.broadcast(T.uint8(2**bits - 1), 64)


def quad_codes(bits: int, quad: int, load: Callable[[int], Expr]) -> Expr:
    """uint8x64: the codes of four columns in the packed form of the dot family; `load(vector)` reads its vectors."""
    codes: Expr = None
    for part in quad_fields(bits, quad):
        piece = field(load(part.vector), part.shift, part.bits)
        codes = piece if codes is None else codes | piece << T.broadcast(T.uint8(part.place), 64)
    return codes


class Operands(NamedTuple):
    """Buffers of a product: quantised activations (`activations.py`) and a packed weight (`packing.py`)."""

    q: Any
    scale: Any
    total: Any
    packed: Any
    scales: Any
    zeros: Any = None


Sums = list[list[Any]]
"""`sums[i][number]`: float32x16 in a buffer, the products of row `chosen[i]` with tile `tiles[number]`."""
Codes = Callable[[Expr, int, Expr], Expr]
"""`codes(unit, quad, tile)`: uint8x64, the codes of four columns of a tile's rows."""


@dataclass(frozen=True)
class ProductStep:
    """`chosen` rows of activations times `tiles` (numbers 0..3) of one block of weight rows.

    `family`: of the activations (dot and float read the same packed weight). `codes`: where these two find unpacked
    codes; None: in the packed weight."""

    layout: PackedLayout
    target: Target
    dtype: str
    family: Activations
    block: Expr
    tiles: Sequence[Any]
    chosen: Sequence[Expr]
    operands: Operands
    codes: Codes | None = None

    def sums(self) -> Sums:
        """Emit the reduction over all groups."""
        sums = self.zeros()
        # Per channel, scale and zero point are the same for all groups: they are applied once, at the end.
        late = self.layout.per_channel
        zero_points = self.operands.zeros is not None
        moments = [_zero_buffer("float32", 1) for _ in self.chosen] if late and zero_points else []
        with T.serial(0, -(-self.layout.units * UNIT // self.layout.activation_group)) as g:
            totals = self.add_group(sums, g, late)
            for moment, value in zip(moments, totals, strict=False):
                T.buffer_store(moment, moment[0] + value, [0])
        for number, tile in enumerate(self.tiles if late else []):
            s = T.bind(self._scale(0, tile))
            for i, of_row in enumerate(sums):
                value = of_row[number][_ALL]
                if moments:
                    value = value - self._zero_point(0, tile) * _broadcast(moments[i][0])
                T.buffer_store(of_row[number], value * s, [_ALL])
        return sums

    def zeros(self) -> Sums:
        """Accumulators to begin with."""
        return [[_zero_buffer("float32") for _ in self.tiles] for _ in self.chosen]

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
            s = None if late else T.bind(self._scale(scale_group, tile))
            z = None if late or not zero_points else T.bind(self._zero_point(scale_group, tile))
            for i, acc in enumerate(of_tile):
                value = T.Cast("float32x16", acc) * _broadcast(factors[i])
                if z is not None:
                    value = value - z * _broadcast(totals[i])
                elif not zero_points and self._fixed_zero_point:
                    value = value - _broadcast(totals[i] * T.float32(self._fixed_zero_point))
                value = value if s is None else value * s
                T.buffer_store(sums[i][number], sums[i][number][_ALL] + value, [_ALL])
        return totals

    def store(self, sums: Sums, shift: Any, added: Any, out: Any) -> None:
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
            for tile, buffer in zip(self.tiles, of_row, strict=True):
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

    def _scale(self, g: Any, tile: Any) -> Expr:
        """Scales of a tile."""
        return self.target.half_to_float(self.operands.scales[self.block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)

    def _zero_point(self, g: Any, tile: Any) -> Expr:
        """Zero points of a tile: of the codes as `Target.dot` sees them, or symmetrised (`z' = 2z + 1 - 2**bits`)."""
        value = self.target.half_to_float(self.operands.zeros[self.block, g, T.ramp(tile * TILE_ROWS, 1, 16)], 16)
        bits = self.layout.format.bits
        if self.family == "lookup":
            return value * _broadcast(T.float32(2)) - _broadcast(T.float32(2**bits - 1))
        return value - _broadcast(T.float32(self._code_bias))

    @property
    def _code_bias(self) -> int:
        return self.target.code_bias(self.layout.format.bits) if self.family == "dot" else 0

    def _group_sums(self, g: Expr) -> list[list[Expr]]:
        """Emit the sums of one group; `result[number of tile][i]`: int32x16, or float32x16."""
        emit = {"dot": self._dot_sums, "float": self._float_sums, "lookup": self._lookup_sums}
        return {**emit, "triples": self._triple_sums}[self.family](g)

    def _units(self, g: Expr, at_once: int = 1) -> tuple[Expr, Expr]:
        """First unit of group `g`, and how many times `at_once` of them are in it."""
        units = self.layout.activation_group // UNIT
        inside = units if self.layout.units % units == 0 else T.min(units, self.layout.units - g * units)
        return g * units, inside // at_once

    def _accumulators(self, count: int, element: str, lanes: int | None = None) -> list[list[list[Any]]]:
        return [[[_zero_buffer(element, lanes) for _ in range(count)] for _ in self.chosen] for _ in self.tiles]

    def _dot_sums(self, g: Expr) -> list[list[Expr]]:
        bits, units = self.layout.format.bits, self.layout.activation_group // UNIT
        count, element, calls = self.target.dot_accumulators(bits)
        # Partial sums of few bits are folded into int32 as often as they must be, in equal steps where groups are.
        most = max(calls // QUADS, 1) if self.layout.units % units == 0 else 1
        at_once = next(n for n in range(min(most, units), 0, -1) if units % n == 0)
        whole = calls >= units * QUADS

        def add_unit(unit: Expr, accs: list[list[list[Any]]]) -> None:
            self._prefetch(unit)
            for quad in range(QUADS):
                for tile, of_tile in zip(self.tiles, accs, strict=True):
                    self._dot_quad(unit, quad, tile, of_tile)

        def total(accs: list[Any]) -> Expr:
            return self.target.dot_sum([acc[_every(element)] for acc in accs], bits)

        if whole:
            accs = self._accumulators(count, element)
            first, inside = self._units(g)
            with T.serial(0, inside) as i:
                add_unit(T.bind(first + i), accs)
            return [[total(of_row) for of_row in of_tile] for of_tile in accs]
        totals = self._accumulators(1, "int32")
        first, inside = self._units(g, at_once)
        with T.serial(0, inside) as i:
            accs = self._accumulators(count, element)
            with T.serial(0, at_once) as j:
                add_unit(T.bind(first + i * at_once + j), accs)
            for of_tile, partial in zip(totals, accs, strict=True):
                for (buffer,), of_row in zip(of_tile, partial, strict=True):
                    T.buffer_store(buffer, buffer[_ALL] + total(of_row), [_ALL])
        return [[buffer[_ALL] for (buffer,) in of_tile] for of_tile in totals]

    def _float_sums(self, g: Expr) -> list[list[Expr]]:
        accs = self._accumulators(1, "float32")
        first, inside = self._units(g)
        with T.serial(0, inside) as i:
            unit = T.bind(first + i)
            self._prefetch(unit)
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
        sets, each, element = self.target.lookup_accumulators(weights)
        accs = self._accumulators(sets * each, element, TILE_ROWS)
        first, inside = self._units(g)
        with T.serial(0, inside) as i:
            unit = T.bind(first + i)
            self._prefetch(unit)
            for vector in range(len(weights)):
                for tile, of_tile in zip(self.tiles, accs, strict=True):
                    self._lookup_vector(unit, vector, tile, of_tile)
        tables = inside * (UNIT // 4)

        def total(parts: list[Any]) -> Expr:
            return self.target.lookup_sum([part[_ALL] for part in parts], weights, tables)

        return [[total(of_row) for of_row in of_tile] for of_tile in accs]

    def _triple_sums(self, g: Expr) -> list[list[Expr]]:
        accs = self._accumulators(1, "int16", TILE_ROWS)
        spans = self.layout.activation_group // SPAN
        with T.serial(0, T.min(spans, self.layout.k // SPAN - g * spans)) as i:
            span = T.bind(g * spans + i)
            self._prefetch_span(span)
            with T.serial(0, TRIPLES // 8) as eight:  # those that share a byte of signs
                self._look_up_triples(span, 8 * eight, [[0, 1], [2, 3], [4, 5], [6, 7]], accs)
            self._look_up_triples(span, T.int32(0), [[40, 41], [42]], accs)
        sums: list[list[Expr]] = []
        for first in range(0, len(self.tiles), 2):
            pairs = zip(*accs[first : first + 2], strict=True)
            both = [self.target.signed_sum([low[_ALL], high[_ALL]]) for (low,), (high,) in pairs]
            sums += [list(of_tile) for of_tile in zip(*both, strict=True)]
        return sums

    def _look_up_triples(self, span: Expr, first: Expr, pairs: list[list[int]], accs: list[list[list[Any]]]) -> None:
        """Triples of a span, by twos and counted from `first` (a multiple of 8), for every chosen row.

        Two tiles at a time: the accumulators of four do not fit in 16 registers."""
        for half_block in range(0, len(self.tiles), 2):
            rows = T.ramp(self.tiles[half_block] * TILE_ROWS, 1, 2 * TILE_ROWS)
            for pair in pairs:
                indices = [T.bind(self._triple_bits(span, first // 2, index_bits(t), rows, 4)) for t in pair]
                signs = [T.bind(self._triple_bits(span, first // 8, sign_bit(t), rows, 1)) for t in pair]
                for i, row in enumerate(self.chosen):
                    tables = [_loader(self.operands.q, (row, span, first + triple), 0) for triple in pair]
                    buffers = [of_tile[i][0] for of_tile in accs[half_block : half_block + 2]]
                    results = self.target.signed_lookup([b[_ALL] for b in buffers], indices, signs, tables)
                    for buffer, result in zip(buffers, results, strict=True):
                        T.buffer_store(buffer, result, [_ALL])

    def _triple_bits(self, span: Expr, first: Expr, at: Bits, rows: Expr, bits: int) -> Expr:
        """uint8x32: an index of 4 bits in the low bits of every byte, or a sign in its top bit.

        Shifted as 16-bit words: what crosses over from a neighbour is masked, or stays below the sign."""
        vector = self.operands.packed[self.block, span, first + at.byte, rows]
        words = T.reinterpret("uint16x16", vector)
        if bits == 1:
            return T.reinterpret("uint8x32", words << T.broadcast(T.uint16(7 - at.shift), 16))
        return T.reinterpret("uint8x32", words >> T.broadcast(T.uint16(at.shift), 16)) & T.broadcast(T.uint8(15), 32)

    def _prefetch_span(self, span: Expr) -> None:
        ahead = span + max(1, _PREFETCH_BYTES // (SPAN_BYTES * BLOCK_ROWS))
        for b in range(SPAN_BYTES):
            address = T.address_of(self.operands.packed[self.block, ahead, b, 0])
            T.evaluate(T.call_intrin("void", "tirx.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))

    def _prefetch(self, unit: Expr) -> None:
        if self.codes is not None:
            return
        vectors = self.layout.format.bits
        ahead = unit + max(1, _PREFETCH_BYTES // (64 * TILES * vectors))
        for vector in range(vectors):
            for tile in range(TILES):
                address = T.address_of(self.operands.packed[self.block, ahead, vector, 64 * tile])
                T.evaluate(T.call_intrin("void", "tirx.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))

    def _vector(self, unit: Expr, vector: int, tile: Any) -> Expr:
        return self.operands.packed[self.block, unit, vector, T.ramp(64 * tile, 1, 64)]

    def _codes(self, unit: Expr, quad: int, tile: Any) -> Expr:
        if self.codes is not None:
            return self.codes(unit, quad, tile)
        return quad_codes(self.layout.format.bits, quad, lambda vector: self._vector(unit, vector, tile))

    def _dot_quad(self, unit: Expr, quad: int, tile: Any, accs: list[list[Any]]) -> None:
        """Four columns of a tile, for every chosen row."""
        bits = self.layout.format.bits
        element = self.target.dot_accumulators(bits)[1]
        codes = T.bind(self._codes(unit, quad, tile))
        for row, of_row in zip(self.chosen, accs, strict=True):
            x = _loader(self.operands.q, (row,), unit * UNIT + 4 * quad)
            results = self.target.dot([acc[_every(element)] for acc in of_row], codes, x, bits)
            for acc, result in zip(of_row, results, strict=True):
                T.buffer_store(acc, result, [_every(element)])

    def _lookup_vector(self, unit: Expr, vector: int, tile: Any, of_tile: list[list[Any]]) -> None:
        """One vector of a unit of a tile, for every chosen row: a bit plane, or half of two in pair order."""
        all_weights = self.layout.format.plane_weights
        pair = self.layout.slot_order == "pair"
        weights = all_weights[vector // 2 * 2 :][:2] if pair else all_weights[vector : vector + 1]
        sets, each, _ = self.target.lookup_accumulators(all_weights)
        number = min(vector // 2 if pair else sorted(set(all_weights)).index(weights[0]), sets - 1)
        packed = T.bind(self._vector(unit, vector, tile))
        for side in range(2):
            index = T.bind(field(packed, 4 * side, 4))
            for row, of_row in zip(self.chosen, of_tile, strict=True):
                accs = of_row[each * number :][:each]
                table = _loader(self.operands.q, (row, unit * 2 + side), 32 * (vector % 2) if pair else 0)
                results = self.target.lookup([acc[_ALL] for acc in accs], index, table, weights)
                for acc, result in zip(accs, results, strict=True):
                    T.buffer_store(acc, result, [_ALL])


def _every(element: str) -> Expr:
    """All lanes of a 64-byte vector."""
    return T.ramp(0, 1, LANES[element])


def _zero_buffer(element: str, lanes: int | None = None) -> Any:
    """A buffer of zeros (64 bytes unless told) that LLVM keeps in registers: small, in the default scope, because TVM
    takes larger buffers and all of scope "local" from the heap."""
    lanes = lanes or LANES[element]
    buffer = T.alloc_buffer((lanes,), element)
    zero = tirx.const(0, element)
    T.buffer_store(buffer, T.broadcast(zero, lanes) if lanes > 1 else zero, [T.ramp(0, 1, lanes) if lanes > 1 else 0])
    return buffer


def _broadcast(value: Expr) -> Expr:
    return T.broadcast(value, TILE_ROWS)


def _loader(buffer: Any, prefix: tuple[Expr, ...], start: Expr) -> Callable[[Expr], Expr]:
    return lambda index: buffer[(*prefix, start + index)]
