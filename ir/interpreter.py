"""Run a graph in the IR without code generation: the ground truth that passes and lowerings are compared with.

Torch operators run as torch operators, `lutra` operations by their reference semantics, regions as what they are.
Parameters are read from the graph's store when an operation uses them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
import torch
from torch_mlir import ir

from .analysis.sizes import SIZES_ATTRIBUTE, Described, SymbolicValue
from .errors import CaptureError, LutraError
from .graph import Graph
from .operator_call import OperatorCall, operation_name, place
from .ops import OPERATIONS, NumberOp, ParamOp


def interpret(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Results of `@main` for `inputs` (one per block argument: tensors, or ints for symbolic sizes).

    In-place updates come as values among the results, at the indices that `graph.mutations` names; no argument is
    written. Raises `CaptureError` for an operation that has no semantics or whose operands do not fit, naming it and
    its place."""
    return evaluate(graph, inputs)


def evaluate(
    graph: Graph,
    inputs: Sequence[Any],
    *,
    on_value: Callable[[Any, Any], None] | None = None,
) -> list[Any]:
    """As `interpret`, with the loop open.

    on_value: called with every block argument and result (an MLIR value) and what it is in Python, once, in order; not
    for parameters, which are read anew at each use and not kept."""
    symbols = _Symbols(graph)
    environment: dict[Any, Any] = {}

    def define(value: Any, result: Any) -> None:
        environment[value] = result
        if on_value is not None and not isinstance(result, _Deferred):
            on_value(value, result)

    def look_up(value: Any) -> Any:
        result = environment[value]
        return result.value() if isinstance(result, _Deferred) else result

    arguments = graph.function.regions[0].blocks[0].arguments
    if len(arguments) != len(inputs):
        raise CaptureError(f"the graph takes {len(arguments)} arguments, {len(inputs)} were given")
    for argument, value in zip(arguments, inputs, strict=True):
        define(argument, value)
    symbols.learn_arguments(inputs)

    operations = list(graph.operations)
    calls, last_use = _plan(operations)
    for index, op in enumerate(operations):
        operation = op.operation
        if operation.name == "func.return":
            return [look_up(value) for value in operation.operands]
        if operation.name == ParamOp.OPERATION_NAME:
            define(operation.results[0], _Deferred(graph, ir.StringAttr(operation.attributes["sym"]).value))
            continue
        if operation.name == NumberOp.OPERATION_NAME:
            define(operation.results[0], symbols.number(ir.StringAttr(operation.attributes["expression"]).value))
            continue
        operator, operands = calls[index]
        try:
            values = [look_up(value) for value in operands]
            region = operator.region
            results = graph.regions[region].module(*operator.filled(values)) if region else operator(*values)
        except LutraError as error:
            raise CaptureError(f"{error} ({place(operation)})") from error
        except Exception as error:
            kinds = ", ".join(str(value.type) for value in operands)
            message = f"{operator.name} failed on ({kinds}): {type(error).__name__}: {error} ({place(operation)})"
            raise CaptureError(message) from error
        for value, result in zip(operation.results, results, strict=True):
            define(value, result)
        if SIZES_ATTRIBUTE in operation.attributes:
            symbols.learn(graph.sizes[ir.StringAttr(operation.attributes[SIZES_ATTRIBUTE]).value], results)
        for value in operands:
            if last_use[value] == index:
                environment.pop(value, None)
    raise CaptureError("the graph's function does not return")


class _Symbols:
    """What the symbols of a graph stand for in one run."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[Any, int] = {}

    def learn_arguments(self, inputs: Sequence[Any]) -> None:
        for given, shape, value in zip(self._graph.inputs, self._graph.input_shapes, inputs, strict=False):
            numbers = zip(shape, getattr(value, "shape", ()), strict=False)
            self._learn([(given.symbol, value)] if given.symbol is not None else numbers)

    def learn(self, described: Described, results: Sequence[Any]) -> None:
        """Sizes that depend on data are known once their tensor is there."""
        values = zip(described, results, strict=False) if isinstance(described, tuple) else [(described, results[0])]
        for one, value in values:
            if isinstance(one, SymbolicValue) and one.shape is not None and isinstance(value, torch.Tensor):
                self._learn(zip(one.shape, value.shape, strict=True))

    def _learn(self, pairs: Iterable[tuple[Any, Any]]) -> None:
        for size, number in pairs:
            if isinstance(size, sympy.Symbol):
                self._known[size] = int(number)

    def number(self, text: str) -> int | float:
        described = self._graph.sizes[text]
        assert isinstance(described, SymbolicValue) and described.number is not None, text
        return NumberOp.reference(self._known, expression=described.number)


class _Deferred:
    """A parameter that is read where it is used: a model's weights are then expanded one at a time."""

    def __init__(self, graph: Graph, symbol: str) -> None:
        self._graph, self._symbol = graph, symbol

    def value(self) -> Any:
        return ParamOp.reference(self._graph.store, sym=self._symbol)


def _plan(operations: list[Any]) -> tuple[list[Any], dict[Any, int]]:
    """The call that each operation makes (None for parameters and the return), and where each value is read last."""
    calls: list[Any] = []
    last_use: dict[Any, int] = {}
    for index, op in enumerate(operations):
        name = op.operation.name
        if name == "func.return" or (name in OPERATIONS and OPERATIONS[name].NEEDS_GRAPH):
            calls.append(None)
            last_use.update(dict.fromkeys(op.operation.operands, index))
            continue
        try:
            calls.append(OperatorCall.of(op))
        except CaptureError as error:
            raise CaptureError(f"{operation_name(op)}: {error} ({place(op.operation)})") from error
        last_use.update(dict.fromkeys(calls[-1][1], index))
    return calls, last_use
