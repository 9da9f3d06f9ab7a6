"""Run a graph in the IR without code generation: the ground truth that passes and lowerings are compared with.

Torch operators run as torch operators, `lutra` operations by their reference semantics, parameters are read from the
graph's store when an operation uses them. Shapes may be symbolic: `shapes.py` runs the same loop on fake tensors.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch_mlir import ir

from .errors import CaptureError, LutraError
from .graph import Graph
from .operator_call import OperatorCall, operation_name

Call = Callable[[Any, OperatorCall, list[Any]], tuple[Any, ...]]
"""`(MLIR operation, the call that it makes, values of its slots) -> results`."""


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
    parameter: Callable[[Any], Any] | None = None,
    call: Call | None = None,
) -> list[Any]:
    """As `interpret`, with the loop open.

    on_value: called with every block argument and result (an MLIR value) and what it is in Python, once, in order.
    parameter: value of a `lutra.param` operation; by default what the store has, read anew at each use and not kept
    (then `on_value` is not called for it). call: runs one operation."""
    read = parameter or (lambda op: _Deferred(graph, ir.StringAttr(op.attributes["sym"]).value))
    run = call or (lambda operation, operator, values: operator(*values))
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

    operations = list(graph.operations)
    calls, last_use = _plan(operations)
    for index, op in enumerate(operations):
        operation = op.operation
        if operation.name == "func.return":
            return [look_up(value) for value in operation.operands]
        if operation.name == "lutra.param":
            define(operation.results[0], read(operation))
            continue
        operator, operands = calls[index]
        try:
            results = run(operation, operator, [look_up(value) for value in operands])
        except LutraError as error:
            raise CaptureError(f"{error} ({_place(operation)})") from error
        except Exception as error:
            kinds = ", ".join(str(value.type) for value in operands)
            message = f"{operator.name} failed on ({kinds}): {type(error).__name__}: {error} ({_place(operation)})"
            raise CaptureError(message) from error
        for value, result in zip(operation.results, results, strict=True):
            define(value, result)
        for value in operands:
            if last_use[value] == index:
                environment.pop(value, None)
    raise CaptureError("the graph's function does not return")


class _Deferred:
    """A parameter that is read where it is used: a model's weights are then expanded one at a time."""

    def __init__(self, graph: Graph, symbol: str) -> None:
        self._graph, self._symbol = graph, symbol

    def value(self) -> Any:
        return self._graph.store.value(self._symbol)


def _plan(operations: list[Any]) -> tuple[list[Any], dict[Any, int]]:
    """The call that each operation makes (None for parameters and the return), and where each value is read last."""
    calls: list[Any] = []
    last_use: dict[Any, int] = {}
    for index, op in enumerate(operations):
        name = op.operation.name
        if name in ("lutra.param", "func.return"):
            calls.append(None)
            last_use.update(dict.fromkeys(op.operation.operands, index))
            continue
        try:
            calls.append(OperatorCall.of(op))
        except CaptureError as error:
            raise CaptureError(f"{operation_name(op.operation)}: {error} ({_place(op.operation)})") from error
        last_use.update(dict.fromkeys(calls[-1][1], index))
    return calls, last_use


def _place(operation: Any) -> str:
    """Where an operation came from, for messages: the module path, else MLIR's location."""
    attributes = operation.attributes
    if "lutra.path" in attributes:
        return f"in module {ir.StringAttr(attributes['lutra.path']).value!r}"
    return str(operation.location)
