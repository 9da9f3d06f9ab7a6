"""Symbolic shapes: for every value of `@main` its sizes as sympy expressions over the symbols of the capture.

Nothing is guessed. A static type says it all; what torch found when it captured the graph stands beside the operation
(`sizes.py`). What a pass has added since is run on fake tensors whose sizes are symbols of the same `ShapeEnv`, which
knows the guards of the capture and takes new ones. Sizes that depend on data (`nonzero`) are symbols that no argument
has: `SymbolicValues.unbacked`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv, SLoc, ValueRangesSLoc
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges
from torch_mlir import ir

from ..errors import CaptureError, LutraError
from ..graph import UNLIMITED, Graph
from ..operator_call import OperatorCall, place
from ..ops import OPERATIONS, NumberOp, quantized_format
from ..torch_private import ConstantSource, FakeTensorMode, enable_python_dispatcher
from ..types import as_tensor_type
from ..weights.formats import QuantizedWeight, WeightFormat
from .sizes import SIZES_ATTRIBUTE, Described, SymbolicValue, describe, expressions

__all__ = ["Described", "SymbolicValue", "SymbolicValues", "symbolic_values"]


@dataclass(frozen=True)
class SymbolicValues:
    """Symbolic values of a graph, by position: they hold no MLIR handles and stay valid until the graph is rewritten.

    `arguments`: per block argument. `results`: per operation of `graph.operations`, in order, per result. `unbacked`:
    symbols that are not known before the graph runs."""

    arguments: tuple[Described, ...]
    results: tuple[tuple[Described, ...], ...]
    unbacked: frozenset[sympy.Symbol]

    def by_value(self, graph: Graph) -> dict[Any, Described]:
        """The same, keyed by MLIR values, for one walk over `graph.operations`: `values[op.operands[0]]`.

        The keys are handles: drop the dictionary before anything rewrites the graph."""
        described = [*self.arguments, *(value for results in self.results for value in results)]
        return dict(zip(_values(graph), described, strict=True))


def symbolic_values(graph: Graph) -> SymbolicValues:
    """Shape and dtype (of a number: its expression) of every argument and result of `@main`; no parameter is computed.

    Raises `CaptureError` when an operation that a pass added has no semantics, or fails on these shapes."""
    found = _Inference(graph)
    arguments = tuple(map(found.argument, range(len(graph.inputs))))
    with enable_python_dispatcher(), torch.no_grad(), found.environment.ignore_fresh_unbacked_symbols():
        results = tuple(tuple(found.results(op)) for op in graph.operations)
    values = [*arguments, *(value for described in results for value in described)]
    used = {s for value in values for e in expressions(value) for s in e.free_symbols}
    unbacked = frozenset(s for s in used - set(graph.symbol_ranges) if isinstance(s, sympy.Symbol))
    return SymbolicValues(arguments, results, unbacked)


def _values(graph: Graph) -> Iterator[Any]:
    yield from graph.function.regions[0].blocks[0].arguments
    for op in graph.operations:
        yield from op.operation.results


@dataclass
class _Inference:
    graph: Graph
    described: dict[Any, Described] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = self.graph.environment or _environment(self.graph)
        self.mode = FakeTensorMode(shape_env=self.environment, allow_non_fake_inputs=True)
        self._arguments = self.graph.function.regions[0].blocks[0].arguments
        self._fakes: dict[Any, Any] = {}
        self._known: dict[tuple[str, torch.dtype | None], Described] = {}
        self._calls: dict[Any, list[Described]] = {}

    def argument(self, index: int) -> Described:
        value, given = self._arguments[index], self.graph.inputs[index]
        shapes = self.graph.input_shapes
        type_ = as_tensor_type(value.type)
        if given.symbol is not None:
            described: Described = SymbolicValue(number=self._now(given.symbol))
        elif type_ is not None and shapes:
            described = SymbolicValue(tuple(self._now(sympy.sympify(d)) for d in shapes[index]), type_.dtype)
        else:
            described = self._unknown(value.type)
        self.described[value] = described
        return described

    def results(self, op: Any) -> Sequence[Described]:
        """What the results of `op` are, whose operands are described already."""
        operation = op.operation
        types = [result.type for result in operation.results]
        found = [_static(type_) for type_ in types]
        if None in found:
            found = self._written(operation, types) or self._computed(op, types)
        self.described.update(zip(operation.results, found, strict=True))
        return found

    def _written(self, operation: Any, types: list[Any]) -> list[Described] | None:
        """What the importer wrote beside `operation`, as it reads with what has been found out since."""
        name = "expression" if operation.name == NumberOp.OPERATION_NAME else SIZES_ATTRIBUTE
        if name not in operation.attributes:
            return None
        text = ir.StringAttr(operation.attributes[name]).value
        described = self._replaced(self.graph.sizes[text])
        several = described if len(types) > 1 and isinstance(described, tuple) else (described,)
        return [_of_type(value, type_) for value, type_ in zip(several, types, strict=True)]

    def _computed(self, op: Any, types: list[Any]) -> list[Described]:
        operation = op.operation
        if operation.name == "torch.prim.ListUnpack":
            described = self.described[operation.operands[0]]
            if isinstance(described, tuple) and len(described) == len(types):
                return list(described)
        if operation.name in ("torch.prim.ListConstruct", "torch.prim.TupleConstruct"):
            return [tuple(self.described[value] for value in operation.operands)]
        if len(types) == 1 and (like := self._like_first(operation, types[0])) is not None:
            return [like]
        if not types or all(not str(type_).startswith(_DESCRIBED_TYPES) for type_ in types):
            return [None] * len(types)
        call, slots = OperatorCall.of(op)
        key = (call, *(self.described[slot] for slot in slots))
        if call.reads_data or key not in self._calls:
            self._calls[key] = self._run(operation, call, slots, types)
        return self._calls[key]

    def _like_first(self, operation: Any, type_: Any) -> Described:
        """The result of an operation of ours, where the first operand and the type say its sizes; else None."""
        kind, tensor = OPERATIONS.get(operation.name), as_tensor_type(type_)
        first = self.described[operation.operands[0]] if kind is not None and len(operation.operands) else None
        shape = first.shape if isinstance(first, SymbolicValue) else None
        if kind is None or shape is None or tensor is None or tensor.shape[-1] is None:
            return None
        shape = kind.result_shape(shape, len(tensor.shape))
        if shape is None or len(shape) != len(tensor.shape):
            return None
        return _of_type(SymbolicValue(shape, tensor.dtype), type_)

    def _run(self, operation: Any, call: OperatorCall, slots: list[Any], types: list[Any]) -> list[Described]:
        """The call on fake tensors; values as unknown as their types where only data decides."""
        with self.mode:
            try:
                results = call(*(self._value(slot) for slot in slots))
            except GuardOnDataDependentSymNode:
                return [self._unknown(type_) for type_ in types]
            except LutraError as error:
                raise CaptureError(f"{error} ({place(operation)})") from error
            except Exception as error:
                kinds = ", ".join(str(slot.type) for slot in slots)
                message = f"{call.name} failed on ({kinds}): {type(error).__name__}: {error} ({place(operation)})"
                raise CaptureError(message) from error
        return [_of_type(describe(value), type_) for value, type_ in zip(results, types, strict=True)]

    def _value(self, value: Any) -> Any:
        quantized = quantized_format(value.type)
        return self._quantized(*quantized) if quantized else self._made(self.described[value])

    def _made(self, described: Described) -> Any:
        """A fake tensor, number or list that is what `described` says; equal ones share a tensor, which nobody writes
        to."""
        if isinstance(described, tuple):
            return [self._made(element) for element in described]
        if described is None:
            return None
        if described.number is not None:
            return self._number(described.number)
        if described not in self._fakes:
            sizes = [self._number(size) for size in described.shape or ()]
            self._fakes[described] = torch.empty(sizes, dtype=described.dtype)
        return self._fakes[described]

    def _number(self, number: sympy.Expr) -> Any:
        if number.is_number:
            return int(number) if number.is_integer else float(number)
        hint = None
        if self.environment.has_guarding_hint(number):
            hint = self.environment.guarding_hint_or_throw(number)
        if number.is_integer:
            return self.environment.create_symintnode(number, hint=hint, source=ConstantSource(str(number)))
        return self.environment.create_symfloatnode(number, hint=hint, source=ConstantSource(str(number)))

    def _quantized(self, n: int, k: int, format_: WeightFormat) -> QuantizedWeight:
        scales = self._made(SymbolicValue((sympy.Integer(n), sympy.Integer(format_.groups(k))), torch.float16))
        codes = self._made(SymbolicValue((sympy.Integer(n), sympy.Integer(k)), torch.uint8))
        return QuantizedWeight(codes, scales, scales if format_.has_zero_points else None, format_)

    def _unknown(self, type_: Any) -> Described:
        """A value of which only the type is known: fresh symbols where that says nothing."""
        if str(type_) == "!torch.int":
            return SymbolicValue(number=self._fresh())
        tensor = as_tensor_type(type_)
        if tensor is None:
            return None
        return SymbolicValue(
            tuple(self._fresh() if d is None else sympy.Integer(d) for d in tensor.shape), tensor.dtype
        )

    def _fresh(self) -> sympy.Expr:
        size = self.environment.create_unbacked_symint()
        torch._check(size >= 0)
        return size.node.expr

    def _replaced(self, described: Described) -> Described:
        if isinstance(described, tuple):
            return tuple(map(self._replaced, described))
        if described is None or described.number is not None:
            return described and SymbolicValue(number=self._now(described.number))
        return SymbolicValue(tuple(map(self._now, described.shape or ())), described.dtype)

    def _now(self, number: sympy.Expr) -> sympy.Expr:
        """`number` with what the environment has learnt since it was written down."""
        return number if number.is_number else self.environment.replace(number)


_DESCRIBED_TYPES = ("!torch.vtensor", "!torch.tensor", "!torch.int", "!torch.float", "!torch.number", "!torch.list")
"""Of any other value (a string, none, a device, a truth value) there is nothing to say."""


def _static(type_: Any) -> Described:
    """What a type alone says; None when it leaves a size open."""
    quantized = quantized_format(type_)
    if quantized is not None:
        return SymbolicValue(shape=tuple(map(sympy.Integer, quantized[:2])))
    tensor = as_tensor_type(type_)
    if tensor is None or None in tensor.shape:
        return None
    return SymbolicValue(tuple(sympy.Integer(d) for d in tensor.shape if d is not None), tensor.dtype)


def _of_type(described: Described, type_: Any) -> Described:
    """`described` with what the type of the value says for certain."""
    tensor = as_tensor_type(type_)
    if tensor is None or not isinstance(described, SymbolicValue) or described.shape is None:
        return described
    if len(described.shape) != len(tensor.shape):
        raise CaptureError(f"a value of type {type_} has rank {len(described.shape)} by its operation")
    sizes = zip(described.shape, tensor.shape, strict=True)
    return SymbolicValue(tuple(s if known is None else sympy.Integer(known) for s, known in sizes), tensor.dtype)


def _environment(graph: Graph) -> ShapeEnv:
    """For a graph that was written down, not captured: nothing is known of its symbols but their ranges."""
    environment = ShapeEnv(specialize_zero_one=False, duck_shape=False)
    for position, (symbol, (low, high)) in enumerate(graph.symbol_ranges.items()):
        unlimited = high >= UNLIMITED
        environment.backed_var_to_val[symbol] = sympy.Integer(min(low + 7 + 2 * position, high))
        environment.var_to_range[symbol] = ValueRanges(low, int_oo if unlimited else high)
        environment.var_to_range_sloc[symbol] = ValueRangesSLoc(SLoc("", ""), SLoc("", ""))
        environment.var_to_sources[symbol] = [ConstantSource(symbol.name)]
    return environment
