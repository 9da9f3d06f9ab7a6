"""Rows of activations times the low-bit matrix of their group: experts and the tokens that are routed to them.

The matrices lie below each other in one packed weight. A task is a part of one group's rows of the weight; groups
without rows of activations are not read. Products are those of `lowbit_linear.py` for a few rows in all, of
`lowbit_gemm.py` for many.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import TILE_ROWS, Activations, Expr, VectorIsa
from .activations import precompute_outputs
from .function import kernel
from .lowbit_gemm import GemmKnobs, multiply_tile
from .lowbit_linear import PackedKnobs
from .packing import BLOCK_ROWS, PackedLayout
from .product_step import TILES, ProductStep, Sums
from .registers import WeightKnobs
from .step import Operands
from .unpack import check_unpacks


@dataclass(frozen=True)
class GroupedKnobs(WeightKnobs):
    """static_rows, panel_units: as of `lowbit_linear.PackedKnobs` and `lowbit_gemm.GemmKnobs`."""

    static_rows: int = PackedKnobs.static_rows
    panel_units: int = GemmKnobs.panel_units

    @property
    def gemm(self) -> GemmKnobs:
        """Those of products with tiles that were unpacked."""
        return GemmKnobs(self.prefetch_bytes, self.panel_units)

    def static(self, rows: int | None) -> int | None:
        """`rows`, or None for a kernel that takes any number."""
        return PackedKnobs(static_rows=self.static_rows).static(rows)


@cache
def grouped_linear(
    layout: PackedLayout,
    isa: VectorIsa,
    groups: int,
    m: int | None,
    dtype: str,
    offsets_dtype: str,
    activations: Activations | None = None,
    unpacked: bool = False,
    knobs: GroupedKnobs = GroupedKnobs(),
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros], offsets [E], out [M, N])`: `lutra.grouped_linear`.

    `layout`: of the weight `[E N, K]`, N a multiple of 16. `m`: rows of activations, None for any number.
    `activations`: the form of q, scale and total (default: the layout's family). `unpacked`: each tile of the weight is
    unpacked once for all rows of its group, and they are those of the dot family. Offsets that fall, or pass M, raise
    `IndexError` before anything is computed."""
    rows: Any = tirx.Var("m", "int64") if m is None else m
    family = "dot" if unpacked else activations or layout.family
    if unpacked:
        check_unpacks(layout)
    features = layout.n // groups
    blocks = not unpacked and features % BLOCK_ROWS == 0
    size = BLOCK_ROWS if blocks else TILE_ROWS
    at_once = 1 if m is not None else isa.rows_at_once

    def body(*buffers: Any) -> None:
        *given, offsets, out = buffers
        operands = Operands(*given)
        _check(offsets, groups, rows)
        _fill(out, T.bind(offsets[groups - 1].astype("int64")), rows, features, dtype)
        # All groups' first parts, then all second parts: threads, which take neighbouring tasks, share every group.
        with T.parallel(0, features // size * groups) as task:
            group = T.bind(task % groups)
            number = T.bind(group * (features // size) + task // groups)
            begin, end = T.bind(_begin(offsets, group)), T.bind(offsets[group].astype("int64"))

            def store(step: ProductStep, sums: Sums) -> None:
                step.store(sums, None, None, out, origin=group * features)

            with T.If(begin < end), T.Then():
                if unpacked:
                    multiply_tile(layout, isa, dtype, operands, number, begin, end, store, knobs.gemm)
                    return
                with T.serial(0, (end - begin + at_once - 1) // at_once) as chunk:
                    chosen = [T.bind(T.min(begin + chunk * at_once + i, end - 1)) for i in range(at_once)]
                    block, tiles = (number, range(TILES)) if blocks else (number // TILES, [T.bind(number % TILES)])
                    step = ProductStep(
                        layout, isa, dtype, family, block, tiles, chosen, operands, None, knobs.prefetch_bytes
                    )
                    store(step, step.sums())

    inputs = [*precompute_outputs(family, layout.k, layout.activation_group, rows), *layout.buffers]
    return kernel([*inputs, ((groups,), offsets_dtype), ((rows, features), dtype)], body)


def _begin(offsets: Any, group: Expr) -> Expr:
    """Where the rows of `group` begin."""
    return T.if_then_else(group > 0, offsets[T.max(group - 1, 0)].astype("int64"), T.int64(0))


def _check(offsets: Any, groups: int, rows: Any) -> None:
    with T.serial(0, groups) as group:
        end = T.bind(offsets[group].astype("int64"))
        inside = tirx.all(_begin(offsets, group) <= end, end <= rows)
        with T.Assert(inside, "grouped_linear: offsets out of order or range", "IndexError"):
            pass


def _fill(out: Any, begin: Expr, rows: Any, features: int, dtype: str) -> None:
    """Zeros in the rows that belong to no group."""
    with T.serial(0, rows - begin) as i, T.serial(0, features) as column:
        T.buffer_store(out, tirx.const(0, dtype), [begin + i, column])
