"""What a decode step should cost on this machine, before anybody times it.

    print(lutra.explain(model, context=512))

Bytes and operations are the formulas of `ir/ops` and `ir/analysis/cost.py`; a time is the larger of work over rate and
bytes over the read ceiling, and a fixed cost for each kernel call and for the step. Rates are those of `machine.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import sympy
from rich.console import Console, Group
from rich.table import Table

from ..codegen.runtime.manifest import Chosen
from ..codegen.runtime.weights import PackedWeight
from ..ir.analysis.amounts import CONTEXT, Amount
from ..ir.analysis.cost import OperationCost, graph_costs, total
from ..ir.errors import LutraError
from ..ir.ops import AttentionOp, LinearOp, TableLinearOp
from ..ir.types import tensor_type
from ..passes.base import PassReport
from ..torch_plugin.compiled_graph import CompiledGraph
from ..torch_plugin.inspect.report import choice_table, module_of, states_of
from .machine import Machine, Product, machine_for

_WIDTH = 110
_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """One operation: its cost as formulas, evaluated, and the seconds that are predicted for it.

    product: the kind of linear, None for any other operation."""

    cost: OperationCost
    amount: Amount
    seconds: float
    product: Product | None = None

    @property
    def kind(self) -> str:
        """What it is summed with."""
        if self.product is None:
            return self.cost.name
        format_ = self.product.format
        return f"{self.cost.name} {self.product.family} {'' if format_ is None else format_.describe()}".rstrip()


@dataclass(frozen=True)
class Explanation:
    """A decode step of one graph: operations in order, and what the machine adds.

    formulas: totals in the graph's symbols. kernel_seconds: of all kernel calls beside their work. step_seconds:
    outside compiled code."""

    rows: tuple[Row, ...]
    formulas: Amount
    batch: int
    context: int
    kernel_calls: int
    kernel_seconds: float
    step_seconds: float
    passes: tuple[PassReport, ...] = ()
    chosen: tuple[Chosen, ...] = ()

    @property
    def amount(self) -> Amount:
        """Totals, evaluated."""
        return sum((row.amount for row in self.rows), Amount())

    @property
    def seconds(self) -> float:
        """Of one step."""
        return sum(row.seconds for row in self.rows) + self.kernel_seconds + self.step_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences of the batch together."""
        return self.batch / self.seconds

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich__(self) -> Group:
        """A table by kind of operation, then totals."""
        table = Table(title=f"decode, batch {self.batch}, context {self.context}", title_justify="left")
        for heading in ("operation", "count", "weights MB", "other MB", "M operations", "us", "share"):
            table.add_column(heading, justify="left" if heading == "operation" else "right")
        kinds: dict[str, list[Row]] = {}
        for row in self.rows:
            kinds.setdefault(row.kind, []).append(row)

        def line(name: str, count: int | str, amount: Amount | None, seconds: float) -> None:
            sizes = ("", "", "")
            if amount is not None:
                millions = (amount.weights, amount.read + amount.written, amount.operations)
                sizes = tuple(f"{float(value) / 1e6:.2f}" for value in millions)
            table.add_row(name, str(count), *sizes, f"{1e6 * seconds:.0f}", f"{seconds / self.seconds:.1%}")

        for kind, rows in sorted(kinds.items(), key=lambda item: -sum(row.seconds for row in item[1])):
            amount = sum((row.amount for row in rows), Amount())
            line(kind, len(rows), amount, sum(row.seconds for row in rows))
        line("kernel calls", self.kernel_calls, None, self.kernel_seconds)
        line("outside compiled code", 1, None, self.step_seconds)
        table.add_section()
        line("step", 1, self.amount, self.seconds)
        facts = Table.grid(padding=(0, 2))
        facts.add_row("weights read, bytes", str(self.formulas.weights))
        facts.add_row("other bytes", str(sympy.expand(self.formulas.read + self.formulas.written)))
        facts.add_row("operations", str(sympy.expand(self.formulas.operations)))
        facts.add_row("tokens/s", f"{self.tokens_per_second:.1f}")
        for report in self.passes:
            changed = ", ".join(f"{name} {count}" for name, count in report.changed.items()) or "nothing"
            left = "; ".join(f"{left.path}: {left.reason}" for left in report.left[:_SHOWN])
            facts.add_row(report.name, f"{changed}{f'; left alone: {left}' if left else ''}")
        return Group(table, facts)

    def layers(self) -> Group:
        """Every linear: which format and kernels it got, and its share; then why it got these kernels and no others."""
        implementations = {weight: choice.implementation for choice in self.chosen for weight in choice.weights}
        table = Table(title="linears", title_justify="left")
        for heading in ("modules", "weight", "by", "MB", "us"):
            table.add_column(heading, justify="right" if heading in ("MB", "us") else "left")
        for row in self.rows:
            if row.product is not None:
                size, by = f"{float(row.amount.weights) / 1e6:.2f}", implementations.get(row.cost.weight or "", "")
                table.add_row(row.cost.path, row.product.name, by, size, f"{1e6 * row.seconds:.0f}")
        return Group(table, choice_table(self.chosen))


def explain(model: Any, context: int, batch: int | None = None, machine: Machine | None = None) -> Explanation:
    """Predict a decode step of `model` (what `lutra.report` takes) that attends to `context` tokens.

    The model must have been compiled and must have generated something. batch: needed when it is symbolic in the graph;
    machine: constants to predict with, else this machine's, measured when they are not in the cache folder (a minute).
    Raises `LutraError` when there is no decode graph, or none for these sizes."""
    compiled = decode_graph(model, batch)
    costs, sizes = graph_costs(compiled.graph), _sizes(compiled, context, batch)
    products = _products(compiled, costs, sizes)
    if machine is None:
        machine = machine_for(dict.fromkeys(products.values()), compiled.state.options, weights_of(model, batch))
    rows = []
    for index, cost in enumerate(costs):
        amount, product = cost.amount.at(sizes), products.get(index)
        rows.append(Row(cost, amount, _seconds(cost, amount, product, machine), product))
    calls = sum(compiled.executable.summary.kernels.values())
    return Explanation(
        rows=tuple(rows),
        formulas=total(costs),
        batch=batch or _captured_batch(compiled) or 1,
        context=context,
        kernel_calls=calls,
        kernel_seconds=calls * machine.kernel,
        step_seconds=machine.step,
        passes=tuple(compiled.pass_reports),
        chosen=compiled.executable.summary.chosen,
    )


def products_of(model: Any, context: int, batch: int | None = None) -> Iterable[Product]:
    """The kinds of linear in the decode graph of `model`: what a `Meter` must measure for it."""
    compiled = decode_graph(model, batch)
    found = _products(compiled, graph_costs(compiled.graph), _sizes(compiled, context, batch))
    return dict.fromkeys(found.values())


def weights_of(model: Any, batch: int | None = None) -> int:
    """Bytes of weights that a decode step of `model` reads."""
    return int(total(graph_costs(decode_graph(model, batch).graph)).weights)


def decode_graph(model: Any, batch: int | None = None) -> CompiledGraph:
    """The last decode graph of `model` that takes `batch`; raises `LutraError` when there is none."""
    graphs = [g for state in states_of(module_of(model)) for g in state.graphs if g.graph.phase == "decode"]
    if not graphs:
        raise LutraError("the model has no decode graph yet: compile it and generate two tokens over a cache first")
    fitting = [g for g in graphs if batch is None or _captured_batch(g) in (None, batch)]
    if not fitting:
        batches = ", ".join(sorted({str(_captured_batch(g)) for g in graphs}))
        raise LutraError(f"no decode graph takes a batch of {batch}: the model was compiled for {batches}")
    return fitting[-1]


def _batch(compiled: CompiledGraph) -> sympy.Expr:
    """The first size of the first tensor with one: token ids, or hidden states."""
    shape = next(shape for shape in compiled.graph.input_shapes if len(shape) > 1)
    return sympy.sympify(shape[0])


def _captured_batch(compiled: CompiledGraph) -> int | None:
    batch = _batch(compiled)
    return int(batch) if batch.is_number else None


def _sizes(compiled: CompiledGraph, context: int, batch: int | None) -> dict[sympy.Symbol, int]:
    """Every symbol's value: the batch, and `context` for what else grows (the length of a cache)."""
    if context < 1:
        raise LutraError(f"a context of {context} tokens cannot be attended to: it must be 1 or more")
    sizes = dict.fromkeys(compiled.graph.symbol_ranges, context)
    symbol = _batch(compiled)
    if isinstance(symbol, sympy.Symbol) and symbol in sizes:
        if batch is None:
            raise LutraError("the batch is symbolic in this graph: give one (batch=1)")
        sizes[symbol] = batch
    lengths = [shape[2] for i, shape in zip(compiled.graph.inputs, compiled.graph.input_shapes, strict=True)
               if i.mutated and len(shape) == 4]  # fmt: skip
    longest = max((int(n) for n in lengths if sympy.sympify(n).is_number), default=context)
    if context > longest:
        raise LutraError(f"a context of {context} tokens does not fit the cache of {longest} that the graph has")
    return {**sizes, CONTEXT: context}


def _products(
    compiled: CompiledGraph, costs: list[OperationCost], sizes: dict[sympy.Symbol, int]
) -> dict[int, Product]:
    """Position in `costs` -> the kind of linear, for linears."""
    packed = {s.symbol: s.layout for s in compiled.executable.sources if isinstance(s, PackedWeight)}
    dtype = _dtype(compiled)
    found = {}
    for index, cost in enumerate(costs):
        if cost.weight is None:
            continue
        layout, rows = packed.get(cost.weight), int(cost.rows.subs(sizes))
        if layout is None:
            found[index] = Product(None, "plain", rows, dtype)
        else:
            found[index] = Product(layout.format, layout.family, rows, dtype, cost.keeps_activations)
    return found


def _dtype(compiled: CompiledGraph) -> str:
    """Of activations."""
    for op in compiled.graph.operations:
        if isinstance(op, LinearOp | TableLinearOp):
            return str(tensor_type(op.out.type).dtype).removeprefix("torch.")
    return "float32"


def _seconds(cost: OperationCost, amount: Amount, product: Product | None, machine: Machine) -> float:
    """The larger of work over rate and bytes over the ceiling."""
    moving = float(amount.traffic) / machine.read
    if product is not None:
        rate, beside = machine.products[product.name]
        return max(float(amount.weights) / rate, moving) + beside
    if cost.name == AttentionOp.OPERATION_NAME:
        return max(float(amount.operations) / machine.attention, moving)
    return moving
