"""The first thing that happens to every graph: what a model is made of gets its name, whatever the recipe.

    %0 = aten.pow(%x, 2) ... aten.rsqrt ... aten.mul(%w, ...)           %0 = lutra.rms_norm(%x, %w)
    %1 = aten.linear(%0, %wq)   %2 = aten.linear(%0, %wk)       =>      %1 = lutra.linear(%0, %wq)   %2 = ...
    %3 = aten.scaled_dot_product_attention(%q, %k, %v, ...)             %3 = lutra.attention(%q, %k, %v)

Nothing is merged: every operation stands for one of the model, under its module's path, so that a technique can take
one and leave its neighbour. Values stay what they were, up to rounding inside a named operation; what deviates from a
pattern is left alone.
"""

from ...ir.graph import Graph
from ...ir.patterns import apply_patterns
from ...ir.rewriting import clean_up
from ..base import PassReport
from .attention import Attention, KvUpdate
from .gates import Gate
from .identities import IDENTITIES
from .linears import linears
from .norms import norms
from .rope import ROPE
from .ternary import TernaryLinear

NAME = "raise"


def raise_operations(graph: Graph) -> PassReport:
    """Recognise norms, rope, gates, attention, cache updates, ternary layers and linears; what was found.

    By stages, each over what the one before left: a ternary layer is no ordinary linear, and a gate's activation may
    be what a norm ends with."""
    report, store = PassReport(NAME), graph.store
    stages = (
        IDENTITIES,
        TernaryLinear(store),
        norms(store) + ROPE + linears(store) + Attention() + KvUpdate(),
        Gate(),
    )
    for patterns in stages:
        apply_patterns(graph, patterns, report.count)
        clean_up(graph.module)
    return report
