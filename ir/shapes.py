"""Symbolic shapes: for every value of `@main` its sizes as sympy expressions over the symbols of the graph's arguments.

The interpreter runs on fake tensors whose sizes are symbols of a fresh `ShapeEnv`. Where an operation's result types
are static nothing is run: the type says it all. Equal calls on equal shapes are run once, so that a model of many equal
layers costs about as much as one layer.

A `ShapeEnv` decides what it cannot prove (is `s0 > 16`?) by an example value for each symbol. Examples are primes
inside the symbol's range, so that no size equals or divides another by chance. When a choice contradicts the types of
the module (a window that needs an even size), the next set of examples is tried. Sizes that depend on data (`nonzero`),
or that no set of examples explains, are fresh symbols: `SymbolicValues.unbacked`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StrictMinMaxConstraint,
)
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from .dialect import quantized_format
from .errors import CaptureError
from .graph import Graph
from .interpreter import evaluate
from .operator_call import OperatorCall
from .quantization import QuantizedWeight
from .types import TensorType, as_tensor_type, tensor_type


@dataclass(frozen=True)
class SymbolicValue:
    """A tensor (`shape`, `dtype`), a quantised weight (`shape` `[N, K]`) or a number (`number`), in graph symbols."""

    shape: tuple[sympy.Expr, ...] | None = None
    dtype: torch.dtype | None = None
    number: sympy.Expr | None = None


Described = SymbolicValue | tuple[Any, ...] | None
"""What a value is: a `SymbolicValue`, for a list a tuple of them, None for anything else (a string, none, a device)."""


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
    """Shape and dtype (of an int: its expression) of every argument and result of `@main`; no parameter is computed.

    Raises `CaptureError` when an operation has no semantics."""
    for choose in _EXAMPLES:
        run = _Run(graph, _examples(graph.symbol_ranges, choose))
        described = run.describe()
        if not run.contradictions:
            break
    arguments = len(graph.function.regions[0].blocks[0].arguments)
    remaining = iter(described[arguments:])
    results = tuple(tuple(next(remaining) for _ in op.operation.results) for op in graph.operations)
    used = {s for value in described for expression in _expressions(value) for s in expression.free_symbols}
    unbacked = frozenset(s for s in used - set(graph.symbol_ranges) if isinstance(s, sympy.Symbol))
    return SymbolicValues(tuple(described[:arguments]), results, unbacked)


def _values(graph: Graph) -> Iterator[Any]:
    yield from graph.function.regions[0].blocks[0].arguments
    for op in graph.operations:
        yield from op.operation.results


def _expressions(value: Described) -> Iterator[sympy.Expr]:
    if isinstance(value, tuple):
        for element in value:
            yield from _expressions(element)
    elif value is not None:
        yield from value.shape or ()
        if value.number is not None:
            yield value.number


# Examples -------------------------------------------------------------------------------------------------------------

_PRIMES = tuple(p for p in range(11, 1000) if all(p % d for d in range(2, 32) if d < p))
_EXAMPLES: tuple[Callable[[int, int], int], ...] = (
    lambda position, count: _PRIMES[2 * position],  # ascending: a batch, then positions, then the length of a cache
    lambda position, count: 16 * _PRIMES[2 * position],
    lambda position, count: _PRIMES[2 * (count - position)],
)
"""How to choose the example of the `position`-th of `count` symbols, in order of trial."""


def _examples(
    ranges: Mapping[sympy.Symbol, tuple[int, int]], choose: Callable[[int, int], int]
) -> dict[sympy.Symbol, int]:
    """Distinct examples within `ranges`, as near to the chosen ones as the ranges allow."""
    taken: dict[sympy.Symbol, int] = {}
    for position, (symbol, (low, high)) in enumerate(ranges.items()):
        example = choose(position, len(ranges))
        if example < low:
            example += low
        example = min(example, high)
        while example in taken.values() and example > max(low, 2):
            example -= 1
        taken[symbol] = example
    return taken


# Running --------------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """One run of the graph on fake tensors, with one set of examples. `contradictions`: what did not fit the types."""

    graph: Graph
    examples: Mapping[sympy.Symbol, int]
    contradictions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.environment = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        self.mode = FakeTensorMode(shape_env=self.environment, allow_non_fake_inputs=True)
        self._inner = {symbol: self._symbol(symbol) for symbol in self.graph.symbol_ranges}
        self._outer = {inner: symbol for symbol, inner in self._inner.items()}
        self._fakes: dict[TensorType, torch.Tensor] = {}
        self._calls: dict[Any, tuple[Any, ...]] = {}
        self._keys: dict[int, tuple[Any, Any]] = {}
        self._described: dict[int, tuple[Any, Described]] = {}

    def describe(self) -> list[Described]:
        """Every value of the graph, in order."""
        values: list[Described] = []
        arguments = self.graph.function.regions[0].blocks[0].arguments
        with self.mode, enable_python_dispatcher(), torch.no_grad():
            inputs = [self._input(i, argument.type) for i, argument in enumerate(arguments)]
            evaluate(
                self.graph,
                inputs,
                on_value=lambda _, value: values.append(self._describe(value)),
                parameter=lambda op: self._parameter(op.results[0].type),
                call=self._call,
            )
        specialised = [s for s in self._outer if self.environment.replace(s).is_number]
        self.contradictions += [f"{self._outer[s]} was fixed" for s in specialised]
        return values

    def _symbol(self, symbol: sympy.Symbol) -> sympy.Expr:
        low, high = self.graph.symbol_ranges[symbol]
        range_ = ValueRanges(low, int_oo if high >= 2**62 else high)
        return self.environment.create_symbol(
            self.examples[symbol],
            ConstantSource(symbol.name),
            DimDynamic.DYNAMIC,
            StrictMinMaxConstraint(vr=range_, warn_only=False),
            do_not_specialize_zero_one=True,
        )

    def _size(self, expression: Any) -> Any:
        """An int, or a SymInt for an expression in the graph's symbols."""
        expression = sympy.sympify(expression)
        if expression.is_number:
            return int(expression)
        inner = expression.xreplace(self._inner)
        example = int(expression.xreplace({s: sympy.Integer(e) for s, e in self.examples.items()}))
        return self.environment.create_symintnode(inner, hint=example, source=ConstantSource(str(expression)))

    def _input(self, index: int, type_: Any) -> Any:
        symbol = self.graph.inputs[index].symbol
        if symbol is not None:
            return self._size(symbol)
        tensor = as_tensor_type(type_)
        if tensor is None:
            return self._unknown(type_)
        return torch.empty([self._size(d) for d in self.graph.input_shapes[index]], dtype=tensor.dtype)

    def _parameter(self, type_: Any) -> Any:
        quantized = quantized_format(type_)
        if quantized is None:
            return self._fake(tensor_type(type_))
        n, k, format_ = quantized
        scales = self._fake(TensorType((n, format_.groups(k)), torch.float16))
        codes = self._fake(TensorType((n, k), torch.uint8))
        return QuantizedWeight(codes, scales, scales if format_.has_zero_points else None, format_)

    def _fake(self, type_: TensorType) -> torch.Tensor:
        """A fake tensor of a static type, shared by all values of that type."""
        if type_ not in self._fakes:
            self._fakes[type_] = torch.empty(type_.shape, dtype=type_.dtype)  # type: ignore[arg-type]
        return self._fakes[type_]

    def _unknown(self, type_: Any) -> Any:
        """A value of which only the type is known: fresh symbols where that says nothing."""
        if str(type_) == "!torch.int":
            return self.environment.create_unbacked_symint()
        tensor = as_tensor_type(type_)
        if tensor is None:
            return None
        sizes = [self._fresh_size() if d is None else d for d in tensor.shape]
        return torch.empty(sizes, dtype=tensor.dtype)

    def _fresh_size(self) -> Any:
        size = self.environment.create_unbacked_symint()
        torch._check(size >= 0)
        return size

    def _call(self, operation: Any, operator: OperatorCall, values: list[Any]) -> tuple[Any, ...]:
        types = [as_tensor_type(result.type) for result in operation.results]
        if all(t is not None and None not in t.shape for t in types):
            return tuple(self._fake(t) for t in types if t is not None)
        if operator.reads_data:
            # Fakes are shared between values of equal shape, but what depends on data differs for each.
            return self._checked(operation, operator, [_copy(value) for value in values])
        key = (operator, *map(self._key, values))
        if key not in self._calls:
            self._calls[key] = self._checked(operation, operator, values)
        return self._calls[key]

    def _checked(self, operation: Any, operator: OperatorCall, values: list[Any]) -> tuple[Any, ...]:
        """Results of the operator, or, where they contradict their types, values that are as unknown as the types."""
        try:
            results = operator(*values)
        except CaptureError:
            raise
        except Exception as error:
            if not isinstance(error, GuardOnDataDependentSymNode):  # no example helps there
                self.contradictions.append(f"{operator.name}: {error}")
            return tuple(self._unknown(result.type) for result in operation.results)
        if len(results) != len(operation.results):
            self.contradictions.append(f"{operator.name}: {len(results)} results, not {len(operation.results)}")
            return tuple(self._unknown(result.type) for result in operation.results)
        return tuple(
            self._fitting(value, result.type) for value, result in zip(results, operation.results, strict=True)
        )

    def _fitting(self, value: Any, type_: Any) -> Any:
        tensor = as_tensor_type(type_)
        if tensor is None or not isinstance(value, torch.Tensor):
            return value
        if value.dim() != len(tensor.shape):
            self.contradictions.append(f"rank {value.dim()} where the type is {type_}")
            return self._unknown(type_)
        sizes = [size if known is None else known for size, known in zip(value.shape, tensor.shape, strict=True)]
        for size, known in zip(value.shape, tensor.shape, strict=True):
            if known is not None and isinstance(size, int) and size != known:
                self.contradictions.append(f"size {size} where the type is {type_}")
        if value.dtype == tensor.dtype and all(a is b or _same(a, b) for a, b in zip(sizes, value.shape, strict=True)):
            return value
        return torch.empty(sizes, dtype=tensor.dtype)

    def _key(self, value: Any) -> Any:
        """What the result's shape can depend on; a tensor is kept with its key, so that its id stays its own."""
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return value.node.expr
        if isinstance(value, QuantizedWeight):
            return value.codes.shape, value.format
        if isinstance(value, list | tuple):
            return tuple(map(self._key, value))
        if not isinstance(value, torch.Tensor):
            return type(value), value
        if id(value) not in self._keys:
            key = (value.dtype, *map(self._key, value.shape), "strides", *map(self._key, value.stride()))
            self._keys[id(value)] = value, key
        return self._keys[id(value)][1]

    def _describe(self, value: Any) -> Described:
        if isinstance(value, QuantizedWeight):
            return SymbolicValue(shape=tuple(map(sympy.Integer, value.codes.shape)))
        if isinstance(value, list | tuple):
            return tuple(map(self._describe, value))
        if isinstance(value, torch.SymInt | int) and not isinstance(value, bool):
            return SymbolicValue(number=self._outside(value))
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._described:
            shape = tuple(map(self._outside, value.shape))
            self._described[id(value)] = value, SymbolicValue(shape, value.dtype)
        return self._described[id(value)][1]

    def _outside(self, size: Any) -> sympy.Expr:
        """A size as an expression in the graph's symbols."""
        return size.node.expr.xreplace(self._outer) if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _same(a: Any, b: Any) -> bool:
    """Sizes that are written the same; nothing is decided by an example."""
    symbolic = isinstance(a, torch.SymInt), isinstance(b, torch.SymInt)
    return a.node.expr == b.node.expr if all(symbolic) else not any(symbolic) and a == b


def _copy(value: Any) -> Any:
    """Another fake tensor like `value`; lists element by element."""
    if isinstance(value, list):
        return [_copy(element) for element in value]
    return torch.empty_like(value) if isinstance(value, torch.Tensor) else value
