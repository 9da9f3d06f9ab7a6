"""x86 with AVX2 and FMA (Haswell and later): shuffles look up two tables at a time, dot products go through int16."""

from typing import Any

from tvm.script import tirx as T

from .base import Expr, Loader, Target, half, host


class Avx2(Target):
    """Primitives on 256-bit registers: a tile is two of them."""

    def native(self) -> dict[str, Any]:
        # A generic CPU model with AVX2: this machine's own would bring in the AVX-512 that it may have.
        return {"mtriple": str(host().attrs["mtriple"]), "mcpu": "haswell"}

    def dot(self, acc: Expr, codes: Expr, x: Loader, bits: int) -> Expr:
        columns = T.reinterpret("int8x32", T.broadcast(T.reinterpret("int32", x(T.ramp(0, 1, 4))), 8))
        sums = [self._dot_half(half(codes, "uint8x32", high), columns, bits) for high in (False, True)]
        return acc + T.vectorcombine("int32x16", *sums)

    @staticmethod
    def _dot_half(codes: Expr, columns: Expr, bits: int) -> Expr:
        """Sums of four products for 8 rows.

        vpmaddubsw saturates int16: two products of a code below 16 make at most 2 * 15 * 127, far inside; 8-bit codes
        (2 * 255 * 127 is outside) go as two nibbles, and the high one is worth 16 in vpmaddwd."""
        if bits <= 4:
            return _pairs(_products(codes, columns), 1)
        low = codes & T.broadcast(T.uint8(15), 32)
        words = T.reinterpret("uint16x16", codes) >> T.broadcast(T.uint16(4), 16)
        high = T.reinterpret("uint8x32", words) & T.broadcast(T.uint8(15), 32)
        return _pairs(_products(low, columns), 1) + _pairs(_products(high, columns), 16)

    def lookup(self, acc: Expr, index: Expr, table: Loader, weight: int) -> Expr:
        del weight  # applied when the int16 accumulators are widened
        for pair in range(2):
            found = T.bind(
                T.call_llvm_pure_intrin(
                    "int8x32",
                    "llvm.x86.avx2.pshuf.b",
                    table(T.ramp(32 * pair, 1, 32)),
                    T.reinterpret("int8x32", half(index, "uint8x32", bool(pair))),
                )
            )
            for high in (False, True):
                acc = acc + T.Cast("int16x16", half(found, "int8x16", high))
        return acc


def _products(codes: Expr, columns: Expr) -> Expr:
    return T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", codes, columns)


def _pairs(products: Expr, weight: int) -> Expr:
    return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", products, T.broadcast(T.int16(weight), 16))


AVX2 = Avx2(
    name="avx2",
    architectures=("x86_64",),
    features=("avx2", "fma", "f16c"),
    vector_bits=256,
    slot_order={"lookup": "table", "dot": "row"},
    half_products={"bfloat16": "avx512bf16", "float16": "avx512fp16"},
    cross={"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    # Zen 5, one thread, 2048x2048 in cache, time of lookup over dot at 1, 4 and 8 rows: 1 bit 0.5, 0.5, 0.4; 2 bits
    # 0.9, 1.0, 0.9; 3 bits 0.8, 1.2, 1.0; 4 bits 1.8, 1.9, 1.8; 8 bits 1.8, 2.1, 2.0.
    lookup_up_to=(3, 2),
)
