"""x86 with AVX2 and FMA (Haswell and later): shuffles look up two tables at a time, dot products go through int16."""

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from ....ir.weights.formats import WeightFormat
from ...select import Family
from .host import host
from .isa import Activations, Expr, Loader, SlotOrder, VectorIsa, half
from .preferences import Preferences


class Avx2(VectorIsa):
    """Primitives on 256-bit registers: a tile is two of them."""

    def native(self) -> dict[str, Any]:
        # A generic CPU model with AVX2: this machine's own would bring in the AVX-512 that it may have.
        return {"mtriple": str(host().attrs["mtriple"]), "mcpu": "haswell"}

    def dot_accumulators(self, bits: int) -> tuple[int, str, int]:
        # int16 holds that many pairs of products of at most 2 * (2**bits - 1) * 127; 8-bit codes go as two nibbles.
        most = 2 ** min(bits, 4) - 1
        return (2 if bits == 8 else 1), "int16", (2**15 - 1) // (2 * most * 127)

    def dot(self, accs: Sequence[Expr], codes: Expr, x: Loader, bits: int) -> list[Expr]:
        columns = T.reinterpret("int8x32", T.broadcast(T.reinterpret("int32", x(T.ramp(0, 1, 4))), 8))
        if bits != 8:
            return [_fence(accs[0] + _products(codes, columns))]
        nibble = T.broadcast(T.uint8(15), 64)
        words = T.reinterpret("uint16x32", codes) >> T.broadcast(T.uint16(4), 32)
        high = T.reinterpret("uint8x64", words) & nibble
        parts = (codes & nibble, high)
        return [_fence(acc + _products(part, columns)) for acc, part in zip(accs, parts, strict=True)]

    def dot_sum(self, accs: Sequence[Expr], bits: int) -> Expr:
        # The high nibble of a code is worth 16.
        total = _pairs(accs[0], 1)
        return total if bits != 8 else total + _pairs(accs[1], 16)

    def order(self, family: Family, format: WeightFormat) -> SlotOrder:
        return "pair" if family == "lookup" and format.bits % 2 == 0 else super().order(family, format)

    def tiles_at_once(self, family: Activations, rows: int) -> int:
        # Few rows wait for memory, which is read in order when all tiles are taken together: Zen 3, two threads,
        # 8192x2048 from memory, one row, Gweights/s with one, two and four tiles: dot 4 bits 27, 33, 37, 8 bits 12, 14,
        # 20; lookups 2 bits 49, 48, 65. From four rows on sixteen registers count: dot 4 bits 103, 86, 86. Products in
        # float32 are bound by registers at once: two rows 4 bits 31, 24, 14.
        if family == "float":
            return max(2 // rows, 1)
        return 4 if rows < 4 else 1

    def lookup_accumulators(self, plane_weights: Sequence[int]) -> tuple[int, int, str]:
        # Two planes of 64 tables make at most 3 * 64 * 127 < 2**15; a single plane: see `_lookup_single`.
        if len(plane_weights) % 2:
            return len(set(plane_weights)), 2, "uint16"
        return len(plane_weights) // 2, 1, "int16"

    def lookup_sum(self, accs: Sequence[Expr], plane_weights: Sequence[int], tables: Expr) -> Expr:
        if len(plane_weights) % 2:
            sums = [_single_sum(accs[i], accs[i + 1], tables) for i in range(0, len(accs), 2)]
            places = [weight.bit_length() - 1 for weight in sorted(set(plane_weights))]
        else:
            sums = [T.Cast("int32x16", acc) for acc in accs]
            places = [2 * number for number in range(len(accs))]
        total = sums[0]
        for part, place in zip(sums[1:], places[1:], strict=True):
            total = total + (part << T.broadcast(T.int32(place), 16))
        return total

    def lookup(self, accs: Sequence[Expr], index: Expr, table: Loader, weights: Sequence[int]) -> list[Expr]:
        if len(weights) == 2:
            return [_lookup_pair(accs[0], index, table, weights)]
        return _lookup_single(accs[0], accs[1], index, table)  # weighted when the group is summed

    def signed_lookup(
        self, accs: Sequence[Expr], indices: Sequence[Expr], signs: Sequence[Expr], tables: Sequence[Loader]
    ) -> list[Expr]:
        # The entries of two tables in neighbouring bytes are added as they are widened. An accumulator has rows 0..7
        # and 16..23 or, the second, the others: see `signed_sum`.
        found = [
            T.bind(_signed(_shuffle(_both_halves(table), index), sign))
            for index, sign, table in zip(indices, signs, tables, strict=True)
        ]
        found = found if len(found) == 2 else [*found, T.broadcast(T.int8(0), 32)]
        results = []
        for acc, start in zip(accs, (0, 8), strict=True):
            lanes = [start + 16 * (i // 16) + i % 16 // 2 + 32 * (i % 2) for i in range(32)]
            pairs, ones = T.Shuffle(found, lanes), T.broadcast(T.int8(1), 32)
            results.append(acc + T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", ones, pairs))
        return results

    def signed_sum(self, accs: Sequence[Expr]) -> list[Expr]:
        tiles = [[half(acc, "int16x8", second) for acc in accs] for second in (False, True)]
        return [T.Cast("int32x16", T.vectorcombine("int16x16", *parts)) for parts in tiles]


def _shuffle(entries: Expr, index: Expr) -> Expr:
    """int8x32: bytes of each half of `entries` at the `index` in that half."""
    args = (T.reinterpret("int8x32", part) for part in (entries, index))
    return T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.pshuf.b", *args)


def _both_halves(table: Loader, start: int = 0) -> Expr:
    """A register with one table, 16 bytes from `start`, in each half."""
    entries = T.reinterpret("uint64x2", table(T.ramp(start, 1, 16)))
    return T.vectorcombine("uint64x4", entries, entries)


def _signed(values: Expr, sign: Expr) -> Expr:
    """`values`, negative where the top bit of `sign` is set."""
    nonzero = T.reinterpret("int8x32", sign | T.broadcast(T.uint8(1), 32))  # psign makes 0 of what a zero byte signs
    return T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", values, nonzero)


def _lookup_single(both: Expr, odd: Expr, index: Expr, table: Loader) -> list[Expr]:
    """One plane: two tables a register, whose halves hold 16 rows each, as 16-bit words of an even and an odd row.

    Entries become unsigned (+ 128). `odd` sums those of odd rows; `both` sums whole words modulo 2**16, from which
    `_single_sum` gets the even rows: half of 64 tables make at most 32 * 255 < 2**16."""
    for pair in range(2):
        entries = T.bind(table(T.ramp(32 * pair, 1, 32)) ^ T.broadcast(T.int8(-128), 32))
        found = T.bind(T.reinterpret("uint16x16", _shuffle(entries, half(index, "uint8x32", bool(pair)))))
        both = both + found
        odd = odd + (found >> T.broadcast(T.uint16(8), 16))
    return [both, odd]


def _single_sum(both: Expr, odd: Expr, tables: Expr) -> Expr:
    """What `_lookup_single` added up for 16 rows in `tables` tables, int32x16."""
    even = both - (odd << T.broadcast(T.uint16(8), 16))
    rows = [half(part, "uint16x8", False) + half(part, "uint16x8", True) for part in (even, odd)]
    biased = T.Shuffle(rows, [lane // 2 + 8 * (lane % 2) for lane in range(16)])
    total = biased - T.broadcast(T.Cast("uint16", tables * 128), 16)
    return T.Cast("int32x16", T.reinterpret("int16x16", total))


def _lookup_pair(acc: Expr, index: Expr, table: Loader, weights: Sequence[int]) -> Expr:
    """Two tables, one a register, for two planes of 16 rows in neighbouring bytes; int16x16."""
    smallest = min(weights)
    word = sum(weight // smallest << 8 * i for i, weight in enumerate(weights))
    factors = T.reinterpret("int8x32", T.broadcast(T.int16(word), 16))
    for slot in range(2):
        found = _shuffle(_both_halves(table, 16 * slot), half(index, "uint8x32", bool(slot)))
        acc = acc + T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", factors, found)
    return acc


def _products(codes: Expr, columns: Expr) -> Expr:
    """Products of uint8x64 with int8x32, which meets both halves; neighbours added: int16x32."""
    halves = [
        T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", half(codes, "uint8x32", high), columns)
        for high in (False, True)
    ]
    return T.vectorcombine("int16x32", *halves)


def _fence(sums: Expr) -> Expr:
    """`sums`, int16x32, which LLVM then computes where they are written: left to itself it adds a chain of products as
    a tree, whose intermediate results do not fit in 16 registers. It costs no instruction."""
    halves = []
    for high in (False, True):
        floats = T.reinterpret("float32x8", half(sums, "int16x16", high))
        fenced = T.call_llvm_pure_intrin("float32x8", "llvm.arithmetic.fence.v8f32", floats)
        halves.append(T.reinterpret("int16x16", fenced))
    return T.vectorcombine("int16x32", *halves)


def _pairs(products: Expr, weight: int) -> Expr:
    """Neighbours added and weighted: int16x32 to int32x16."""
    weights = T.broadcast(T.int16(weight), 16)
    halves = [
        T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", half(products, "int16x16", high), weights)
        for high in (False, True)
    ]
    return T.vectorcombine("int32x16", *halves)


AVX2 = Avx2(
    name="avx2",
    architectures=("x86_64",),
    features=("avx2", "fma", "f16c"),
    vector_bits=256,
    slot_order={"lookup": "table", "dot": "row"},
    half_products={"bfloat16": "avx512bf16", "float16": "avx512fp16"},
    cross={"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    prefers=Preferences(
        lookup_up_to=2,
        lookup_measured=(
            "Zen 1, two threads, 8192x2048 from memory (`benchmarks/linear.py`), rate of lookup over dot with 1, 4 or "
            "6, and 8 rows: 1 bit 2.7, 2.1, 2.0; 2 bits 1.6, 1.6, 1.3; 3 bits 1.0, 0.7, 0.7; 4 bits 0.9, 0.8, 0.8; 8 "
            "bits 0.6, 0.8, 0.9"
        ),
        packed_measured=(
            "Zen 1, `benchmarks/linear.py`, 5, 8 and 16 rows in 4 bits: 47, 56 and 57 Gweights/s x rows packed, 32, 49 "
            "and 56 unpacked; from 32 on unpacked is as fast or faster"
        ),
        lookup_any_rows_up_to=2,
        lookup_any_rows_measured="Zen 3, 8192x2048, 128 rows, 1 and 2 bits: 271 and 258 GOP/s by lookups, 200 unpacked",
    ),
)
