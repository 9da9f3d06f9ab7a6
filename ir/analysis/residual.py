"""Sums on a residual stream, `x + f(x)`, which stacks of layers are made of, and what depends on what in a graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..graph import Graph
from ..operator_call import operation_name
from .axes import Axes, Axis
from .axis_rules import contracts, keeps_places

_STILL = ("lutra.param", "lutra.number", "vtensor.literal", "constant.", "prim.ListConstruct")
"""Names of what only names what is there."""


@dataclass(frozen=True)
class Sum:
    """`result = stream + branch`, where branch follows from the stream. `base`: the value that a whole run of sums over
    one entry began with: parallel blocks add two branches of it. `works`: numbers of the operations of the branch that
    contract."""

    number: int
    result: Any
    stream: Any
    base: Any
    works: tuple[int, ...]


class Flow:
    """The operations of `@main` by number, and what depends on what.

    `operations`, `names`: by number. `number`: result -> operation. `readers`: value -> numbers of operations. Sets of
    operations and arguments are bits of an integer: `mark`: of each value, `before`: of all that an operation depends
    on."""

    def __init__(self, graph: Graph, axes: Axes) -> None:
        self.axes = axes
        self.operations = [op.operation for op in graph.operations]
        self.names = [operation_name(operation) for operation in self.operations]
        self.number = {value: n for n, operation in enumerate(self.operations) for value in operation.results}
        arguments = graph.function.regions[0].blocks[0].arguments
        self.mark = {value: 1 << n for value, n in self.number.items()}
        self.mark |= {value: 1 << len(self.operations) + n for n, value in enumerate(arguments)}
        self.readers: dict[Any, list[int]] = {}
        self.before: list[int] = []
        for number, operation in enumerate(self.operations):
            before = 0
            for value in operation.operands:
                before |= self.behind(value)
                self.readers.setdefault(value, []).append(number)
            self.before.append(before)
        self.contractions = sum(1 << n for n, name in enumerate(self.names) if contracts(name))
        self._still = sum(1 << n for n, name in enumerate(self.names) if name.startswith(_STILL))

    def behind(self, value: Any) -> int:
        """`value` and all that it depends on."""
        return self.mark[value] | (self.before[self.number[value]] if value in self.number else 0)

    def is_still(self, number: int) -> bool:
        """A parameter, a constant, or a list of such."""
        return not (self.before[number] | 1 << number) & ~self._still

    def carried(self, value: Any) -> list[Any]:
        """Operands whose elements lie at the same places of the same axes as those of `value`."""
        number = self.number.get(value)
        if number is None or not keeps_places(self.names[number]):
            return []
        tensors = [v for v in self.operations[number].operands if v in self.axes.dimensions]
        return [v for v in tensors if self._entries(v) == self._entries(value)]

    def runs(self) -> Iterator[list[Sum]]:
        """The longest chains of sums, each on the stream of the one before, each sum in one chain."""
        sums: dict[Any, Sum] = {}
        for number in range(len(self.operations)):
            if (found := self._residual(number, sums)) is not None:
                sums[found.result] = found
        previous = {result: self._previous(found.stream, sums) for result, found in sums.items()}
        length: dict[Any, int] = {}
        for result, before in previous.items():
            length[result] = 1 + (length[before.result] if before is not None else 0)
        taken: set[Any] = set()
        for result in sorted(length, key=lambda r: -length[r]):
            run: list[Sum] = []
            last: Sum | None = sums[result]
            while last is not None and last.result not in taken:
                taken.add(last.result)
                run.append(last)
                last = previous[last.result]
            if last is None:  # else a side branch of a chain that is longer
                yield run[::-1]

    def _residual(self, number: int, sums: dict[Any, Sum]) -> Sum | None:
        """The sum that an operation is; sums: those before it."""
        name, operation = self.names[number], self.operations[number]
        if name == "aten.add.Tensor":
            one, other, _ = operation.operands
            pairs = [(one, self.behind(other)), (other, self.behind(one))]
        elif name in ("lutra.linear", "lutra.table_linear") and operation.opview.residual is not None:
            pairs = [(operation.opview.residual, self.behind(operation.operands[0]) | 1 << number)]
        else:
            return None
        result = operation.results[0]
        for stream, branch in pairs:
            if stream not in self.axes.dimensions or self._entries(stream) != self._entries(result):
                continue
            began = sums[stream].base if stream in sums else stream
            for base in (stream, began):
                works = branch & ~self.behind(base) & self.contractions
                if branch & self.mark[base] and works:
                    return Sum(number, result, stream, base, tuple(bits(works)))
        return None

    def _previous(self, value: Any, sums: dict[Any, Sum]) -> Sum | None:
        """The sum that `value` carries the stream of."""
        seen, waiting = set(), [value]
        while waiting:
            value = waiting.pop()
            if value in sums:
                return sums[value]
            if value not in seen:
                seen.add(value)
                waiting += self.carried(value)
        return None

    def _entries(self, value: Any) -> tuple[Axis, ...]:
        """All axes in order: `[B, S, F]` and `[B * S, F]` hold the same elements in the same order."""
        return tuple(axis for dimension in self.axes.of(value) for axis in dimension)


def bits(number: int) -> Iterator[int]:
    """Which bits are set, from the least."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
