"""`given-weights`: weights that a checkpoint brought quantised (GPTQ, AWQ, torchao, GGUF) keep its codes.

%w = lutra.param {sym = "a.weight"} : [N, K]           %w = lutra.param {sym = "a.weight@a4g128-given"} : quantized
%y = lutra.linear(%x, %w)                        =>    %y = lutra.linear(%x, %w)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..ir.graph import Graph, Phase
from ..ir.ops import LinearOp, quantized_format
from ..ir.patterns import Pattern, apply_patterns
from ..ir.rewriting import parameter_symbol, paths, static_shape
from ..ir.selection import Candidate
from ..ir.weights.derivations import Unavailable
from ..ir.weights.formats import WeightFormat
from ..ir.weights.store import ParameterStore
from .base import ALL_PHASES, Kind, PassContext, PassReport
from .left_alone import report_left_alone
from .quantized_linears import take_weight

_RULE = "given-weights"


@dataclass(frozen=True)
class GivenWeights:
    """Linears over weights that came quantised are multiplied as they came, in their own formats; others stay.

    activations: `int8` lets products quantise their input per token and group (about 1 % of relative error); `float`
    keeps it as it is, which costs speed."""

    name: ClassVar[str] = _RULE
    kind: ClassVar[Kind] = "weight-static"
    phases: ClassVar[tuple[Phase, ...]] = ALL_PHASES

    activations: Literal["int8", "float"] = "int8"

    def run(self, graph: Graph, context: PassContext) -> None:
        """Replace every selected weight that the store was given codes for."""
        forms: dict[str, tuple[str, WeightFormat]] = {}
        offered: dict[str, Candidate] = {}
        for op in graph.operations:
            if isinstance(op, LinearOp) and quantized_format(op.weight.type) is None:
                symbol = parameter_symbol(op.weight)
                if symbol is not None and (form := _form(graph.store, symbol)) is not None:
                    forms[symbol] = form
                    offered |= {path: Candidate(path, "linear", static_shape(op.weight)) for path in paths(op) or ("",)}
        chosen = frozenset(c.path for c in context.select(list(offered.values()))) if offered else frozenset()
        apply_patterns(graph, GivenLinear(forms, chosen, self.activations), context.report.count)

    def review(self, graph: Graph, report: PassReport) -> None:
        """List the weights that stay in floating point."""
        report_left_alone(graph, report, "it did not come quantised, or the selector does not take it")


@dataclass(frozen=True)
class GivenLinear(Pattern):
    """`linear(x, weight)` of the modules `chosen` -> `linear(x, codes)`; forms: name and format of them, by weight."""

    roots = ("lutra.linear",)

    forms: Mapping[str, tuple[str, WeightFormat]]
    chosen: frozenset[str]
    activations: Literal["int8", "float"]

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        found = self.forms.get(parameter_symbol(op.weight) or "")
        if found is None or quantized_format(op.weight.type) is not None or not set(paths(op) or ("",)) <= self.chosen:
            return False
        take_weight(op, rewriter, *found, self.activations)
        return True


def _form(store: ParameterStore, symbol: str) -> tuple[str, WeightFormat] | None:
    """Name and format of the codes that `symbol` came with; None when it came without. Decided once: the codes are
    read for it."""
    key = _RULE, symbol
    if key not in store.choices:
        if not store.is_given(symbol):
            return None
        format_ = store.given(symbol)().format
        store.choices[key] = f"{symbol}@{format_.describe()}-given", format_
    name, format_ = store.choices[key]
    if store.is_given(symbol):
        store.derive(name, (), store.given(symbol))
    else:  # a packed model's, which has its bytes alone
        why = f"parameter {symbol!r} came quantised and cannot be given other values: load it anew"
        store.derive(name, [symbol], Unavailable(why))
    return name, format_
