"""What is fastest on an instruction set, of what its kernels can do, and the measurements that say so."""

from dataclasses import dataclass

from ....ir.graph import Phase
from ....ir.weights.formats import WeightFormat
from ...select import Family, Reason


@dataclass(frozen=True)
class Preferences:
    """Between families of low-bit kernels, and between a weight as it is packed and one that is unpacked first.

    lookup_up_to: most bits at which lookups are faster than dot products. triples: ternary weights are faster in
    triples than in planes. packed_rows: most rows of activations with which a weight is multiplied as it is packed.
    lookup_any_rows_up_to: most bits at which lookups are so for any number of rows. `*_measured`: where that is
    from."""

    lookup_up_to: int = 0
    lookup_measured: str = "not measured"
    triples: bool = False
    triples_measured: str = (
        "they save a sixth of the bytes, but on Zen 3 with AVX2 (`benchmarks/linear.py --weights ternary`, two runs) "
        "they took as long as lookups with one row, 338 and 287 us to 347 and 310, and 1.3 to 1.4 times as long with "
        "128"
    )
    packed_rows: int = 16
    packed_measured: str = ""
    lookup_any_rows_up_to: int = 0
    lookup_any_rows_measured: str = ""

    def family(self, format: WeightFormat) -> Family:
        """The family of kernels that is faster; triples where they fit."""
        if self.triples and format.scheme == "ternary":
            return "triples"
        return "lookup" if format.bits <= self.lookup_up_to else "dot"

    def against_family(self, family: Family, better: Family, format: WeightFormat) -> Reason | None:
        """Why kernels of `family` are left for those of `better`."""
        if family == better:
            return None
        if "triples" in (family, better):
            faster = "ternary weights are faster in triples" if better == "triples" else "triples are no faster"
            return Reason(faster, self.triples_measured)
        how = "looked up" if better == "lookup" else "multiplied"
        return Reason(f"weights of {format.bits} bits are faster {how}", self.lookup_measured)

    def packed(self, family: Family, format: WeightFormat, rows: int | None, phase: Phase) -> Reason | None:
        """Why a weight is best multiplied as it is packed for `family`; None where it is best unpacked first, once a
        tile."""
        if family == "lookup" and format.bits <= self.lookup_any_rows_up_to:
            why = f"weights of {format.bits} bits are looked up faster than unpacked"
            return Reason(why, self.lookup_any_rows_measured)
        if rows is None and phase == "decode":
            return Reason("a decode step has few rows")
        if rows is not None and rows <= self.packed_rows:
            return Reason(f"up to {self.packed_rows} rows read the weight as it is packed", self.packed_measured)
        return None

    def unpacked(self) -> Reason:
        """Why a weight is unpacked first, where `packed` gives no reason against that."""
        return Reason(f"with more than {self.packed_rows} rows a tile is unpacked once for all", self.packed_measured)
