"""x86 with AVX2 and FMA (Haswell and later): shuffles look up two tables at a time, dot products go through int16."""

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from .base import Expr, Loader, Target, half, host


class Avx2(Target):
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
    # Zen 3, two threads, decode of a 1.1B Llama at batch 8, tokens/s packed and unpacked: 2 bits 55 to 63 and 75,
    # 4 bits 43 to 50 and 64.
    packed_rows=4,
    half_products={"bfloat16": "avx512bf16", "float16": "avx512fp16"},
    cross={"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
    # Zen 5, one thread, 2048x2048 in cache, time of lookup over dot at 1, 4 and 8 rows: 1 bit 0.5, 0.5, 0.4; 2 bits
    # 0.9, 1.0, 0.9; 3 bits 0.8, 1.2, 1.0; 4 bits 1.8, 1.9, 1.8; 8 bits 1.8, 2.1, 2.0.
    lookup_up_to=(3, 2),
)
