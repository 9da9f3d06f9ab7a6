"""What an operation moves and computes: the words in which cost formulas are written (`ir/ops`, `cost.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from ..errors import LutraError
from .sizes import Described, SymbolicValue

CONTEXT = sympy.Symbol("context", integer=True, positive=True)
"""Keys that one decode step attends to: the tokens so far, its own included."""


@dataclass(frozen=True)
class Amount:
    """Bytes of weights read, bytes of other tensors (activations, caches) read and written, arithmetic operations.

    A product and its sum are two operations."""

    weights: sympy.Expr = sympy.S.Zero
    read: sympy.Expr = sympy.S.Zero
    written: sympy.Expr = sympy.S.Zero
    operations: sympy.Expr = sympy.S.Zero

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            self.weights + other.weights,
            self.read + other.read,
            self.written + other.written,
            self.operations + other.operations,
        )

    @property
    def traffic(self) -> sympy.Expr:
        """All bytes."""
        return self.weights + self.read + self.written

    def at(self, sizes: Mapping[sympy.Symbol, int]) -> "Amount":
        """The amounts with `sizes` put in; raises `LutraError` when a symbol has no size."""
        values = [e.subs(sizes) for e in (self.weights, self.read, self.written, self.operations)]
        missing = sorted({str(s) for value in values for s in value.free_symbols})
        if missing:
            raise LutraError(f"the cost needs a size for {', '.join(missing)}")
        return Amount(*values)


@dataclass(frozen=True)
class ValueSizes:
    """What a formula may ask about the values of a graph, in the graph's symbolic sizes; values are MLIR handles.

    `described`: every value. `parameters`: bytes of each parameter as it lies in memory. `decode`: the graph is a
    decode step."""

    described: Mapping[Any, Described]
    parameters: Mapping[Any, int]
    decode: bool

    def shape(self, tensor: Any) -> tuple[sympy.Expr, ...]:
        """Sizes of a tensor."""
        described = self.described[tensor]
        assert isinstance(described, SymbolicValue) and described.shape is not None, tensor
        return described.shape

    def elements(self, value: Any) -> sympy.Expr:
        """Elements of a tensor, or of all tensors in a list; a number has none."""
        return sum((count for count, _ in self._tensors(value)), sympy.Integer(0))

    def bytes(self, *values: Any) -> sympy.Expr:
        """Bytes of tensors and lists of tensors."""
        return sum((count * item for value in values for count, item in self._tensors(value)), sympy.Integer(0))

    def moved(self, op: Any) -> Amount:
        """Every operand read once, every result written once."""
        weights = read = sympy.Integer(0)
        for operand in op.operation.operands:
            if operand in self.parameters:
                weights += self.parameters[operand]
            else:
                read += self.bytes(operand)
        return Amount(weights, read, self.bytes(*op.operation.results))

    def elementwise(self, op: Any, operations: int) -> Amount:
        """As `moved`, and so many arithmetic operations for each element of the results."""
        elements = sum(map(self.elements, op.operation.results), sympy.Integer(0))
        return self.moved(op) + Amount(operations=operations * elements)

    def _tensors(self, value: Any) -> list[tuple[sympy.Expr, int]]:
        """Elements, and bytes of one, for each tensor in `value`."""
        described = self.described[value]
        parts = described if isinstance(described, tuple) else (described,)
        return [
            (sympy.Mul(*part.shape), part.dtype.itemsize)
            for part in parts
            if isinstance(part, SymbolicValue) and part.shape is not None and part.dtype is not None
        ]
