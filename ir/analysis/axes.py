"""The axes of every value of a graph: which dimension is the batch, the sequence, heads, features, and which are one.

An axis is an identity, not a size: the sequence of the residual stream is one axis wherever it occurs, and a batch of
as many entries is another. Linears, attention, convolutions and cache updates say what axes are (`anchor`); what every
operation does with them, its rule (`axis_rules.py`), says which are the same (`unify`). Both work in all directions: a
token argument learns from attention, layers later, that its last dimension is the sequence.

Nothing is guessed. What no operation anchors is `unknown`, and what two say differently is a contradiction.

Values that depend on no argument and no parameter (an `arange`) may serve several axes of equal size, since equal
operations are merged: each use of them has axes of its own, and they are told apart in the end.
"""

from dataclasses import dataclass, field
from typing import Any

import sympy
from torch_mlir import ir

from ..graph import Graph
from ..operator_call import place
from .axis_rules import axes_of_results
from .axis_step import Scores, Step, fresh
from .axis_terms import Atom, Contradiction, Dims, Kind, Terms
from .shapes import symbolic_values
from .sizes import SymbolicValue

__all__ = ["Axes", "Axis", "Contradiction", "Dimension", "Kind", "axes"]


@dataclass(frozen=True)
class Axis:
    """One axis of a graph. Equal means the same.

    kind: see `Kind`. size: entries, in symbols of the graph. made_of: numbers of other axes that it was joined, cut or
    padded from: its size follows theirs (the keys of a growing cache are the past and the sequence)."""

    number: int
    kind: Kind
    size: sympy.Expr
    made_of: frozenset[int] = frozenset()


Dimension = tuple[Axis, ...]
"""The axes that one dimension of a tensor is the product of, outermost first: `[B * S, F]` has (batch, sequence) and
(feature,). () has one entry and stands for nothing: a mean, or what is there to be broadcast."""


@dataclass(frozen=True)
class Axes:
    """For one walk over `graph.operations`: values are MLIR handles, dropped before anything rewrites the graph."""

    dimensions: dict[Any, tuple[Dimension, ...]]
    """Every tensor (and quantised weight) among arguments and results."""
    contradictions: tuple[Contradiction, ...] = ()

    def of(self, value: Any) -> tuple[Dimension, ...]:
        """One entry a dimension of the tensor `value`; raises `KeyError` for what is no tensor of the graph."""
        return self.dimensions[value]

    def kinds(self, value: Any) -> tuple[str, ...]:
        """The same in words: "batch", "head*head_size", "1"."""
        return tuple("*".join(axis.kind for axis in dimension) or "1" for dimension in self.of(value))

    def carriers(self, axis: Axis) -> list[tuple[Any, int]]:
        """Every value with a dimension that `axis` is or is a factor of, and the number of that dimension."""
        return [
            (value, index)
            for value, dimensions in self.dimensions.items()
            for index, dimension in enumerate(dimensions)
            if axis in dimension
        ]

    def all(self, kind: Kind) -> list[Axis]:
        """All axes of that kind, in order of their first value."""
        found = (a for dimensions in self.dimensions.values() for dimension in dimensions for a in dimension)
        return list(dict.fromkeys(axis for axis in found if axis.kind == kind))


def axes(graph: Graph) -> Axes:
    """Axes of every tensor of `@main`; no parameter is computed.

    Raises `CaptureError` when an operation that a pass added has no semantics, or fails on its shapes."""
    return _Walk(graph).run()


@dataclass
class _Walk:
    graph: Graph
    dims: dict[Any, Dims] = field(default_factory=dict)
    _generated: set[Any] = field(default_factory=set)
    """Tensors that depend on no argument and no parameter."""
    _uses: dict[Any, list[dict[Atom, Atom]]] = field(default_factory=dict)
    """Generated tensor -> for each use of it, its axes and what they are there."""
    _operation: Any = None

    def __post_init__(self) -> None:
        self._sizes = symbolic_values(self.graph).by_value(self.graph)
        self._terms = Terms(lambda: place(self._operation))
        self._scores = Scores()

    def run(self) -> Axes:
        for argument in self.graph.function.regions[0].blocks[0].arguments:
            self._define(argument, units=True)
        for op in self.graph.operations:
            operation = self._operation = op.operation
            if operation.name == "lutra.param":
                self._define(operation.results[0], units=False)
            elif operation.name == "torch.prim.ListUnpack" and not isinstance(operation.operands[0].owner, ir.Block):
                self._visit(operation.operands[0].owner.operation, list(operation.results))
            elif any(self._shape(result) is not None for result in operation.results):
                self._visit(operation, list(operation.results))
        for value in reversed(list(self.dims)):
            self._tell_apart(value)
        return Axes(_named(self._terms, self.dims), tuple(self._terms.contradictions))

    def _visit(self, operation: Any, results: list[Any]) -> None:
        """`operation` gives `results`, be it in a list."""
        shapes = [self._shape(result) for result in results]
        step = Step(self._terms, operation, results, shapes, self._read, self._scores)
        found = axes_of_results(step)
        for result, shape, dims in zip(results, shapes, found, strict=True):
            if shape is not None:
                self.dims[result] = dims
                if step.generates or all(tensor in self._generated for tensor in step.tensors):
                    self._generated.add(result)

    def _define(self, value: Any, units: bool) -> None:
        shape = self._shape(value)
        if shape is not None:
            self.dims[value] = fresh(shape, units)

    def _shape(self, value: Any) -> tuple[sympy.Expr, ...] | None:
        described = self._sizes[value]
        return described.shape if isinstance(described, SymbolicValue) else None

    def _read(self, value: Any) -> Dims:
        """The axes of an operand, of what is generated as they are at this use."""
        dims = tuple(map(self._terms.resolved, self.dims[value]))
        if value not in self._generated:
            return dims
        here = {atom: Atom(atom.size) for dim in dims for atom in dim}
        self._uses.setdefault(value, []).append(here)
        return tuple(tuple(here[atom] for atom in dim) for dim in dims)

    def _tell_apart(self, value: Any) -> None:
        """What all uses of a generated value that know it agree on, its axes are."""
        uses = self._uses.get(value, [])
        for atom in dict.fromkeys(atom for use in uses for atom in use):
            found = {self._terms.resolved((use[atom],)): None for use in uses if atom in use}
            known = [dim for dim in found if all(a.kind != "unknown" for a in dim)] or list(found)
            if len(known) == 1:
                self._terms.unify((atom,), known[0])


def _named(terms: Terms, dims: dict[Any, Dims]) -> dict[Any, tuple[Dimension, ...]]:
    """The same with an `Axis` for every atom, numbered as they occur."""
    resolved = {value: tuple(map(terms.resolved, found)) for value, found in dims.items()}
    atoms = list(dict.fromkeys(atom for found in resolved.values() for dim in found for atom in dim))
    numbers = {atom: number for number, atom in enumerate(atoms)}
    names = {}
    for atom, number in numbers.items():
        sources = terms.sources(atom)
        kind = atom.kind if atom.kind != "unknown" or atom.contested else _kind_of_parts({a.kind for a in sources})
        names[atom] = Axis(number, kind, atom.size, frozenset(numbers[a] for a in sources if a in numbers))
    return {value: tuple(tuple(names[atom] for atom in dim) for dim in found) for value, found in resolved.items()}


def _kind_of_parts(kinds: set[Kind]) -> Kind:
    """Of what is cut from axes of such kinds, or joined of them: some features are features, some positions are not the
    sequence."""
    known = kinds - {"unknown"}
    if not known or not known <= {"feature", "head", "head_size"}:
        return "unknown"
    finer = known - {"feature"}
    return finer.pop() if len(finer) == 1 else "feature"
