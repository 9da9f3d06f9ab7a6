"""What weights in triples (`triples.py`) add up to in one group of columns: table entries, added or subtracted."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import TILE_ROWS, Expr, VectorIsa
from .registers import every, field, loader, prefetch
from .step import Step
from .triples import FOURS, LAST_VECTOR, SIGNED_VECTORS, SPAN, TRIPLES, Bits, index_bits, sign_bit
from .vector_math import constants

_ALL = T.ramp(0, 1, TILE_ROWS)


def triple_sums(step: Step, g: Expr) -> list[list[Expr]]:
    """Emit the sums of group `g`; `result[number of tile][i]`: int32x16."""
    return (_by_fours if step.layout.slot_order == "row" else _by_pairs)(step, g)


def _spans(step: Step, g: Expr) -> tuple[Expr, Expr]:
    """First span of group `g`, and how many are in it."""
    spans = step.layout.activation_group // SPAN
    return g * spans, T.min(spans, step.layout.k // SPAN - g * spans)


# Row order: four triples of 16 rows at a time -------------------------------------------------------------------------


class Four(NamedTuple):
    """Four triples of 16 rows: their number in the span, indices, and which bits of which bytes are their signs."""

    number: int
    index: Expr
    signs: Expr
    bits: list[int]


def fours(isa: VectorIsa, packed: Any, block: Expr, span: Expr, tile: Any, prefetch_bytes: int) -> Iterator[Four]:
    """Emit the loads of the triples of a tile in row order, and give them in order; slot 3 of the last is no triple."""

    def vector(number: Expr, start: Expr = 0) -> Expr:
        prefetch(prefetch_bytes, packed, block, span, number, start)
        return packed[block, span, number, T.ramp(start, 1, 64)]

    whole = SIGNED_VECTORS * tile
    signs = T.bind(vector(whole + SIGNED_VECTORS - 1))
    # The last vector of the block is read from its start: nothing may be read after it.
    start = T.bind(T.min(48 * tile, T.int32(2 * 64)))
    rest = T.bind(vector(LAST_VECTOR, start))

    def spread(slot_3: int) -> Expr:
        """Three bytes a row to four, the last one a copy."""
        lanes = constants([3 * row + slot for row in range(TILE_ROWS) for slot in (0, 1, 2, slot_3)], "uint8")
        return T.bind(isa.permute_bytes(rest, lanes + T.broadcast(T.Cast("uint8", 48 * tile - start), 64)))

    both, last = signs, [spread(0), spread(1)]
    for number in range(FOURS):
        if number % 2 == 0:
            both = T.bind(vector(whole + number // 2)) if number < FOURS - 1 else last[0]
        index = T.bind(field(both, 4 * (number % 2), 4))
        if number < 8:
            yield Four(number, index, signs, [1 << number] * 4)
        else:
            slot_3 = 128 if number < FOURS - 1 else 0
            yield Four(number, index, last[number % 2], [1 << number - 4] * 3 + [slot_3])


def _by_fours(step: Step, g: Expr) -> list[list[Expr]]:
    # Two sums a tile, in turns: additions to one would wait for each other.
    accs, all_ = step.accumulators(2, "int32"), every("int32")
    first, inside = _spans(step, g)
    with T.serial(0, inside) as i:
        span = T.bind(first + i)
        for tile, of_tile in zip(step.tiles, accs, strict=True):
            for four in fours(step.isa, step.operands.packed, step.block, span, tile, step.prefetch_bytes):
                for row, turns in zip(step.chosen, of_tile, strict=True):
                    acc = turns[four.number % 2]
                    tables = loader(step.operands.q, (row, span, 4 * four.number), 0)
                    total = step.isa.signed_fours(acc[all_], four.index, four.signs, four.bits, tables)
                    T.buffer_store(acc, total, [all_])
    return [[even[all_] + odd[all_] for even, odd in of_tile] for of_tile in accs]


# Table order: two triples of 32 rows at a time ------------------------------------------------------------------------


def _by_pairs(step: Step, g: Expr) -> list[list[Expr]]:
    accs = step.accumulators(1, "int16", TILE_ROWS)
    first, inside = _spans(step, g)
    with T.serial(0, inside) as i:
        span = T.bind(first + i)
        with T.serial(0, TRIPLES // 8) as eight:  # those that share a byte of signs
            _look_up_pairs(step, span, 8 * eight, [[0, 1], [2, 3], [4, 5], [6, 7]], accs)
        _look_up_pairs(step, span, T.int32(0), [[40, 41], [42]], accs)
    sums: list[list[Expr]] = []
    for first_tile in range(0, len(step.tiles), 2):
        pairs = zip(*accs[first_tile : first_tile + 2], strict=True)
        both = [step.isa.signed_sum([low[_ALL], high[_ALL]]) for (low,), (high,) in pairs]
        sums += [list(of_tile) for of_tile in zip(*both, strict=True)]
    return sums


def _look_up_pairs(step: Step, span: Expr, first: Expr, pairs: list[list[int]], accs: list[list[list[Any]]]) -> None:
    """Triples of a span, by twos and counted from `first` (a multiple of 8), for every chosen row.

    Two tiles at a time: the accumulators of four do not fit in 16 registers."""
    triples = [triple for pair in pairs for triple in pair]
    of_indices = {index_bits(triple).byte for triple in triples}
    of_signs = {sign_bit(triple).byte for triple in triples} - of_indices
    for byte in (*(first // 2 + b for b in sorted(of_indices)), *(first // 8 + b for b in sorted(of_signs))):
        step.prefetch(span, byte)
    for half_block in range(0, len(step.tiles), 2):
        rows = T.ramp(step.tiles[half_block] * TILE_ROWS, 1, 2 * TILE_ROWS)
        for pair in pairs:
            indices = [T.bind(_bits(step, span, first // 2, index_bits(t), rows, 4)) for t in pair]
            signs = [T.bind(_bits(step, span, first // 8, sign_bit(t), rows, 1)) for t in pair]
            for i, row in enumerate(step.chosen):
                tables = [loader(step.operands.q, (row, span, first + triple), 0) for triple in pair]
                buffers = [of_tile[i][0] for of_tile in accs[half_block : half_block + 2]]
                results = step.isa.signed_lookup([b[_ALL] for b in buffers], indices, signs, tables)
                for buffer, result in zip(buffers, results, strict=True):
                    T.buffer_store(buffer, result, [_ALL])


def _bits(step: Step, span: Expr, first: Expr, at: Bits, rows: Expr, bits: int) -> Expr:
    """uint8x32: an index of 4 bits in the low bits of every byte, or a sign in its top bit.

    Shifted as 16-bit words: what crosses over from a neighbour is masked, or stays below the sign."""
    vector = step.operands.packed[step.block, span, first + at.byte, rows]
    words = T.reinterpret("uint16x16", vector)
    if bits == 1:
        return T.reinterpret("uint8x32", words << T.broadcast(T.uint16(7 - at.shift), 16))
    return T.reinterpret("uint8x32", words >> T.broadcast(T.uint16(at.shift), 16)) & T.broadcast(T.uint8(15), 32)
