"""What the analyses say of the graphs of one call of a model in miniature: as imported, fused, and with 4-bit weights.

Handles of MLIR do not outlive a rewrite, so what is kept is plain data.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from lutra.ir.analysis.axes import Axes, axes
from lutra.ir.analysis.layers import Layers, layers
from lutra.ir.graph import Graph
from lutra.ir.interpreter import evaluate
from lutra.ir.operator_call import operation_name
from torch import nn

from .architectures import ARCHITECTURES, Sizes
from .capture import Interpreted

STAGES = ("imported", "none", "w4")


@dataclass(frozen=True)
class Dim:
    """One dimension: kinds of its axes, entries, and the kinds of all that its size follows from."""

    kinds: tuple[str, ...]
    size: int
    follows: frozenset[str]


@dataclass
class StudiedGraph:
    """phase; values: operation (or "argument"), and what each tensor has for dimensions; contradictions of its axes;
    stacks: name -> per layer its path, axes of its stream, roles of side inputs and outputs; unowned and twice: numbers
    of operations in no layer and in several; boundaries: stack -> what the stream is in numbers, entries then exit."""

    phase: str
    values: list[tuple[str, tuple[Dim, ...]]]
    contradictions: list[str]
    stacks: dict[str, list["StudiedLayer"]]
    twice: int
    unowned: int
    why_none: str
    boundaries: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class StudiedLayer:
    path: str
    axes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operations: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """Graphs by stage; hooked: module path -> hidden states that went in and came out, in eager, a pair a call."""

    graphs: dict[str, list[StudiedGraph]]
    hooked: dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


@cache
def study(name: str, batch: int, length: int, sizes: Sizes | None = None) -> Study:
    """One forward without a cache to begin with."""
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.model(sizes), architecture.inputs(batch, length)
    backend = Interpreted()
    with torch.no_grad():
        torch.compile(model, backend=backend)(**inputs)
        hooked = _hooked(model, inputs)
    found = {}
    for stage in STAGES:
        if stage != "imported":
            for graph in backend.graphs:
                backend.run_passes(graph, stage)
        calls = {id(call.graph): call.arguments for call in backend.calls}
        found[stage] = [studied(graph, calls[id(graph)] if stage != "w4" else None) for graph in backend.graphs]
    return Study(found, hooked)


def studied(graph: Graph, arguments: list[Any] | None = None) -> StudiedGraph:
    """arguments: of a call, for what the residual stream is in numbers."""
    known = axes(graph)
    found = layers(graph, known)
    owned = [operation for stack in found.stacks for layer in stack.layers for operation in layer.operations]
    total = len(list(graph.operations))
    return StudiedGraph(
        graph.phase,
        list(_values(graph, known)),
        [f"{c.place}: {c.what}" for c in known.contradictions],
        {stack.name: _layers(found, known, stack) for stack in found.stacks},
        len(owned) - len(set(owned)),
        total - len(owned) - len(found.outside),
        found.why_none,
        _boundaries(graph, found, arguments) if arguments is not None else {},
    )


def _layers(found: Layers, known: Axes, stack: Any) -> list[StudiedLayer]:
    return [
        StudiedLayer(
            layer.path,
            known.kinds(layer.entry),
            tuple(side.role for side in layer.side_inputs),
            tuple(side.role for side in layer.side_outputs),
            tuple(operation_name(operation) for operation in layer.operations),
        )
        for layer in stack.layers
    ]


def _values(graph: Graph, known: Axes) -> Iterable[tuple[str, tuple[Dim, ...]]]:
    kinds = {axis.number: axis.kind for found in known.dimensions.values() for dim in found for axis in dim}
    block = graph.function.regions[0].blocks[0]
    named = [("argument", value) for value in block.arguments]
    named += [(operation_name(op.operation), value) for op in graph.operations for value in op.operation.results]
    for name, value in named:
        if value in known.dimensions:
            dims = []
            for dimension in known.of(value):
                follows = {kinds[n] for axis in dimension for n in (axis.number, *axis.made_of)}
                size = math.prod(int(axis.size) for axis in dimension)
                dims.append(Dim(tuple(axis.kind for axis in dimension), size, frozenset(follows)))
            yield name, tuple(dims)


def _boundaries(graph: Graph, found: Layers, arguments: list[Any]) -> dict[str, list[torch.Tensor]]:
    wanted = {stack.name: [*(layer.entry for layer in stack.layers), stack.layers[-1].exit] for stack in found.stacks}
    seen: dict[Any, torch.Tensor] = {}
    values = {value for bounds in wanted.values() for value in bounds}
    evaluate(graph, arguments, on_value=lambda value, result: seen.update({value: result} if value in values else {}))
    return {name: [seen[value] for value in bounds] for name, bounds in wanted.items()}


def _hooked(model: nn.Module, inputs: dict[str, Any]) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def hook(path: str) -> Any:
        def note(_: nn.Module, given: Any, keywords: Any, result: Any) -> None:
            before = given[0] if given else keywords.get("hidden_states")
            after = result[0] if isinstance(result, tuple) else result
            if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
                found.setdefault(path, []).append((before.clone(), after.clone()))

        return note

    handles = [m.register_forward_hook(hook(path), with_kwargs=True) for path, m in model.named_modules() if path]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return found
