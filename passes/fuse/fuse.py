"""`fuse`: recognise the operations that models are made of, merge projections that share an input, fold epilogues in.

    %0 = aten.pow(%x, 2) ... aten.rsqrt ... aten.mul(%w, ...)           %0 = lutra.rms_norm(%x, %w)
    %1 = aten.linear(%0, %wq)   %2 = aten.linear(%0, %wk)       =>      %1 = lutra.linear(%0, %wqk)
    ...                                                                 %2 = lutra.split(%1) {start = 0} ...
    %9 = aten.linear(%8, %wo)   %10 = aten.add(%x, %9)                  %10 = lutra.linear(%8, %wo, residual = %x)

The rewrites stand in `fuse_*.py`, one file a subject; each leaves alone what deviates from its pattern. Values stay
what they were, up to rounding inside a fused operation.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...ir.graph import Graph, Phase
from ...ir.rewriting import apply_patterns, clean_up
from ..base import ALL_PHASES, Kind, PassContext
from ..raising.attention import ATTENTION_PATTERNS, MERGE_HEADS_PATTERNS
from ..raising.gates import GATE_PATTERNS
from ..raising.identities import IDENTITY_PATTERNS
from ..raising.norms import norm_patterns
from ..raising.rope import CACHE_PATTERNS, ROPE_PATTERNS
from ..raising.ternary import ternary_patterns
from .linears import EPILOGUE_PATTERNS, linear_patterns, merge_patterns


@dataclass(frozen=True)
class Fuse:
    """Operator fusion; no parameters. Lossless up to rounding."""

    name: ClassVar[str] = "fuse"
    kind: ClassVar[Kind] = "fusion"
    phases: ClassVar[tuple[Phase, ...]] = ALL_PHASES

    def run(self, graph: Graph, context: PassContext) -> None:
        """Recognise first, then merge, then fold epilogues: a merged linear is no longer a candidate for a residual."""
        stages = (
            IDENTITY_PATTERNS,
            ternary_patterns(graph.store),
            norm_patterns(graph.store) | ROPE_PATTERNS | linear_patterns(graph.store) | ATTENTION_PATTERNS,
            GATE_PATTERNS | MERGE_HEADS_PATTERNS | CACHE_PATTERNS,
            EPILOGUE_PATTERNS,
            merge_patterns(graph.store),
            GATE_PATTERNS,
        )
        for patterns in stages:
            apply_patterns(graph, patterns, context.report.count)
            clean_up(graph.module)
