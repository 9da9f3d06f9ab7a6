"""The layers of a graph: where the residual stream enters and leaves each, its operations, what else goes in and out.

A layer adds to the residual stream what it computes of it: `x + f(x)`. Such sums over values of the same axes, each on
the stream of the one before (straight, or through a norm), are a stack of layers; a graph may have several (encoder and
decoder, vision and text). Where one layer ends and the next begins the module paths say, `model.layers.3`; where they
do not (layers that share their modules, no modules at all), the pattern of the sums, which repeats.

An operation belongs to the last layer whose entry it depends on. What depends on no entry is outside, unless one layer
alone reads it: its weights, and what it makes of a cache or of the encoder's states.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch_mlir import ir

from ..graph import Graph
from ..operator_call import operation_name
from ..rewriting import paths
from ..types import as_tensor_type
from .axes import Axes, Axis, Dimension, axes
from .axis_rules import contracts, keeps_places

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


@dataclass(frozen=True)
class _Sum:
    """`result = stream + branch`, where branch follows from the stream. `base`: the value that a whole run of sums over
    one entry began with: parallel blocks add two branches of it. `works`: numbers of the operations of the branch that
    contract."""

    number: int
    result: Any
    stream: Any
    base: Any
    works: tuple[int, ...]


@dataclass
class _Search:
    graph: Graph
    axes: Axes
    _sums: dict[Any, _Sum] = field(default_factory=dict)
    """By result."""

    def __post_init__(self) -> None:
        self._operations = [op.operation for op in self.graph.operations]
        self._names = [operation_name(operation) for operation in self._operations]
        self._arguments = list(self.graph.function.regions[0].blocks[0].arguments)
        self._number: dict[Any, int] = {}
        for number, operation in enumerate(self._operations):
            self._number.update(dict.fromkeys(operation.results, number))
        self._users: dict[Any, list[int]] = {}
        self._before: list[int] = []
        """For each operation a bit for each value's number that it depends on; arguments come behind operations."""
        arguments = {value: len(self._operations) + n for n, value in enumerate(self._arguments)}
        self._bit = {value: 1 << n for value, n in (self._number | arguments).items()}
        for number, operation in enumerate(self._operations):
            before = 0
            for value in operation.operands:
                before |= self._all_before(value)
                self._users.setdefault(value, []).append(number)
            self._before.append(before)
        self._contractions = sum(1 << n for n, name in enumerate(self._names) if contracts(name))
        self._still = sum(1 << n for n, name in enumerate(self._names) if name.startswith(_STILL))

    def run(self) -> Layers:
        for number, operation in enumerate(self._operations):
            found = self._residual(number, operation)
            if found is not None:
                self._sums[found.result] = found
        stacks = [self._stack(run) for run in self._runs()]
        stacks = sorted((s for s in stacks if s is not None), key=lambda s: self._number[s.layers[0].exit])
        inside = {operation for stack in stacks for layer in stack.layers for operation in layer.operations}
        outside = tuple(operation for operation in self._operations if operation not in inside)
        return Layers(tuple(stacks), outside, "" if stacks else self._why_none())

    def _why_none(self) -> str:
        if not self._contractions:
            return "no operation multiplies anything"
        return "no value is added to what is computed of it: there is no residual stream"

    # Sums -------------------------------------------------------------------------------------------------------------

    def _residual(self, number: int, operation: Any) -> _Sum | None:
        name = self._names[number]
        if name == "aten.add.Tensor":
            one, other, _ = operation.operands
            pairs = [(one, self._all_before(other)), (other, self._all_before(one))]
        elif name in ("lutra.linear", "lutra.table_linear") and operation.opview.residual is not None:
            pairs = [(operation.opview.residual, self._all_before(operation.operands[0]) | 1 << number)]
        else:
            return None
        result = operation.results[0]
        for stream, branch in pairs:
            if stream not in self.axes.dimensions or self._entries(stream) != self._entries(result):
                continue
            before = self._sums[stream].base if stream in self._sums else stream
            for base in (stream, before):
                works = branch & ~self._all_before(base) & self._contractions
                if branch & self._bit[base] and works:
                    return _Sum(number, result, stream, base, tuple(_bits(works)))
        return None

    def _all_before(self, value: Any) -> int:
        """Bits of what `value` depends on, and its own."""
        return self._bit[value] | (self._before[self._number[value]] if value in self._number else 0)

    def _previous(self, value: Any) -> _Sum | None:
        """The sum that `value` carries the stream of."""
        seen, waiting = set(), [value]
        while waiting:
            value = waiting.pop()
            if value in self._sums:
                return self._sums[value]
            if value not in seen:
                seen.add(value)
                waiting += self._carried(value)
        return None

    def _carried(self, value: Any) -> list[Any]:
        """Operands whose elements lie at the same places of the same axes as those of `value`."""
        number = self._number.get(value)
        if number is None or not keeps_places(self._names[number]):
            return []
        tensors = [v for v in self._operations[number].operands if v in self.axes.dimensions]
        return [v for v in tensors if self._entries(v) == self._entries(value)]

    def _entries(self, value: Any) -> tuple[Axis, ...]:
        """All axes in order: `[B, S, F]` and `[B * S, F]` hold the same elements in the same order."""
        return tuple(axis for dimension in self.axes.of(value) for axis in dimension)

    def _runs(self) -> Iterator[list[_Sum]]:
        """The longest chains of sums, each sum in one."""
        previous = {found.result: self._previous(found.stream) for found in self._sums.values()}
        length: dict[Any, int] = {}
        for result, before in previous.items():
            length[result] = 1 + (length[before.result] if before is not None else 0)
        taken: set[Any] = set()
        for result in sorted(length, key=lambda r: -length[r]):
            run: list[_Sum] = []
            found: _Sum | None = self._sums[result]
            while found is not None and found.result not in taken:
                taken.add(found.result)
                run.append(found)
                found = previous[found.result]
            if found is None:  # else a side branch of a chain that is longer
                yield run[::-1]

    # Layers -----------------------------------------------------------------------------------------------------------

    def _stack(self, run: list[_Sum]) -> Stack | None:
        groups = self._groups(run)
        if groups is None:
            return None
        shared = len({path for path, _ in groups}) < len(groups)
        entries = []
        for path, sums in groups:
            entry = sums[0].stream
            while path and not shared and entry not in self._sums and self._within(self._number.get(entry), path):
                carried = self._carried(entry)
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

    def _groups(self, run: list[_Sum]) -> list[tuple[str, list[_Sum]]] | None:
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

    def _label(self, found: _Sum) -> tuple[str, ...]:
        """What is alike in layers that are."""
        return tuple(" ".join((self._names[n], *paths(self._operations[n]))) for n in found.works)

    def _after(self, value: Any, path: str) -> Any:
        """What the last layer makes of its last sum: a norm, in post-norm models."""
        reached = [value]
        for number in range(self._number[value] + 1, len(self._operations)):
            results = self._operations[number].results
            if path and len(results) == 1 and self._within(number, path) and results[0] in self.axes.dimensions:
                reached += [results[0]] if not set(self._carried(results[0])).isdisjoint(reached) else []
        return reached[-1]

    def _within(self, number: int | None, path: str) -> bool:
        own = () if number is None else paths(self._operations[number])
        return bool(own) and all(f"{p}.".startswith(f"{path}.") for p in own)

    def _owners(self, bounds: Sequence[Any], places: Sequence[str]) -> list[int | None]:
        """For each operation the number of its layer."""
        marks = [self._bit[value] for value in bounds]
        owners: list[int | None] = []
        behind: set[int] = set()
        for number, before in enumerate(self._before):
            depth = max((n for n, mark in enumerate(marks) if before & mark), default=-1)
            if depth == len(places):
                behind.add(number)
            owners.append(depth if 0 <= depth < len(places) else None)
        for number in range(len(owners) - 1, -1, -1):
            if owners[number] is not None or number in behind:
                continue
            readers = (user for value in self._operations[number].results for user in self._users.get(value, []))
            users = {owners[user] for user in readers if self._names[user] != "func.return"}
            if not users:  # the graph gives it back: what a layer makes for a cache
                users = {n for n, path in enumerate(places) if path and self._within(number, path)}
            if len(users) == 1 and (owner := users.pop()) is not None:
                free = self._is_weight(number) or not paths(self._operations[number])
                if free or self._within(number, places[owner]):
                    owners[number] = owner
        return owners

    def _is_weight(self, number: int) -> bool:
        """A parameter, a constant, or what depends on nothing else."""
        return not (self._before[number] | 1 << number) & ~self._still

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
            if self._is_tensor(result) and result != exit_ and any(u not in own for u in self._users.get(result, []))
        ]
        read = [Side(value, self._role(value)) for value in inputs if not self._is_constant(value)]
        given = [Side(value, self._role(value)) for value in outputs]
        operations = tuple(self._operations[number] for number in numbers)
        return Layer(index, path, entry, exit_, operations, tuple(read), tuple(given))

    def _is_tensor(self, value: Any) -> bool:
        return value in self.axes.dimensions

    def _is_constant(self, value: Any) -> bool:
        number = self._number.get(value)
        return number is not None and self._is_weight(number)

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
        if len(kinds) > 1 and kinds[-1] in positions and not positions.isdisjoint((*kinds[:-1], "sequence")):
            return "positions" if is_integer else "mask"
        if kinds and kinds[-1] in positions:
            return "positions"
        return "states" if kinds and kinds[-1] == "feature" and not positions.isdisjoint(kinds) else "other"


_STILL = ("lutra.param", "lutra.number", "vtensor.literal", "constant.", "prim.ListConstruct")
"""What only names what is there; parameters are turned by views of them."""


def _numbered(path: str) -> list[str]:
    """Prefixes of a module path that end in a number, shortest first."""
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n, part in enumerate(parts) if part.isdigit()]


def _consecutive(named: list[tuple[str, _Sum]]) -> list[tuple[str, list[_Sum]]]:
    groups: list[tuple[str, list[_Sum]]] = []
    for path, found in named:
        if not groups or groups[-1][0] != path:
            groups.append((path, []))
        groups[-1][1].append(found)
    return groups


def _bits(number: int) -> Iterator[int]:
    """Which bits are set, from the least."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
