"""`quantize-weights`: weights of selected linears, and of experts, become low-bit codes with a scale per group.

%w = lutra.param {sym = "a.weight"} : [N, K]           %w = lutra.param {sym = "a.weight@s4g128"} : !lutra.quantized
%y = lutra.linear(%x, %w)                        =>    %y = lutra.linear(%x, %w)

Stacks of experts: `passes/grouped_linears.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from ...ir.errors import CalibrationError, QuantizationError
from ...ir.graph import Graph, Phase
from ...ir.ops import LinearOp, quantized_format
from ...ir.patterns import Pattern, apply_patterns
from ...ir.rewriting import parameter_symbol, paths, static_shape
from ...ir.selection import Candidate
from ...ir.weights.derivations import Unavailable
from ...ir.weights.formats import PER_CHANNEL, Scheme, WeightFormat, dequantize
from ...ir.weights.rounding import RoundToNearest
from ...ir.weights.store import ParameterStore
from ..base import ALL_PHASES, Adjusted, Kind, LeftAlone, PassContext, PassReport
from ..calibration import Calibration, LinearStatistics
from ..grouped_linears import stack_of, stacks, take_stack
from ..left_alone import report_left_alone
from ..quantized_linears import take_weight
from .bit_budget import BitBudget
from .gptq import Gptq, output_error
from .half_quadratic import HalfQuadratic

Rule = RoundToNearest | HalfQuadratic | Gptq


class _Layer(NamedTuple):
    """A weight to quantise: paths of its modules ("" without one), and its columns."""

    paths: tuple[str, ...]
    columns: int

    def name(self, symbol: str) -> str:
        """What messages call it."""
        return ", ".join(filter(None, self.paths)) or symbol


@dataclass(frozen=True)
class QuantizeWeights:
    """Group quantisation of linear weights (docs/techniques.md, 1; formats in `ir/weights/formats.py`).

    bits: 1, 2, 3, 4 or 8, or `{average: 3, choices: [2, 3, 4]}`: every layer gets one of the choices within that
    average, the widest where errors matter most (`bit_budget.py`): by the loss that they cause in a calibration, to
    first order, or without one by the squared error of the weights. group_size: input columns a scale, 32, 64, 128,
    256 or "channel"; a layer whose columns it does not divide takes the largest of these that does, or is an error
    under `options["strict"]`. scheme: symmetric, asymmetric or ternary. method: `rtn`, round to nearest; `hqq`,
    data-free, a robust norm instead of the largest weight decides on scales or zero points (`half_quadratic.py`);
    `gptq`, errors of the product on calibration inputs are compensated (`gptq.py`): needs `options["calibration"]`.
    range_search: try narrower ranges per group for the least squared error (what `hqq` starts from, and `gptq` for each
    group). activations: `int8` lets products quantise their input per token and group (about 1 % of relative error);
    `float` keeps it as it is, which costs speed."""

    name: ClassVar[str] = "quantize-weights"
    kind: ClassVar[Kind] = "weight-static"
    phases: ClassVar[tuple[Phase, ...]] = ALL_PHASES

    bits: int | BitBudget = 4
    group_size: int | Literal["channel"] = 128
    scheme: Scheme = "symmetric"
    method: Literal["rtn", "hqq", "gptq"] = "rtn"
    range_search: bool = False
    activations: Literal["int8", "float"] = "int8"

    def __post_init__(self) -> None:
        if isinstance(self.bits, BitBudget) and self.scheme == "ternary":
            raise QuantizationError("ternary weights have one width: give bits: 2, or another scheme with a budget")
        for bits in self._choices:  # raises for a combination that does not exist
            self.format(bits)

    @property
    def _choices(self) -> tuple[int, ...]:
        return self.bits.choices if isinstance(self.bits, BitBudget) else (self.bits,)

    def format(self, bits: int) -> WeightFormat:
        """The weight format of a layer that gets `bits`, where groups divide its columns."""
        return WeightFormat(bits, PER_CHANNEL if self.group_size == "channel" else int(self.group_size), self.scheme)

    def run(self, graph: Graph, context: PassContext) -> None:
        """Quantise every selected linear whose weight is still a floating-point parameter."""
        linears = [
            op for op in graph.operations if isinstance(op, LinearOp) and parameter_symbol(op.weight) is not None
        ]
        offered = [Candidate(path, "linear", static_shape(op.weight)) for op in linears for path in paths(op) or ("",)]
        offered += [Candidate(s.path, "linear", (s.groups, s.n, s.k)) for _, s in stacks(graph.operations)]
        chosen = frozenset(c.path for c in context.select(offered))
        layers: dict[str, _Layer] = {}
        for op in linears:
            if (symbol := _weight_of(op, chosen)) is not None:
                layers[symbol] = _Layer(paths(op) or ("",), static_shape(op.weight)[1])
        for stack in {s.path: s for _, s in stacks(graph.operations) if s.path in chosen}.values():
            if (reason := stack.why_not or self._no_experts(context)) is not None:
                context.report.left.append(LeftAlone(stack.path, reason, "experts"))
                continue
            symbol = stack.derive(graph.store)
            layers[symbol] = _Layer((stack.path,), stack.k)
        del linears  # handles do not outlive a rewrite
        self._note_other_groups(context, layers)
        choices = self._choose(graph.store, context, layers)
        patterns = Quantize(self.activations, choices, chosen) + QuantizeExperts(self.activations, choices)
        apply_patterns(graph, patterns, context.report.count)
        if isinstance(self.bits, BitBudget):
            for _, format in choices.values():
                context.report.count(f"{format.bits} bits")

    def review(self, graph: Graph, report: PassReport) -> None:
        """List the weights that stay in floating point."""
        report_left_alone(graph, report, "no selector of the recipe takes it")

    def _no_experts(self, context: PassContext) -> str | None:
        """Why experts stay as they are; None when they need not."""
        if self.method == "gptq":
            return "a calibration has no statistics of experts, which method gptq needs: rtn and hqq do without"
        if isinstance(self.bits, BitBudget) and context.calibration is not None:
            return "a calibration has no statistics of experts, and a budget of bits goes by it"
        return None

    def _note_other_groups(self, context: PassContext, layers: Mapping[str, _Layer]) -> None:
        """Say which layers take other groups than asked for, since those do not divide their columns; raise
        `QuantizationError` under `strict`."""
        asked = self.format(self._choices[0])
        for symbol, layer in layers.items():
            format = asked.fitting(layer.columns)
            if format == asked:
                continue
            if context.strict:
                for each in layers.values():  # what would do for all of them
                    format = format.fitting(each.columns)
                size = '"channel"' if format.group_size == PER_CHANNEL else format.group_size
                raise QuantizationError(
                    f"{layer.name(symbol)}: group_size = {self.group_size} does not divide the weight's "
                    f"{layer.columns} input features, and `strict` takes no other by itself: give "
                    f'options={{"vars": {{"group_size": {size}}}}}, or group_size: {size} in a recipe of your own'
                )
            groups = "one scale a channel" if format.group_size == PER_CHANNEL else f"groups of {format.group_size}"
            what = f"{groups}, since {self.group_size} does not divide {layer.columns} input features"
            context.report.adjusted += [Adjusted(path or symbol, what) for path in layer.paths]

    def _choose(
        self, store: ParameterStore, context: PassContext, layers: Mapping[str, _Layer]
    ) -> dict[str, tuple[str, WeightFormat]]:
        """Name and format of every quantised weight, chosen once for all graphs of the model."""
        rule = repr(self)
        new = {symbol: layer for symbol, layer in layers.items() if (rule, symbol) not in store.choices}
        suffix = ("-search" if self.range_search else "") + ("" if self.method == "rtn" else f"-{self.method}")
        if self.method == "gptq" and context.calibration is not None:
            suffix += f"-{context.calibration.fingerprint}"
        for symbol, bits in self._widths(store, context, new).items():
            format = self.format(bits).fitting(layers[symbol].columns)
            name = f"{symbol}@{format.describe()}{suffix}"
            if store.derivation(name) is None:
                store.derive(name, [symbol], self._rule(store, context, symbol, layers[symbol], format))
            store.choices[rule, symbol] = name, format
        choices = {symbol: store.choices[rule, symbol] for symbol in layers}
        for symbol, (name, format) in choices.items():
            if store.derivation(name) is None:  # a packed model brings choices, and bytes, alone
                known = self.method != "gptq" or context.calibration is not None
                derivation = self._rule(store, context, symbol, layers[symbol], format) if known else _gone(symbol)
                store.derive(name, [symbol], derivation)
        return choices

    def _rule(
        self, store: ParameterStore, context: PassContext, symbol: str, layer: _Layer, format: WeightFormat
    ) -> Rule:
        """What turns the weight `symbol` into codes."""
        if self.method == "hqq":
            return HalfQuadratic(format, self.range_search)
        if self.method == "rtn":
            return RoundToNearest(format, self.range_search)
        gram = _needed_statistics(store, context, symbol, layer, "method gptq").gram
        inputs = f"{symbol}, {context.calibration.fingerprint}" if context.calibration is not None else symbol
        return Gptq(format, gram, self.range_search, inputs=inputs)

    def _widths(self, store: ParameterStore, context: PassContext, layers: Mapping[str, _Layer]) -> Mapping[str, int]:
        """Bits of every weight."""
        if not isinstance(self.bits, BitBudget):
            return dict.fromkeys(layers, self.bits)
        errors = {
            symbol: {
                bits: self._loss(store, context, symbol, layer, self.format(bits).fitting(layer.columns))
                for bits in self.bits.choices
            }
            for symbol, layer in layers.items()
        }
        return self.bits.allocate(errors, {symbol: store.tensor(symbol).numel() for symbol in errors})

    def _loss(
        self, store: ParameterStore, context: PassContext, symbol: str, layer: _Layer, format: WeightFormat
    ) -> float:
        """What rounding the weight `symbol` costs: to first order in the calibration's loss, or its squared error."""
        weight = store.tensor(symbol).detach().float()
        rounded = dequantize(self._rule(store, context, symbol, layer, format)(weight))
        if context.calibration is None:
            return float((weight - rounded).square().sum())
        found = _needed_statistics(store, context, symbol, layer, "a budget of bits")
        return float(found.sensitivity @ output_error(weight, rounded, found.gram))


@dataclass(frozen=True)
class Quantize(Pattern):
    """`linear(x, weight)` of the modules `chosen` -> `linear(x, codes)`.

    choices: name and format of the codes, by weight."""

    roots = ("lutra.linear",)

    activations: Literal["int8", "float"]
    choices: Mapping[str, tuple[str, WeightFormat]]
    chosen: frozenset[str]

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        symbol = _weight_of(op, self.chosen)
        if symbol is None or symbol not in self.choices:
            return False
        take_weight(op, rewriter, *self.choices[symbol], self.activations)
        return True


@dataclass(frozen=True)
class QuantizeExperts(Pattern):
    """`grouped_mm(x, weights, ends)` -> `lutra.grouped_linear(x, codes, ends)`; choices: by the rows of the stack."""

    roots = ("torch.operator",)

    activations: Literal["int8", "float"]
    choices: Mapping[str, tuple[str, WeightFormat]]

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        stack = stack_of(op)
        if stack is None or stack.rows_symbol not in self.choices:
            return False
        name, format = self.choices[stack.rows_symbol]
        take_stack(op, rewriter, stack, name, format, "float" if self.activations == "float" else None)
        return True


def _weight_of(op: Any, chosen: frozenset[str]) -> str | None:
    """The symbol of the floating-point weight of a linear that the selector took."""
    symbol = parameter_symbol(op.weight)
    taken = symbol is not None and quantized_format(op.weight.type) is None and set(paths(op) or ("",)) <= chosen
    return symbol if taken else None


def _gone(symbol: str) -> Unavailable:
    return Unavailable(f"parameter {symbol!r} was quantised with a calibration that is not here: pack the model again")


def _needed_statistics(
    store: ParameterStore, context: PassContext, symbol: str, layer: _Layer, what: str
) -> LinearStatistics:
    found = _statistics(store, context.calibration, symbol)
    if found is None:
        given = "needs a calibration" if context.calibration is None else "was not reached by the calibration"
        raise CalibrationError(
            f"{layer.name(symbol)}: quantize-weights with {what} {given}: pass "
            'options={"calibration": lutra.calibrate(model, batches)} with inputs that reach it'
            + (", or use method hqq, which needs no data" if what == "method gptq" else "")
        )
    return found


def _statistics(store: ParameterStore, calibration: Calibration | None, symbol: str) -> LinearStatistics | None:
    """Statistics of the layer whose weight `symbol` is, or is made from; None where there are none."""
    if calibration is None:
        return None
    return calibration.of(next((store.bound(name) for name in store.sources(symbol)), None))
