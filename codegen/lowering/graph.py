"""One graph of the IR becomes one Relax function: walk its operations, ask the registry, fall back to torch."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from ...ir.errors import LoweringError
from ...ir.graph import Graph
from ...ir.operator_call import REGION_CALL, OperatorCall, operation_name
from ..runtime.manifest import Chosen, LiteralOutput, Manifest, Output, SizeOutput, TensorOutput, UpdatedInput
from ..runtime.torch_calls import TorchCall
from ..select import Database, Family, HasImplementations
from .aten import pointwise, reductions, views
from .builder import Lowering, Made, is_size, is_tensor
from .lutra import attention, linear
from .registry import DECLINED, LOWERINGS, Lower
from .write_back import write_back

REGISTERED = (pointwise, reductions, views, attention, linear)
"""Whose import registers lowerings."""


@dataclass(frozen=True)
class Lowered:
    """A Relax module whose function `main` computes a graph, and what its caller must know."""

    module: tvm.IRModule
    manifest: Manifest


def lower_graph(
    graph: Graph,
    target: HasImplementations,
    family: Family | None = None,
    strict: bool = False,
    database: Database | None = None,
) -> Lowered:
    """`graph` in Relax. family: what low-bit weights are packed for; None leaves it to the target.

    Raises `LoweringError` when some operator has no lowering and `strict` is set."""
    low = Lowering(graph, target, family, database or {})
    params = _parameters(low)
    with low.builder.function("main"):
        low.builder.begin_scope(params)
        with low.builder.dataflow():
            *operations, last = graph.operations
            for op in operations:
                _lower(low, op)
            results, outputs = _results(low, list(last.operation.operands))
            output = low.builder.emit_output(relax.Tuple(results))
        low.builder.end_scope()
        low.builder.emit_func_output(output, params + list(low.weights.values()))
    module = low.builder.finalize()
    # The machine then checks the shapes of inputs alone at every call: weights are ours.
    module.update_func(module.get_global_var("main"), module["main"].with_attr("num_input", len(params)))
    if strict and low.fallbacks:
        raise LoweringError(
            "strict: these operators have no lowering and would run as torch calls:\n  "
            + "\n  ".join(map(str, low.fallbacks))
        )
    manifest = Manifest(
        tuple(low.weights), tuple(outputs), dict(low.kernels), tuple(low.fallbacks), _account(low.chosen)
    )
    return Lowered(module, manifest)


def _parameters(low: Lowering) -> list[relax.Var]:
    """The sizes, then the tensors that the graph is called with."""
    graph = low.graph
    arguments = list(graph.function.regions[0].blocks[0].arguments)
    sizes = [low.symbols.expression(i.symbol) for i in graph.inputs if i.symbol is not None]
    params = [relax.Var("sizes", relax.ShapeType(sizes))]
    for value, description in zip(arguments, graph.inputs, strict=True):
        if description.symbol is not None:
            low.define(value, low.symbols.expression(description.symbol))
            continue
        params.append(relax.Var(f"input{len(params) - 1}", low.tensor_type(value)))
        low.define(value, params[-1])
    return params


def _lower(low: Lowering, op: Any) -> None:
    operation = op.operation
    numbers = [low.number(result) for result in operation.results]
    if numbers and all(n is not None and n.free_symbols <= low.symbols.variables.keys() for n in numbers):
        for result, number in zip(operation.results, numbers, strict=True):
            low.define(result, low.symbols.expression(number))
        return
    if numbers and not operation_name(op).startswith(REGION_CALL) and all(map(low.is_empty, operation.results)):
        for result in operation.results:
            low.define(result, low.empty(low.tensor_type(result)))
        return
    value = _lowered(low, op, LOWERINGS.get(operation_key(op)))
    items: list[Any] = value if isinstance(value, list) and len(operation.results) != 1 else [value]
    for result, item in zip(operation.results, items, strict=False):
        low.define(result, item)


def _lowered(low: Lowering, op: Any, lower: Lower | None) -> Any:
    """What `lower` makes of `op`; where it declines or fails, the torch operator."""
    kernels, chosen, reason = low.kernels.copy(), len(low.chosen), "it has no lowering"
    if lower is not None:
        try:
            value = lower(low, op)
            if value is not DECLINED:
                return value
            reason = "its lowering does not cover this case"
        except Exception as error:
            low.kernels, low.chosen = kernels, low.chosen[:chosen]
            reason = f"its lowering failed: {type(error).__name__}: {error}"
    call, slots = OperatorCall.of(op)
    low.fallbacks += _fallbacks(low, op, call, reason)
    return low.call_torch(op, call, slots)


def _fallbacks(low: Lowering, op: Any, call: OperatorCall, reason: str) -> list[TorchCall]:
    """What a call stands for: an operator, or those of a region."""
    if call.region is None:
        return [TorchCall.of(op, call.name, reason)]
    return [TorchCall.of_node(node, why) for _, why, node in low.graph.regions[call.region].operators]


def _results(low: Lowering, values: list[Any]) -> tuple[list[relax.Expr], list[Output]]:
    tensors: list[Any] = []
    sizes: list[Any] = []
    outputs: list[Output] = []
    written = write_back(low, values)
    for number, value in enumerate(values):
        item = written.get(number, low[value])
        if is_tensor(item):
            # An updated input is returned too: nothing else may read it, and the update would be dead code.
            given = low.graph.mutations[number] if number in written else low.updated.get(value)
            if number in low.aliases.lent:
                item, given = low.library("copy", [item], low.tensor_type(value)), None
            outputs.append(TensorOutput(len(tensors) + 1) if given is None else UpdatedInput(given))
            tensors.append(item)
        elif is_size(item):
            outputs.append(SizeOutput(len(sizes)))
            sizes.append(item)
        else:
            outputs.append(LiteralOutput(item))
    return [relax.ShapeExpr(sizes), *tensors], outputs


def operation_key(op: Any) -> str:
    """The name under which lowerings are registered."""
    name = operation_name(op)
    return name if name.startswith(("torch.", "lutra.", "func.")) else f"torch.{name}"


def _account(made: Iterable[Made]) -> tuple[Chosen, ...]:
    """Choices for equal kinds and reasons together, in the order in which they were made first."""
    groups: dict[Chosen, list[Made]] = {}
    for each in made:
        choice = each.choice
        slower, unable = tuple(choice.slower.items()), tuple(choice.unable.items())
        alike = Chosen(choice.problem.kind, choice.implementation.name, 0, slower, unable)
        groups.setdefault(alike, []).append(each)
    return tuple(
        replace(alike, count=len(group), weights=tuple(dict.fromkeys(s for each in group for s in each.symbols)))
        for alike, group in groups.items()
    )
