"""What a rule of `axis_rules.py` sees of an operation, and the three rules that most operations have."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sympy

from ..operator_call import operation_name, overload
from ..ops import quantized_format
from ..rewriting import NotConstant, constant, constant_list, defined_by, shape_of
from .axis_terms import Atom, Dim, Dims, Terms

Rule = Callable[["Step"], list[Dims]]
Shape = tuple[sympy.Expr, ...]


@dataclass
class Scores:
    """Products that may be scores of attention, `softmax(q k^T) v` written out. Value -> axes of q and k."""

    products: dict[Any, tuple[Dims, Dims]] = field(default_factory=dict)
    weights: dict[Any, tuple[Dims, Dims]] = field(default_factory=dict)


def fresh(shape: Shape, units: bool = True) -> Dims:
    """New axes. units: dimensions of one entry are axes too, and not there to be broadcast."""
    return tuple((Atom(size),) if units or size != 1 else () for size in shape)


@dataclass
class Step:
    """One operation. results: of tensors that come in a list, those of the operation that unpacks it. shapes: of
    results, None for what is no tensor. read: the axes of a value. `tensors`: operands, and what is in lists of them;
    `opaque`: there is a list that another operation made."""

    terms: Terms
    operation: Any
    results: list[Any]
    shapes: list[Shape | None]
    read: Callable[[Any], Dims]
    scores: Scores

    def __post_init__(self) -> None:
        self.name = operation_name(self.operation)
        values, self.opaque = [], False
        for operand in self.operation.operands:
            made = defined_by(operand, "prim.ListConstruct")
            values += [operand] if made is None else list(made.operands)
            self.opaque |= made is None and "list<" in str(operand.type) and "tensor" in str(operand.type)
        self.tensors = [value for value in values if shape_of(value) is not None or quantized_format(value.type)]

    @property
    def generates(self) -> bool:
        """No element of the result comes from an operand."""
        return ".new_" in self.name

    @property
    def shape(self) -> Shape:
        """Of the first result."""
        return self.shapes[0] or ()

    def argument(self, name: str) -> Any:
        """The operand of that name; None where it is left out."""
        if self.name.startswith("lutra."):
            return getattr(self.operation.opview, name, None)
        names = [argument.name for argument in overload(self.name)._schema.arguments]
        value = self.operation.operands[names.index(name)] if name in names else None
        return None if value is None or defined_by(value, "constant.none") else value

    def dims(self, name: str) -> Dims:
        """Axes of the operand of that name, of none where it is left out."""
        value = self.argument(name)
        return () if value is None else self.read(value)

    def number(self, name: str, default: int = 0) -> int:
        """A constant operand; raises `Computed` where it is computed."""
        value = self.argument(name)
        found = default if value is None else constant(value)
        if found is NotConstant or not isinstance(found, int):
            raise Computed
        return found

    def numbers(self, name: str) -> list[int] | None:
        """A constant, or a list of them, as a list; None where it is left out."""
        value = self.argument(name)
        if value is None:
            return None
        found = constant_list(value)
        found = [constant(value)] if found is None else found
        if not all(isinstance(number, int) for number in found):
            raise Computed
        return found

    def joined(self, *operands: Dims) -> Dims:
        """Axes of what `operands` are broadcast to."""
        rank = max(map(len, operands), default=0)
        out = []
        for position in range(rank, 0, -1):
            dim: Dim = ()
            for dims in operands:
                dim = self.terms.unify(dim, dims[-position]) if len(dims) >= position else dim
            out.append(dim)
        return tuple(out)

    def fitted(self, dims: Dims, index: int = 0) -> Dims:
        """`dims` as far as they have the sizes of a result; where they have not, what follows from them."""
        shape = self.shapes[index] or ()
        if len(shape) != len(dims):
            return tuple(self.terms.derived(size, *dims) for size in shape)
        return tuple(
            dim if self.terms.size(dim) == size else self.terms.derived(size, dim)
            for dim, size in zip(dims, shape, strict=True)
        )


class Computed(Exception):
    """An operand is computed that a rule needs to know."""


def unknown(step: Step) -> list[Dims]:
    """New axes."""
    return [fresh(shape or ()) for shape in step.shapes]


def elementwise(step: Step) -> list[Dims]:
    """All operands have the axes of the result, or are broadcast to them."""
    dims = step.joined(*map(step.read, step.tensors))
    return [step.fitted(dims, index) for index in range(len(step.results))]


def like_first(step: Step) -> list[Dims]:
    """Results have the axes of the first operand."""
    dims = step.read(step.tensors[0])
    return [step.fitted(dims, index) for index in range(len(step.results))]
