"""x86 with AVX-512 VBMI, VNNI and GFNI (Ice Lake, Zen 4 and later): four tables in a register, dots of bytes."""

from collections.abc import Sequence

from tvm.script import tirx as T

from .isa import Expr, Loader, VectorIsa
from .preferences import Preferences

_SLOT_OFFSETS = 0x30201000  # slot j of a row reads table j, which starts at byte 16 * j of the register


class Avx512(VectorIsa):
    """Primitives on 512-bit registers; one accumulator a tile in both families."""

    def dot(self, accs: Sequence[Expr], codes: Expr, x: Loader, bits: int) -> list[Expr]:
        # Four products of at most 255 * 127 a step: a group of 256 columns stays below 2**23, far inside int32.
        del bits
        columns = T.broadcast(T.reinterpret("int32", x(T.ramp(0, 1, 4))), 16)
        return [_vpdpbusd(accs[0], codes, T.reinterpret("int8x64", columns))]

    def lookup_accumulators(self, plane_weights: Sequence[int]) -> tuple[int, int, str]:
        del plane_weights
        return 1, 1, "int32"

    def lookup(self, accs: Sequence[Expr], index: Expr, table: Loader, weights: Sequence[int]) -> list[Expr]:
        # vpdpbusd sums a row's four tables, weights the plane and widens; |acc| < 64 tables * 127 * 255 < 2**21.
        return [_vpdpbusd(accs[0], T.broadcast(T.uint8(weights[0]), 64), _find(index, table))]

    def lookup_sum(self, accs: Sequence[Expr], plane_weights: Sequence[int], tables: Expr) -> Expr:
        del plane_weights, tables
        return accs[0]

    def signed_fours(self, acc: Expr, index: Expr, signs: Expr, bits: Sequence[int], table: Loader) -> Expr:
        word = sum(bit << 8 * slot for slot, bit in enumerate(bits))
        chosen = T.reinterpret("uint8x64", T.broadcast(T.uint32(word), 16))
        found, zero = T.bind(_find(index, table)), T.broadcast(T.int8(0), 64)
        signed = T.Select((signs & chosen) != T.broadcast(T.uint8(0), 64), zero - found, found)  # two instructions
        return _vpdpbusd(acc, T.broadcast(T.uint8(1), 64), signed)

    def permute_bytes(self, vector: Expr, index: Expr) -> Expr:
        return T.reinterpret("uint8x64", _permute(T.reinterpret("int8x64", vector), index))

    def plane_fields(self, low: Expr, high: Expr) -> tuple[Expr, Expr]:
        # Byte j of a qword becomes bits j of its bytes, the last byte giving bit 0: eight bytes of a row, of four slots
        # in two planes, are transposed as a matrix of bits. A field's lower bit is that of the lower plane.
        order = [64 * plane + slot for slot in (3, 2, 1, 0) for plane in (1, 0)]
        unit = T.reinterpret("int8x64", T.broadcast(T.int64(0x8040201008040201 - 2**64), 8))
        rows = []
        for first in (0, 8):
            data = T.Shuffle([low, high], [at + 4 * (first + row) for row in range(8) for at in order])
            name = "llvm.x86.vgf2p8affineqb.512"
            fields = T.call_llvm_pure_intrin("int8x64", name, unit, T.reinterpret("int8x64", data), T.int8(0))
            rows.append(T.bind(T.reinterpret("uint32x16", fields)))
        sides = [T.Shuffle(rows, [2 * row + side for row in range(16)]) for side in range(2)]
        return T.reinterpret("uint8x64", sides[0]), T.reinterpret("uint8x64", sides[1])


def _find(index: Expr, table: Loader) -> Expr:
    """int8x64: the entries at `index` (uint8x64, all < 16), slot j in table j of four."""
    index = index | T.reinterpret("uint8x64", T.broadcast(T.int32(_SLOT_OFFSETS), 16))
    return _permute(table(T.ramp(0, 1, 64)), index)


def _permute(vector: Expr, index: Expr) -> Expr:
    """int8x64: the bytes of `vector` at `index`."""
    name = "llvm.x86.avx512.permvar.qi.512"
    return T.call_llvm_pure_intrin("int8x64", name, vector, T.reinterpret("int8x64", index))


def _vpdpbusd(acc: Expr, unsigned: Expr, signed: Expr) -> Expr:
    return T.call_llvm_pure_intrin("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, unsigned, signed)


AVX512 = Avx512(
    name="avx512",
    architectures=("x86_64",),
    features=("avx512f", "avx512bw", "avx512vl", "avx512vbmi", "avx512vnni", "gfni"),
    vector_bits=512,
    gemm_rows=8,
    slot_order={"lookup": "row", "dot": "row"},
    half_products={"bfloat16": "avx512bf16", "float16": "avx512fp16"},
    cross={"mtriple": "x86_64-linux-gnu", "mcpu": "icelake-server"},
    prefers=Preferences(
        lookup_up_to=3,
        lookup_measured=(
            "Zen 5, one thread, 2048x2048 in cache, time of lookup over dot at 1, 4 and 8 rows: 1 bit 0.4, 0.4, 0.4; 2 "
            "bits 0.7, 0.8, 0.8; 3 bits 0.7, 0.9, 0.9; 4 bits 1.1, 1.5, 1.4; 8 bits 1.3, 2.5, 2.7; at one row from "
            "DRAM the two are within the noise of each other, since memory bounds both"
        ),
        triples=True,
        triples_measured=(
            "Sapphire Rapids, two cores, the linears of a ternary 1.1B Llama from memory: triples 10.3 ms, planes 10.5"
        ),
    ),
)
