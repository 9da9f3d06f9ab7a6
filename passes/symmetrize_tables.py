"""`symmetrize-tables`: quantised linears on lookup tables, one table per activation, shared by its readers.

    %q = lutra.linear(%x, %wq)                %t = lutra.table(%x) {half = true}
    %g = lutra.linear(%x, %wg)          =>    %q = lutra.table_linear(%t, %wq)
                                              %g = lutra.table_linear(%t, %wg)

The re-interpretation of codes as sums of +-1 bit planes is exact (docs/techniques.md, 1.2): no value changes in exact
arithmetic.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..ir.graph import Graph, Phase
from ..ir.ops import LinearOp, TableLinearOp, TableOp, quantized_format
from ..ir.ops.table import TABLE_COLUMNS
from ..ir.patterns import Pattern, apply_patterns
from ..ir.rewriting import (
    activations_of,
    build,
    is_argument,
    move_behind,
    paths,
    static_shape,
    users,
    vtensor,
)
from ..ir.selection import Candidate
from ..ir.types import TensorType, tensor_type
from .base import ALL_PHASES, Kind, LeftAlone, PassContext


@dataclass(frozen=True)
class SymmetrizeTables:
    """Lookup tables over 4 activations (LUT Tensor Core; docs/techniques.md, 1.2).

    table: `half` stores the 8 entries whose top bit is clear (T[w] = -T[~w]), `full` all 16."""

    name: ClassVar[str] = "symmetrize-tables"
    kind: ClassVar[Kind] = "weight-static"
    phases: ClassVar[tuple[Phase, ...]] = ALL_PHASES

    table: Literal["half", "full"] = "half"

    def run(self, graph: Graph, context: PassContext) -> None:
        """Rewrite every selected quantised linear."""
        linears = [op for op in graph.operations if isinstance(op, LinearOp) and quantized_format(op.weight.type)]
        for op in linears:
            if activations_of(op) is not None:
                reason = "its activations stay as they are, and tables would round them"
                context.report.left += [LeftAlone(path, reason) for path in paths(op)]
        linears = [op for op in linears if activations_of(op) is None]
        candidates = [Candidate(p, "linear", static_shape(op.weight)) for op in linears for p in paths(op) or ("",)]
        chosen = {c.path for c in context.select(candidates)}
        del linears  # handles do not outlive a rewrite
        apply_patterns(graph, TableLinear(frozenset(chosen), self.table == "half"), context.report.count)


@dataclass(frozen=True)
class TableLinear(Pattern):
    """`linear(x, quantised weight)` of the modules `chosen` -> `table_linear(table(x), weight)`.

    half: whether the table has 8 entries or 16."""

    roots = ("lutra.linear",)

    chosen: frozenset[str]
    half: bool

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        if quantized_format(op.weight.type) is None or activations_of(op) is not None:
            return False
        if not set(paths(op) or ("",)) & self.chosen:
            return False
        table = self._table(op, rewriter)
        keywords = {key: value for key in ("bias", "residual") if (value := getattr(op, key)) is not None}
        new = build(TableLinearOp, rewriter, op, table, op.weight, op.out.type, **keywords)
        rewriter.replace_op(op, new.operation)
        return True

    def _table(self, op: Any, rewriter: Any) -> Any:
        """The table of `op`'s input: the one that is there, or a new one right behind the input."""
        half = self.half
        for user in users(op.x):
            if user.name == "lutra.table" and bool(user.attributes["half"].value) == half:
                return user.results[0]
        rows, k = tensor_type(op.x.type).shape[:-1], static_shape(op.weight)[1]
        type_ = vtensor((*rows, -(-k // TABLE_COLUMNS), 8 if half else 16), TensorType((), torch.float32))
        path = "" if is_argument(op.x) else "|".join(paths(op.x.owner))
        table = build(TableOp, rewriter, op, op.x, half, type_, path=path)
        move_behind(table, op.x)
        return table.out
