"""Any 64-bit CPU: plain vector arithmetic within the architecture's baseline, no intrinsics."""

from collections.abc import Sequence
from typing import Any

from tvm.script import tirx as T

from .host import host
from .isa import Expr, Loader, VectorIsa, quarters
from .preferences import Preferences

_BASELINE = {"x86_64": "x86-64"}
"""LLVM's name of the oldest CPU of an architecture, where it is not "generic"."""


class Portable(VectorIsa):
    """Primitives that LLVM maps to whatever the baseline has; table order, so that 16 rows lie side by side."""

    def available(self) -> bool:
        return True

    def native(self) -> dict[str, Any]:
        triple = str(host().attrs["mtriple"])
        return {"mtriple": triple, "mcpu": _BASELINE.get(triple.split("-")[0], "generic")}

    def dot(self, accs: Sequence[Expr], codes: Expr, x: Loader, bits: int) -> list[Expr]:
        # A product of at most 255 * 127 fits int16; sums are int32.
        del bits
        (acc,) = accs
        for slot, rows in enumerate(quarters(codes, "uint8")):
            product = T.Cast("int16x16", rows) * T.broadcast(T.Cast("int16", x(slot)), 16)
            acc = acc + T.Cast("int32x16", product)
        return [acc]

    def lookup(self, accs: Sequence[Expr], index: Expr, table: Loader, weights: Sequence[int]) -> list[Expr]:
        del weights  # applied when the int16 accumulators are widened
        (acc,) = accs
        for slot, rows in enumerate(quarters(index, "uint8")):
            found = table(T.Cast("int32x16", rows) + T.broadcast(T.int32(16 * slot), 16))
            acc = acc + T.Cast("int16x16", found)
        return [acc]

    def half_to_float(self, value: Expr, lanes: int) -> Expr:
        """Without a conversion instruction: exponent and mantissa move into place and are scaled by 2**112, which is
        exact for subnormals too."""
        suffix = f"x{lanes}" if lanes > 1 else ""

        def lane(number: Any) -> Expr:
            return T.broadcast(number, lanes) if lanes > 1 else number

        word = T.bind(T.Cast(f"uint32{suffix}", T.reinterpret(f"uint16{suffix}", value)))
        magnitude = (word & lane(T.uint32(0x7FFF))) << lane(T.uint32(13))
        scaled = T.reinterpret(f"float32{suffix}", magnitude) * lane(T.float32(2.0**112))
        sign = (word & lane(T.uint32(0x8000))) << lane(T.uint32(16))
        return T.reinterpret(f"float32{suffix}", T.reinterpret(f"uint32{suffix}", scaled) | sign)


PORTABLE = Portable(
    name="portable",
    architectures=(),
    features=(),
    vector_bits=128,
    slot_order={"lookup": "table", "dot": "table"},
    half_products={"bfloat16": "avx512bf16", "float16": "avx512fp16"},
    cross={"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
    prefers=Preferences(lookup_measured="not measured: without shuffles a lookup is a load"),
    rows_at_once=1,  # sixteen scalar loads a lookup: more rows only make the code long
)
