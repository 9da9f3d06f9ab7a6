"""`fuse`: merge projections that share an input and a format, fold in what comes before and after. Runs last.

    %1 = lutra.linear(%0, %wq)   %2 = lutra.linear(%0, %wk)             %1 = lutra.linear(%0, %wqk)
    ...                                                         =>      %2 = lutra.split(%1) {start = 0} ...
    %9 = lutra.linear(%8, %wo)   %10 = aten.add(%x, %9)                 %10 = lutra.linear(%8, %wo, residual = %x)

What it works on is named already (`passes/raising/`) and has the form that the recipe's techniques gave it.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...ir.graph import Graph, Phase
from ...ir.patterns import apply_patterns
from ...ir.rewriting import clean_up
from ..base import ALL_PHASES, Kind, PassContext
from .caches import RopeKvUpdate
from .epilogues import Residual
from .gates import MergedGate
from .heads import MergeHeads
from .merging import MergeLinears


@dataclass(frozen=True)
class Fuse:
    """Operator fusion, after all other passes wherever it is written; no parameters. Lossless up to rounding."""

    name: ClassVar[str] = "fuse"
    kind: ClassVar[Kind] = "fusion"
    phases: ClassVar[tuple[Phase, ...]] = ALL_PHASES

    def run(self, graph: Graph, context: PassContext) -> None:
        """Epilogues first, then merge: a merged linear is no candidate for a residual."""
        stages = (
            MergedGate() + MergeHeads() + RopeKvUpdate(),
            Residual(),
            MergeLinears(graph.store),
            MergedGate(),
        )
        for patterns in stages:
            apply_patterns(graph, patterns, context.report.count)
            clean_up(graph.module)
