"""`given-weights`: weights that a checkpoint brought quantised (GPTQ, AWQ, torchao, GGUF) keep its codes.

%w = lutra.param {sym = "a.weight"} : [N, K]           %w = lutra.param {sym = "a.weight@a4g128-given"} : quantized
%y = lutra.linear(%x, %w)                        =>    %y = lutra.linear(%x, %w)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ..ir.graph import Graph, Phase
from ..ir.ops import LinearOp, quantized_format
from ..ir.rewriting import apply_patterns, parameter_symbol, paths, static_shape
from ..ir.selection import Candidate
from ..ir.weights.formats import QuantizedWeight, WeightFormat
from ..ir.weights.store import ParameterStore
from .base import ALL_PHASES, Kind, PassContext, PassReport
from .fuse.linears import linear_patterns
from .left_alone import report_left_alone
from .quantized_linears import take_weight, unmerge

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
        store = graph.store
        apply_patterns(graph, linear_patterns(store), context.report.count)  # for recipes without `fuse`
        offered = [
            Candidate(path, "linear", static_shape(op.weight))
            for op in graph.operations
            if isinstance(op, LinearOp) and quantized_format(op.weight.type) is None
            for path, part in _parts(store, op)
            if _form(store, parameter_symbol(op.weight)) or _form(store, part)
        ]
        chosen = {c.path for c in context.select(offered)} if offered else set()

        def split_merged(op: Any, rewriter: Any) -> bool:
            """A merged linear whose parts came in one format stays merged."""
            own = set(paths(op))
            if own <= chosen and _form(store, parameter_symbol(op.weight)) is None:
                return unmerge(graph, op, rewriter, set(paths(op)[:1]))
            return unmerge(graph, op, rewriter, chosen)

        def take_given(op: Any, rewriter: Any) -> bool:
            found = _form(store, parameter_symbol(op.weight)) if set(paths(op) or ("",)) <= chosen else None
            if found is None or quantized_format(op.weight.type) is not None:
                return False
            take_weight(op, rewriter, *found, self.activations)
            return True

        for pattern in (split_merged, take_given):
            apply_patterns(graph, {"lutra.linear": [pattern]}, context.report.count)

    def review(self, graph: Graph, report: PassReport) -> None:
        """List the weights that stay in floating point."""
        report_left_alone(graph, report, "it did not come quantised, or the selector does not take it")


def _parts(store: ParameterStore, op: Any) -> Iterable[tuple[str, str]]:
    """Module path and weight of each linear that `op` was made from; none when its weight is no parameter."""
    symbol = parameter_symbol(op.weight)
    parts = store.parts(symbol) or ((symbol,) if symbol is not None else ())
    return zip(paths(op) or ("",), parts, strict=False)


def _form(store: ParameterStore, symbol: str | None) -> tuple[str, WeightFormat] | None:
    """Name and format of the quantised `symbol`; None when it, or one of its parts, did not come quantised, or when
    its parts came in several formats. Decided once: the values are read for it."""
    if symbol is None or (_RULE, symbol) in store.choices:
        return store.choices.get((_RULE, symbol or ""))
    parts = store.parts(symbol) or (symbol,)
    if not all(store.is_given(part) for part in parts):
        return None
    formats = {store.given(part).format for part in parts}
    if len(formats) > 1:
        return None
    (format_,) = formats
    name = f"{symbol}@{format_.describe()}-given"
    store.derive(name, (), lambda: _stacked([store.given(part) for part in parts]))
    store.choices[_RULE, symbol] = name, format_
    return name, format_


def _stacked(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    zeros = [w.zero_points for w in weights if w.zero_points is not None]
    codes, scales = torch.cat([w.codes for w in weights]), torch.cat([w.scales for w in weights])
    return QuantizedWeight(codes, scales, torch.cat(zeros) if zeros else None, weights[0].format)
