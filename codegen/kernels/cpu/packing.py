"""How a quantised weight lies in memory, read strictly sequentially by the kernels, and the kernels that put it there.

    packed [N/64][K/32][vectors][4 tiles][64 bytes]   uint8       N padded to 64 rows, K to 32 columns (one *unit*)
    scales [N/64][groups][64]                         float16     0 in padded rows
    zeros  [N/64][groups][64]                         float16     asymmetric formats only

`vectors` equals the bits. A 64-byte vector holds 16 rows x 4 slots (`slot_order`: see `targets/cpu/isa.py`); what a
slot holds is the family's choice. *lookup*: vector p is bit plane p (in pair order two vectors share two planes); the
low nibble of slot j is the index into the table of columns 4j..4j+3 of the unit, the high nibble into that of columns
16+4j... *dot*: slot j holds column j of each of 8 *quads* (4 columns), whose codes are packed 8/bits to a byte, lowest
field first; of 3 bits two to a byte, and the last two quads in what that leaves (`quad_fields`). *triples*, of ternary
weights: see `triples.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
import tvm
from tvm.script import tirx as T

from ....ir.errors import QuantizationError
from ....ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat
from ...select import Family
from ...targets.cpu import memory
from ...targets.cpu.host import host
from ...targets.cpu.isa import Expr, SlotOrder, VectorIsa
from . import triples

BLOCK_ROWS = 64
LAYOUT_VERSION = 3
"""Of packed weights on disk: what a byte means. Goes up with every change of it."""
UNIT = 32
"""Columns of one unit: the smallest stretch of K that is packed together."""
QUADS = UNIT // 4
"""Fours of columns in a unit."""
CHANNEL_ACTIVATION_GROUP = 128
"""Columns that share one activation scale when the weight has one scale per channel."""


@dataclass(frozen=True)
class PackedLayout:
    """The packed form of an `[n, k]` weight for one family of kernels."""

    family: Family
    format: WeightFormat
    n: int
    k: int
    slot_order: SlotOrder

    @classmethod
    def create(cls, family: Family, format: WeightFormat, n: int, k: int, isa: VectorIsa) -> "PackedLayout":
        """What `isa`'s kernels of `family` read; raises `QuantizationError` if the groups do not divide `k`."""
        format.groups(k)
        if family == "triples" and not triples.fits(format, k):
            raise QuantizationError(
                f"{format.describe()} weights of {k} columns do not pack in triples: they must be ternary, with "
                f"columns and groups that are multiples of {triples.SPAN}"
            )
        return cls(family, format, n, k, isa.order(family, format))

    @property
    def key(self) -> str:
        """Unique per layout, for `ParameterStore.packed`."""
        return f"{self.family}-{self.slot_order}-{self.format.describe()}-{self.n}x{self.k}"

    @property
    def blocks(self) -> int:
        """Blocks of 64 rows."""
        return -(-self.n // BLOCK_ROWS)

    @property
    def units(self) -> int:
        """Units of 32 columns."""
        return -(-self.k // UNIT)

    @property
    def groups(self) -> int:
        """Scale groups of the weight along K."""
        return self.format.groups(self.k)

    @property
    def per_channel(self) -> bool:
        """One scale per row."""
        return self.format.group_size == PER_CHANNEL

    @property
    def activation_group(self) -> int:
        """Columns that share one activation scale (a multiple of 32)."""
        return activation_group(self.format, self.k)

    @property
    def packed_shape(self) -> tuple[int, int, int, int]:
        """Shape of the packed uint8 tensor: `[N/64, K/32, vectors, 256]`; for triples `[N/64, K/128, 27, 64]`."""
        if self.family == "triples":
            return self.blocks, self.k // triples.SPAN, triples.SPAN_BYTES, BLOCK_ROWS
        return self.blocks, self.units, self.format.bits, 4 * BLOCK_ROWS

    @property
    def scales_shape(self) -> tuple[int, int, int]:
        """Shape of scales and zero points: `[N/64, groups, 64]`."""
        return self.blocks, self.groups, BLOCK_ROWS

    @property
    def buffers(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each buffer: packed, scales and, for asymmetric formats, zero points."""
        scales: tuple[tuple[int, ...], str] = (self.scales_shape, "float16")
        return [(self.packed_shape, "uint8"), *([scales] * (2 if self.format.has_zero_points else 1))]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(math.prod(shape) * (2 if dtype == "float16" else 1) for shape, dtype in self.buffers)

    def pack(self, weight: QuantizedWeight) -> list[torch.Tensor]:
        """`[packed, scales]` or `[packed, scales, zeros]`, contiguous and 64-byte aligned."""
        codes = weight.codes
        if codes.shape[1] != self.units * UNIT:
            codes = torch.nn.functional.pad(codes, (0, self.units * UNIT - codes.shape[1]))
        packed = memory.empty(self.packed_shape, torch.uint8)
        self._repack(codes.contiguous(), packed, unpack=False)
        parts = [weight.scales] if weight.zero_points is None else [weight.scales, weight.zero_points]
        return [packed, *(self._by_block(part) for part in parts)]

    def unpack(self, buffers: Sequence[torch.Tensor]) -> QuantizedWeight:
        """The exact inverse of `pack`."""
        codes = torch.empty(self.n, self.units * UNIT, dtype=torch.uint8)
        self._repack(codes, buffers[0], unpack=True)
        scales, *zeros = (
            b.permute(0, 2, 1).reshape(self.blocks * BLOCK_ROWS, self.groups)[: self.n] for b in buffers[1:]
        )
        return QuantizedWeight(codes[:, : self.k].contiguous(), scales, zeros[0] if zeros else None, self.format)

    def _by_block(self, values: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(self.blocks * BLOCK_ROWS, self.groups, dtype=torch.float16)
        padded[: self.n] = values
        by_block = padded.view(self.blocks, BLOCK_ROWS, self.groups).permute(0, 2, 1)
        return memory.empty(self.scales_shape, torch.float16).copy_(by_block)

    def _repack(self, codes: torch.Tensor, packed: torch.Tensor, unpack: bool) -> None:
        if self.family == "triples":
            triples.repack_kernel(self.slot_order, unpack)(codes, packed.flatten(2))
            return
        ternary = self.format.scheme == "ternary"
        kernel = _repack_kernel(self.family, self.format.bits, ternary, self.slot_order, unpack)
        kernel(codes, packed)


def activation_group(format: WeightFormat, k: int) -> int:
    """Columns that share one activation scale: the weight's group, or up to 128 for per-channel weights."""
    if format.group_size != PER_CHANNEL:
        return format.group_size
    return min(CHANNEL_ACTIVATION_GROUP, -(-k // UNIT) * UNIT)


@dataclass(frozen=True)
class Field:
    """Where `bits` bits of one quad's codes lie: in each byte of `vector`, from bit `shift`; worth `<< place`."""

    vector: int
    shift: int
    bits: int
    place: int


def quad_fields(bits: int, quad: int) -> tuple[Field, ...]:
    """The parts of the codes of `quad` (0..7) in the dot family, lowest bits first."""
    per_byte = 8 // bits
    if quad // per_byte < bits:
        return (Field(quad // per_byte, quad % per_byte * bits, bits, 0),)
    # Bytes of two 3-bit codes have two bits left: those of vectors 0 and 1 for the low bits of quads 6 and 7, those of
    # vector 2 for their high bits. So six quads of eight are one shift and one mask.
    return Field(quad - 6, 6, 2, 0), Field(2, quad, 1, 2)


def quad_runs(bits: int) -> list[list[int]]:
    """The quads of a unit, in order, together with those that lie in the same vectors."""
    vectors = [[part.vector for part in quad_fields(bits, quad)] for quad in range(QUADS)]
    return [list(run) for _, run in groupby(range(QUADS), vectors.__getitem__)]


class PlaneSlot(NamedTuple):
    """Where one slot of a bit plane lies: byte `offset + row_step * r` of `vector` for row r of the tile."""

    vector: int
    offset: int
    row_step: int


def plane_slot(order: SlotOrder, plane: int, slot: int) -> PlaneSlot:
    """The place of slot 0..3 of `plane` (see `targets/cpu/isa.py`)."""
    if order == "pair":
        return PlaneSlot(plane // 2 * 2 + slot // 2, 32 * (slot % 2) + plane % 2, 2)
    return PlaneSlot(plane, slot, 4) if order == "row" else PlaneSlot(plane, 16 * slot, 1)


@cache
def _repack_kernel(family: Family, bits: int, ternary: bool, order: SlotOrder, unpack: bool) -> Any:
    """`f(codes [N, K] uint8, packed)` for any N and any K that is a multiple of 32, parallel over blocks of rows."""
    row_step = plane_slot(order, 0, 0).row_step
    u32 = T.uint32
    # Four codes, or four slots, travel as one little-endian 32-bit word; fields never carry into each other.

    def load_slots(packed: Any, block: Expr, unit: Expr, vector: int, base: Expr) -> Expr:
        if order == "row":
            return T.reinterpret("uint32", packed[block, unit, vector, T.ramp(base, 1, 4)])
        word = u32(0)
        for slot in range(4):
            at = plane_slot(order, vector, slot)
            word = word | T.Cast("uint32", packed[block, unit, at.vector, base + at.offset]) << u32(8 * slot)
        return word

    def store_slots(packed: Any, block: Expr, unit: Expr, vector: int, base: Expr, word: Expr) -> None:
        if order == "row":
            T.buffer_store(packed, T.reinterpret("uint8x4", word), [block, unit, vector, T.ramp(base, 1, 4)])
            return
        for slot in range(4):
            byte = T.Cast("uint8", word >> u32(8 * slot) & u32(255))
            at = plane_slot(order, vector, slot)
            T.buffer_store(packed, byte, [block, unit, at.vector, base + at.offset])

    def quad_words(codes: Any, row: Expr, unit: Expr) -> list[Expr]:
        return [T.reinterpret("uint32", codes[row, T.ramp(unit * UNIT + 4 * q, 1, 4)]) for q in range(QUADS)]

    def plane_bits(word: Expr, plane: int) -> Expr:
        if ternary:  # planes of equal weight: code >= 1 and code >= 2
            word = (word | word >> u32(1)) if plane == 0 else word >> u32(1)
        else:
            word = word >> u32(plane)
        return word & u32(0x01010101)

    def pack_row(codes: Any, packed: Any, row: Expr, block: Expr, unit: Expr, base: Expr) -> None:
        words = quad_words(codes, row, unit)
        for vector in range(bits):
            out = u32(0)
            for quad, word in enumerate(words):
                if family == "dot":
                    for part in (f for f in quad_fields(bits, quad) if f.vector == vector):
                        chosen = word >> u32(part.place) & u32(0x01010101 * (2**part.bits - 1))
                        out = out | chosen << u32(part.shift)
                else:
                    # Gather bit 0 of four bytes into a nibble: each product lands on its own bit, none carries.
                    nibble = plane_bits(word, vector) * u32(0x01020408) >> u32(24) & u32(15)
                    out = out | nibble << u32(8 * (quad % 4) + 4 * (quad // 4))
            store_slots(packed, block, unit, vector, base, out)

    def unpack_row(codes: Any, packed: Any, row: Expr, block: Expr, unit: Expr, base: Expr) -> None:
        words = [load_slots(packed, block, unit, vector, base) for vector in range(bits)]
        for quad in range(QUADS):
            out = u32(0)
            if family == "dot":
                for part in quad_fields(bits, quad):
                    mask = u32(0x01010101 * (2**part.bits - 1))
                    out = out | (words[part.vector] >> u32(part.shift) & mask) << u32(part.place)
            else:
                for plane, word in enumerate(words):
                    nibble = word >> u32(8 * (quad % 4) + 4 * (quad // 4)) & u32(15)
                    # Spread a nibble over four bytes: copies at distance 7 put bit k on bit 8k.
                    spread = nibble * u32(0x00204081) & u32(0x01010101)
                    out = out + (spread if ternary else spread << u32(plane))
            T.buffer_store(codes, T.reinterpret("uint8x4", out), [row, T.ramp(unit * UNIT + 4 * quad, 1, 4)])

    move = unpack_row if unpack else pack_row

    @T.prim_func(s_tir=True)
    def repack(codes_handle: T.handle, packed_handle: T.handle):
        n = T.int32()
        k = T.int32()
        codes = T.match_buffer(codes_handle, (n, k), "uint8", align=1)
        packed = T.match_buffer(packed_handle, ((n + 63) // 64, k // 32, bits, 256), "uint8", align=64)
        for block in T.parallel((n + 63) // 64):
            for unit in range(k // 32):
                for local in range(64):
                    if unpack:
                        if block * 64 + local < n:
                            move(
                                codes, packed, block * 64 + local, block, unit, local // 16 * 64 + local % 16 * row_step
                            )
                    else:
                        # Padded rows repeat the last one: their scale is 0.
                        move(codes, packed, T.min(block * 64 + local, n - 1), block, unit,
                             local // 16 * 64 + local % 16 * row_step)  # fmt: skip

    return tvm.compile(repack, target=host())["repack"]
