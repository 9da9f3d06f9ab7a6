"""The layers of a graph: where the residual stream enters and leaves each, its operations, what else goes in and out.

A layer adds to the residual stream what it computes of it: `x + f(x)`. Such sums over values of the same axes, each on
the stream of the one before (straight, or through a norm), are a stack of layers; a graph may have several (encoder and
decoder, vision and text). Where one layer ends and the next begins the module paths say, `model.layers.3`; where they
do not (layers that share their modules, no modules at all), the pattern of the sums, which repeats.

An operation belongs to the last layer whose entry it depends on. What depends on no entry is outside, unless one layer
alone reads it: its weights, and what it makes of a cache or of the encoder's states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch_mlir import ir

from ..graph import Graph
from ..rewriting import paths
from ..types import as_tensor_type
from .axes import Axes, Dimension, axes
from .residual import Flow, Sum

Role = Literal["mask", "rope", "positions", "cache", "states", "other"]
"""`states`: activations of another stack, or of another layer. `cache`: keys and values, and whatever else the graph
updates."""


@dataclass(frozen=True)
class Side:
    """A tensor that goes into a layer, or out of it, beside the residual stream."""

    value: Any
    role: Role


@dataclass(frozen=True)
class Layer:
    """`index`: in its stack, from 0. `path`: of its module ("" where no module tells). `entry`, `exit`: the residual
    stream. `operations`: in order. `side_inputs`: tensors but weights and constants that it reads besides;
    `side_outputs`: results of its operations that others read or the graph gives back."""

    index: int
    path: str
    entry: Any
    exit: Any
    operations: tuple[Any, ...]
    side_inputs: tuple[Side, ...]
    side_outputs: tuple[Side, ...]


@dataclass(frozen=True)
class Stack:
    """Layers on one residual stream, whose axes are `axes`. `name`: of the list of their modules (`model.layers`), or
    the path of the one module that is every layer, or ""."""

    name: str
    axes: tuple[Dimension, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Layers:
    """For one walk over `graph.operations`: values and operations are MLIR handles, dropped before anything rewrites
    the graph. `stacks`: in order of their first layer. `outside`: operations of no layer. `why_none`: the reason for no
    stack, else ""."""

    stacks: tuple[Stack, ...]
    outside: tuple[Any, ...]
    why_none: str = ""

    def stack(self, name: str) -> Stack:
        """The stack of that name; raises `KeyError`."""
        return {stack.name: stack for stack in self.stacks}[name]


def layers(graph: Graph, known: Axes | None = None) -> Layers:
    """Stacks of layers of `@main`. known: `axes(graph)`, if it is there already."""
    return _Search(graph, known or axes(graph)).run()


class _Search:
    def __init__(self, graph: Graph, known: Axes) -> None:
        self.graph, self.axes = graph, known
        self._flow = flow = Flow(graph, known)
        self._operations, self._names, self._number = flow.operations, flow.names, flow.number

    def run(self) -> Layers:
        runs = list(self._flow.runs())
        stacks = [stack for run in runs if (stack := self._stack(run)) is not None]
        stacks.sort(key=lambda stack: self._number[stack.layers[0].exit])
        inside = {operation for stack in stacks for layer in stack.layers for operation in layer.operations}
        outside = tuple(operation for operation in self._operations if operation not in inside)
        return Layers(tuple(stacks), outside, "" if stacks else self._why_none(runs))

    def _why_none(self, runs: list[list[Sum]]) -> str:
        if not self._flow.contractions:
            return "no operation multiplies anything"
        if not runs:
            return "no value is added to what is computed of it: there is no residual stream"
        return "the sums on the residual stream are in no numbered modules and do not repeat"

    def _stack(self, run: list[Sum]) -> Stack | None:
        groups = self._groups(run)
        if groups is None:
            return None
        shared = len({path for path, _ in groups}) < len(groups)
        results = {found.result for found in run}
        entries = []
        for path, sums in groups:
            entry = sums[0].stream
            while path and not shared and entry not in results and self._within(self._number.get(entry), path):
                carried = self._flow.carried(entry)
                if not carried:
                    break
                entry = carried[0]
            entries.append(entry)
        path, sums = groups[-1]
        bounds = [*entries, self._after(sums[-1].result, path)]
        owners = self._owners(bounds, [path for path, _ in groups])
        found = []
        for index, (path, _) in enumerate(groups):
            numbers = [number for number, owner in enumerate(owners) if owner == index]
            found.append(self._layer(index, path, bounds[index], bounds[index + 1], numbers))
        names = {path if shared else path.rpartition(".")[0] for path, _ in groups}
        return Stack(names.pop() if len(names) == 1 else "", self.axes.of(entries[0]), tuple(found))

    def _groups(self, run: list[Sum]) -> list[tuple[str, list[Sum]]] | None:
        """The sums of each layer, and its path."""
        places = [_numbered((*paths(self._operations[found.number]), "")[0]) for found in run]
        for level in range(max(map(len, places))):
            named = [(place[level], found) for place, found in zip(places, run, strict=True) if len(place) > level]
            if len({path for path, _ in named}) > 1:
                return _consecutive(named)
        named = [(place[-1] if place else "", found) for place, found in zip(places, run, strict=True)]
        inside = [(path, found) for path, found in named if path] or named
        labels = [self._label(found) for _, found in inside]
        period = next(p for p in range(1, len(labels) + 1) if labels[p:] == labels[:-p])
        if len(labels) % period or not (inside[0][0] or len(labels) > period):
            return None
        return [(inside[n][0], [s for _, s in inside[n : n + period]]) for n in range(0, len(inside), period)]

    def _label(self, found: Sum) -> tuple[str, ...]:
        """What is alike in layers that are."""
        return tuple(" ".join((self._names[n], *paths(self._operations[n]))) for n in found.works)

    def _after(self, value: Any, path: str) -> Any:
        """What the last layer makes of its last sum: a norm, in post-norm models."""
        reached = [value]
        for number in range(self._number[value] + 1, len(self._operations)):
            results = self._operations[number].results
            if path and len(results) == 1 and self._within(number, path) and results[0] in self.axes.dimensions:
                reached += [results[0]] if not set(self._flow.carried(results[0])).isdisjoint(reached) else []
        return reached[-1]

    def _within(self, number: int | None, path: str) -> bool:
        own = () if number is None else paths(self._operations[number])
        return bool(own) and all(f"{p}.".startswith(f"{path}.") for p in own)

    def _owners(self, bounds: Sequence[Any], places: Sequence[str]) -> list[int | None]:
        """For each operation the number of its layer."""
        marks = [self._flow.mark[value] for value in bounds]
        owners: list[int | None] = []
        behind: set[int] = set()
        for number, before in enumerate(self._flow.before):
            depth = max((n for n, mark in enumerate(marks) if before & mark), default=-1)
            if depth == len(places):
                behind.add(number)
            owners.append(depth if 0 <= depth < len(places) else None)
        for number in range(len(owners) - 1, -1, -1):
            if owners[number] is not None or number in behind:
                continue
            readers = (user for value in self._operations[number].results for user in self._flow.readers.get(value, []))
            users = {owners[user] for user in readers if self._names[user] != "func.return"}
            if not users:  # the graph gives it back: what a layer makes for a cache
                users = {n for n, path in enumerate(places) if path and self._within(number, path)}
            if len(users) == 1 and (owner := users.pop()) is not None:
                free = self._flow.is_still(number) or not paths(self._operations[number])
                if free or self._within(number, places[owner]):
                    owners[number] = owner
        return owners

    def _layer(self, index: int, path: str, entry: Any, exit_: Any, numbers: list[int]) -> Layer:
        own = set(numbers)
        inputs = dict.fromkeys(
            value
            for number in numbers
            for value in self._operations[number].operands
            if self._is_tensor(value) and self._number.get(value) not in own and value != entry
        )
        outputs = [
            result
            for number in numbers
            for result in self._operations[number].results
            if self._is_tensor(result)
            and result != exit_
            and any(u not in own for u in self._flow.readers.get(result, []))
        ]
        read = [Side(value, self._role(value)) for value in inputs if not self._is_constant(value)]
        given = [Side(value, self._role(value)) for value in outputs]
        operations = tuple(self._operations[number] for number in numbers)
        return Layer(index, path, entry, exit_, operations, tuple(read), tuple(given))

    def _is_tensor(self, value: Any) -> bool:
        return value in self.axes.dimensions

    def _is_constant(self, value: Any) -> bool:
        number = self._number.get(value)
        return number is not None and self._flow.is_still(number)

    def _role(self, value: Any) -> Role:
        """By axes and dtype."""
        kinds = [kind.split("*")[-1] for kind in self.axes.kinds(value)]
        positions = {"sequence", "key"}
        type_ = as_tensor_type(value.type)
        is_integer = type_ is not None and not (type_.dtype.is_floating_point or type_.dtype == torch.bool)
        if isinstance(value.owner, ir.Block) and self.graph.inputs[value.arg_number].mutated:
            return "positions" if is_integer else "cache"
        if "head_size" in kinds and "head" in kinds:
            return "cache"
        if kinds and kinds[-1] == "head_size" and "sequence" in kinds:
            return "rope"
        if kinds and kinds[-1] in positions:
            return "positions" if is_integer or len(kinds) == 1 else "mask"
        return "states" if kinds and kinds[-1] == "feature" and not positions.isdisjoint(kinds) else "other"


def _numbered(path: str) -> list[str]:
    """Prefixes of a module path that end in a number, shortest first."""
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n, part in enumerate(parts) if part.isdigit()]


def _consecutive(named: list[tuple[str, Sum]]) -> list[tuple[str, list[Sum]]]:
    groups: list[tuple[str, list[Sum]]] = []
    for path, found in named:
        if not groups or groups[-1][0] != path:
            groups.append((path, []))
        groups[-1][1].append(found)
    return groups
