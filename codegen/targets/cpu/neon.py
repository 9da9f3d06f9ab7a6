"""64-bit ARM with the dot-product extension (Neoverse N1, Cortex-A76, Apple M1 and later)."""

from collections.abc import Sequence

from tvm.script import tirx as T

from .isa import Expr, Loader, VectorIsa, half, quarters
from .preferences import Preferences


class Neon(VectorIsa):
    """Primitives on 128-bit registers: a tile is four of them."""

    def code_bias(self, bits: int) -> int:
        # sdot multiplies signed bytes: 8-bit codes are read as code - 128, smaller ones are signed as they are.
        return 128 if bits == 8 else 0

    def dot(self, accs: Sequence[Expr], codes: Expr, x: Loader, bits: int) -> list[Expr]:
        if bits == 8:
            codes = codes ^ T.broadcast(T.uint8(128), 64)
        columns = T.reinterpret("int8x16", T.broadcast(T.reinterpret("int32", x(T.ramp(0, 1, 4))), 4))
        parts = [
            T.call_llvm_pure_intrin(
                "int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, T.reinterpret("int8x16", part), columns
            )
            for sums, part in zip(
                [half(h, "int32x4", high) for h in (half(accs[0], "int32x8", False), half(accs[0], "int32x8", True))
                 for high in (False, True)],
                quarters(codes, "uint8"),
                strict=True,
            )
        ]  # fmt: skip
        halves = [T.vectorcombine("int32x8", *pair) for pair in (parts[:2], parts[2:])]
        return [T.vectorcombine("int32x16", *halves)]

    def shuffle(self, table: Loader, index: Expr) -> Expr:
        entries = table(T.ramp(0, 1, 16))
        halves = [_table(entries, half(index, "uint8x16", high)) for high in (False, True)]
        return T.vectorcombine("int8x32", *halves)

    def lookup(self, accs: Sequence[Expr], index: Expr, table: Loader, weights: Sequence[int]) -> list[Expr]:
        del weights  # applied when the int16 accumulators are widened
        (acc,) = accs
        for slot, rows in enumerate(quarters(index, "uint8")):
            found = _table(table(T.ramp(16 * slot, 1, 16)), rows)
            acc = acc + T.Cast("int16x16", found)
        return [acc]


def _table(entries: Expr, index: Expr) -> Expr:
    """int8x16: the 16 `entries` at `index`."""
    return T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl1.v16i8", entries, T.reinterpret("int8x16", index))


NEON = Neon(
    name="neon",
    architectures=("aarch64", "arm64"),
    features=("neon", "dotprod"),
    vector_bits=128,
    slot_order={"lookup": "table", "dot": "row"},
    half_products={"bfloat16": "bf16", "float16": "fullfp16"},
    cross={"mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"},
    prefers=Preferences(
        lookup_up_to=2,
        lookup_measured="not measured: taken from AVX2, whose shuffle and int16 sums are the same",
    ),
)
