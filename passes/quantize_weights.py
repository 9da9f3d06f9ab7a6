"""`quantize-weights`: weights of selected linears become low-bit codes with a scale per group.

%w = lutra.param {sym = "a.weight"} : [N, K]           %w = lutra.param {sym = "a.weight@s4g128"} : !lutra.quantized
%y = lutra.linear(%x, %w)                        =>    %y = lutra.linear(%x, %w)
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..ir.errors import QuantizationError
from ..ir.graph import Graph, Phase
from ..ir.quantization import PER_CHANNEL, Scheme, WeightFormat
from ..ir.rewriting import (
    GatedMlpOp,
    LinearOp,
    ParamOp,
    Pattern,
    apply_patterns,
    build,
    keep_activations,
    parameter_symbol,
    paths,
    quantized_format,
    quantized_type,
    static_shape,
    tensor_type,
    vtensor,
)
from ..ir.rounding import RoundToNearest
from ..ir.selection import Candidate
from .base import ALL_PHASES, Kind, PassContext
from .fuse_linear import linear_patterns


@dataclass(frozen=True)
class QuantizeWeights:
    """Group quantisation of linear weights (PAPERS.md section 1; formats in `ir/quantization.py`).

    bits: 1, 2, 3, 4 or 8. group_size: input columns a scale, 32, 64, 128, 256 or "channel". scheme: symmetric,
    asymmetric or ternary. method: `rtn`, round to nearest, data-free. range_search: try narrower ranges per group for
    the least squared error. activations: `int8` lets products quantise their input per token and group (about 1 %
    of relative error); `float` keeps it as it is, which costs speed."""

    name: ClassVar[str] = "quantize-weights"
    kind: ClassVar[Kind] = "weight-static"
    phases: ClassVar[tuple[Phase, ...]] = ALL_PHASES

    bits: int = 4
    group_size: int | Literal["channel"] = 128
    scheme: Scheme = "symmetric"
    method: Literal["rtn"] = "rtn"
    range_search: bool = False
    activations: Literal["int8", "float"] = "int8"

    def __post_init__(self) -> None:
        self.format  # noqa: B018  (raises for a combination that does not exist)

    @property
    def format(self) -> WeightFormat:
        """The weight format that the parameters describe."""
        return WeightFormat(
            self.bits, PER_CHANNEL if self.group_size == "channel" else int(self.group_size), self.scheme
        )

    def run(self, graph: Graph, context: PassContext) -> None:
        """Quantise every selected linear whose weight is still a floating-point parameter."""
        apply_patterns(graph, linear_patterns(graph.store), context.report.count)  # for recipes without `fuse`
        linears = [
            op for op in graph.operations if isinstance(op, LinearOp) and parameter_symbol(op.weight) is not None
        ]
        offered = [Candidate(path, "linear", static_shape(op.weight)) for op in linears for path in paths(op) or ("",)]
        chosen = {c.path for c in context.select(offered)}
        del linears  # handles do not outlive a rewrite

        def split_merged(op: Any, rewriter: Any) -> bool:
            return _unmerge(graph, op, rewriter, chosen)

        def quantize(op: Any, rewriter: Any) -> bool:
            return self._quantize(graph, op, rewriter, chosen)

        apply_patterns(graph, {"lutra.linear": [split_merged]}, context.report.count)
        patterns: dict[str, list[Pattern]] = {"lutra.linear": [quantize]}
        apply_patterns(graph, patterns, context.report.count)

    def _quantize(self, graph: Graph, op: Any, rewriter: Any, chosen: set[str]) -> bool:
        symbol = parameter_symbol(op.weight)
        own = paths(op) or ("",)
        if symbol is None or quantized_format(op.weight.type) is not None or not set(own) <= chosen:
            return False
        n, k = static_shape(op.weight)
        try:
            type_ = quantized_type(n, k, self.format)
        except QuantizationError as error:
            raise QuantizationError(f"{', '.join(filter(None, own)) or symbol}: {error}") from None
        suffix = "-search" if self.range_search else ""
        compute = RoundToNearest(self.format, self.range_search)
        name = graph.store.derive(f"{symbol}@{self.format.describe()}{suffix}", [symbol], compute)
        weight = build(ParamOp, rewriter, op, name, type_).out
        keywords = {key: value for key in ("bias", "residual") if (value := getattr(op, key)) is not None}
        new = build(LinearOp, rewriter, op, op.x, weight, op.out.type, **keywords)
        if self.activations == "float":
            keep_activations(new)
        rewriter.replace_op(op, new.operation)
        return True


def _unmerge(graph: Graph, op: Any, rewriter: Any, chosen: set[str]) -> bool:
    """Take a merged linear apart again when the selector took only some of its parts."""
    own = paths(op)
    if len(own) < 2 or not (set(own) & chosen) or set(own) <= chosen or quantized_format(op.weight.type) is not None:
        return False
    weights = graph.store.parts(parameter_symbol(op.weight))
    biases = graph.store.parts(parameter_symbol(op.bias)) if op.bias is not None else (None,) * len(own)
    if len(weights) != len(own):
        return False
    linears, start, starts = [], 0, {}
    for path, weight, bias in zip(own, weights, biases, strict=True):
        rows = graph.store.shape(weight)[0]
        operand = build(ParamOp, rewriter, op, weight, vtensor((rows, static_shape(op.weight)[1]), op.weight)).out
        keywords = {}
        if bias is not None:
            keywords["bias"] = build(ParamOp, rewriter, op, bias, vtensor((rows,), op.bias)).out
        type_ = vtensor((*tensor_type(op.out.type).shape[:-1], rows), op.out)
        linears.append(build(LinearOp, rewriter, op, op.x, operand, type_, path=path, **keywords))
        starts[start] = len(linears) - 1
        start += rows
    for use in list(op.out.uses):
        user = use.owner
        if user.operation.name == "lutra.split":
            part = linears[starts[user.attributes["start"].value]]
            rewriter.replace_op(user, part.operation)
        else:
            gate = user.opview
            new = build(
                GatedMlpOp, rewriter, gate, linears[0].out, gate.activation.value, gate.out.type, up=linears[1].out
            )
            rewriter.replace_op(user, new.operation)
    rewriter.erase_op(op)
    return True
