"""What CPU kernels are written against: one instruction set, its features, its few primitives, what it does best.

All templates work on *tiles* of 16 rows: an accumulator is `int32x16` whatever the register width, and LLVM splits it.
So one template serves every ISA, and an ISA is the handful of methods below. Byte vectors hold 16 rows x 4 slots; in
slot order "row" slot j of row r is byte 4*r + j (what dot-product instructions sum), in "table" order byte 16*j + r
(what byte shuffles read). In "pair" order, of lookups with an even number of bit planes, planes 2p and 2p+1 share two
vectors: slot j of row r of plane 2p+i is byte 32*(j%2) + 2*r + i of vector 2p + j//2 (what sums of neighbours weight).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tvm
from tvm.script import tirx as T

from ....ir.weights.formats import WeightFormat
from ...select import Family
from .host import has_feature, host
from .preferences import Preferences

TILE_ROWS = 16
"""Weight rows of a tile."""
Activations = Literal["lookup", "triples", "dot", "integers", "float"]
"""What a product reads of x: lookup tables of either kind, int8 (of x over a scale, or x itself), or float32."""
SlotOrder = Literal["row", "table", "pair"]
Expr = Any
"""A TIR expression (TVM's own classes have no usable static types)."""

Loader = Callable[[Expr], Expr]
"""`load(i)`: element i, or a vector of elements for a ramp i, of a few bytes that a primitive reads from memory."""


def half(vector: Expr, dtype: str, high: bool) -> Expr:
    """The low or high half of `vector`; `dtype` is the half's type."""
    return (T.vectorhigh if high else T.vectorlow)(dtype, vector)


def quarters(vector: Expr, element: str) -> list[Expr]:
    """The four 16-lane quarters of a 64-lane vector of `element`."""
    halves = [half(vector, f"{element}x32", high) for high in (False, True)]
    return [half(h, f"{element}x16", high) for h in halves for high in (False, True)]


@dataclass(frozen=True)
class VectorIsa(ABC):
    """An ISA: `features` (LLVM names) that it needs, how TVM is told about it, the primitives of low-bit templates."""

    name: str
    architectures: tuple[str, ...]
    features: tuple[str, ...]
    vector_bits: int
    slot_order: Mapping[Literal["lookup", "dot"], SlotOrder] = field(hash=False)
    cross: Mapping[str, str] = field(default_factory=dict, hash=False)
    """A TVM target dict of a machine that has this ISA, for compiling where it is absent."""
    rows_at_once: int = 4
    """Activation rows, at most, that share one unpacking of the weights: four accumulators each, in registers."""
    gemm_rows: int = 4
    """Activation rows that a matrix product keeps in registers against one tile of weights."""
    multiplies_tiles: bool = False
    """It has a unit that multiplies tiles of bytes (AMX), which matrix products then use."""
    half_products: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Half-precision dtype -> the LLVM feature of machines whose matrix products in it are faster than float32's."""
    prefers: Preferences = field(default_factory=Preferences, hash=False)

    def available(self) -> bool:
        """True when this machine executes the ISA."""
        architecture = str(host().attrs["mtriple"]).split("-")[0]
        return architecture in self.architectures and all(has_feature(feature) for feature in self.features)

    def tvm_target(self, cross: bool = False) -> tvm.target.Target:
        """The TVM target: this machine restricted to the ISA, or with `cross` a machine that is known to have it."""
        return tvm.target.Target({"kind": "llvm", **(self.cross if cross else self.native())})

    def native(self) -> dict[str, Any]:
        """TVM target attributes (`mtriple`, `mcpu`, `mattr`) that compile for this machine within the ISA."""
        return {"mtriple": str(host().attrs["mtriple"]), "mcpu": str(host().attrs["mcpu"])}

    @property
    def lanes(self) -> int:
        """float32 lanes of one vector register."""
        return self.vector_bits // 32

    def dot_accumulators(self, bits: int) -> tuple[int, str, int]:
        """How many accumulators of 64 bytes `dot` needs for one tile, the type of their elements, and how many calls
        they take before `dot_sum` must fold them."""
        del bits
        return 1, "int32", 1 << 15

    @abstractmethod
    def dot(self, accs: Sequence[Expr], codes: Expr, x: Loader, bits: int) -> list[Expr]:
        """`accs` with the products `sum_j (codes[r, j] - code_bias(bits)) * x[j]` of four columns added.

        codes: uint8x64, all < 2**bits; x: 4 int8 in [-127, 127]."""

    def dot_sum(self, accs: Sequence[Expr], bits: int) -> Expr:
        """What `accs` add up to for each row of the tile, int32x16."""
        del bits
        return accs[0]

    def code_bias(self, bits: int) -> int:
        """What `dot` subtracts from every code (an ISA whose product is signed x signed)."""
        del bits
        return 0

    def lookup_accumulators(self, plane_weights: Sequence[int]) -> tuple[int, int, str]:
        """How many sets of 16-lane accumulators lookups need for one tile (one for each weight, for each pair of planes
        in pair order, or for all), how many accumulators a set has, and the type of their elements."""
        return len(set(plane_weights)), 1, "int16"

    def order(self, family: Family, format: WeightFormat) -> SlotOrder:
        """The slot order of weights of `format` that are packed for `family`."""
        del format
        return self.slot_order["dot" if family == "dot" else "lookup"]

    def unpacks(self, family: Family) -> bool:
        """True when there is a kernel that unpacks the codes of what is packed for `family`."""
        return family != "triples" or self.slot_order["lookup"] == "row"

    @abstractmethod
    def lookup(self, accs: Sequence[Expr], index: Expr, table: Loader, weights: Sequence[int]) -> list[Expr]:
        """One set, `accs`, with the int8 entries that `index` (uint8x64, all < 16) selects added: slot j in table j.

        table: the bytes of 16-entry tables, four of them, or two in pair order; weights: of the planes that `index`
        holds, one or two, for an ISA that applies them here."""

    def lookup_sum(self, accs: Sequence[Expr], plane_weights: Sequence[int], tables: Expr) -> Expr:
        """The weighted sum, int32x16, of all accumulators of one tile at the end of a group of `tables` tables.

        int16 holds a group: at most 64 tables of 127, and two planes of equal weight, make 2 * 64 * 127 < 2**15."""
        del tables
        total: Expr = None
        for acc, weight in zip(accs, sorted(set(plane_weights)), strict=True):
            term = T.Cast("int32x16", acc) * T.broadcast(T.int32(weight), 16)
            total = term if total is None else total + term
        return total

    def shuffle(self, table: Loader, index: Expr) -> Expr:
        """int8x32: the entries of one 16-entry table at `index` (uint8x32, all < 16)."""
        return table(T.Cast("int32x32", index))

    def signed_lookup(
        self, accs: Sequence[Expr], indices: Sequence[Expr], signs: Sequence[Expr], tables: Sequence[Loader]
    ) -> list[Expr]:
        """Two int16x16, for 32 rows, with the signed entries of one or two tables added.

        indices: uint8x32, all < 16; signs: uint8x32, whose top bits say which entries are subtracted (the other bits
        are arbitrary); tables: loaders of 16 int8. `signed_sum` turns the accumulators into sums."""
        accs = list(accs)
        for index, sign, table in zip(indices, signs, tables, strict=True):
            mask = T.bind(T.reinterpret("int8x32", sign) >> T.broadcast(T.int8(7), 32))
            value = T.bind((self.shuffle(table, index) ^ mask) - mask)
            parts = [half(value, "int8x16", high) for high in (False, True)]
            accs = [acc + T.Cast("int16x16", part) for acc, part in zip(accs, parts, strict=True)]
        return accs

    def signed_sum(self, accs: Sequence[Expr]) -> list[Expr]:
        """What the accumulators of `signed_lookup` add up to in each of two tiles, int32x16."""
        return [T.Cast("int32x16", acc) for acc in accs]

    def signed_fours(self, acc: Expr, index: Expr, signs: Expr, bits: Sequence[int], table: Loader) -> Expr:
        """`acc`, int32x16, with the signed entries of four tables added, for an ISA whose lookups are in row order.

        index: uint8x64, all < 16; signs: uint8x64; bits: which of its bits, for each slot, says that the entry is
        subtracted; table: the bytes of four 16-entry tables."""
        raise NotImplementedError(self.name)

    def permute_bytes(self, vector: Expr, index: Expr) -> Expr:
        """uint8x64: the bytes of a uint8x64 at `index` (uint8x64, modulo 64), for an ISA in row order."""
        raise NotImplementedError(self.name)

    def plane_fields(self, low: Expr, high: Expr) -> tuple[Expr, Expr]:
        """Two bit planes of a unit (uint8x64 in row order) as fields of two bits, for an ISA in row order.

        Of each result, byte 4r + c holds column c of row r of four quads, bits 2q and 2q + 1 that of quad q: quads 0..3
        in the first result, 4..7 in the second."""
        raise NotImplementedError(self.name)

    def half_to_float(self, value: Expr, lanes: int) -> Expr:
        """float16 to float32, `lanes` of them."""
        return T.Cast("float32" if lanes == 1 else f"float32x{lanes}", value)

    def product_dtype(self, dtype: str) -> str:
        """The dtype in which a library multiplies matrices of `dtype` fastest on this machine: itself, or float32."""
        if dtype not in ("bfloat16", "float16"):
            return dtype
        feature = self.half_products.get(dtype)
        return dtype if feature is not None and has_feature(feature) else "float32"

    def tiles_at_once(self, family: Activations, rows: int) -> int:
        """Tiles of weight rows whose sums with `rows` rows of activations are best kept in registers together, of the
        four that a task has."""
        del family, rows
        return 4
