"""What one step of a product with a packed weight works on: which rows, which tiles, and where they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...targets.cpu.isa import Activations, Expr, VectorIsa
from .packing import PackedLayout
from .registers import WeightKnobs, prefetch, zero_buffer


class Operands(NamedTuple):
    """Buffers of a product: quantised activations (`activations.py`) and a packed weight (`packing.py`)."""

    q: Any
    scale: Any
    total: Any
    packed: Any
    scales: Any
    zeros: Any = None


Codes = Callable[[Expr, int, Expr], Expr]
"""`codes(unit, quad, tile)`: uint8x64, the codes of four columns of a tile's rows."""


@dataclass(frozen=True)
class Step:
    """`chosen` rows of activations times `tiles` (numbers 0..3) of one block of weight rows.

    `family`: of the activations (dot and float read the same packed weight). `codes`: where these two find unpacked
    codes; None: in the packed weight."""

    layout: PackedLayout
    isa: VectorIsa
    dtype: str
    family: Activations
    block: Expr
    tiles: Sequence[Any]
    chosen: Sequence[Expr]
    operands: Operands
    codes: Codes | None = None
    prefetch_bytes: int = WeightKnobs.prefetch_bytes

    def accumulators(self, count: int, element: str, lanes: int | None = None) -> list[list[list[Any]]]:
        """Zeros: `result[number of tile][i]`, `count` buffers each."""
        return [[[zero_buffer(element, lanes) for _ in range(count)] for _ in self.chosen] for _ in self.tiles]

    def prefetch(self, step: Expr, vector: Expr, start: Expr = 0) -> None:
        """Emit the prefetch of the weight, ahead of a step of a block."""
        prefetch(self.prefetch_bytes, self.operands.packed, self.block, step, vector, start)
