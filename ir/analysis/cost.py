"""What one call of a graph costs on any machine: bytes and arithmetic of each operation, as sympy formulas.

Formulas are in the graph's symbolic sizes (`Graph.symbol_ranges`); a size that was a constant at capture is a number in
them. One symbol is ours: `CONTEXT`, the keys that a decode step attends to. A static cache has a constant length L, but
the kernel reads only the keys that the mask admits, so its cost follows the context and not L.

Formulas of our operations stand in their classes (`ir/ops`), those of torch operators here. Weights are counted as they
lie in memory (packed codes, scales, zero points). Everything else is counted once per operand and result; views and
constants cost nothing. What fusion saves of the traffic of activations is not modelled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy

from ..graph import Graph
from ..operator_call import operation_name
from ..ops import OPERATIONS, LinearOp, ParamOp, TableLinearOp, quantized_format
from ..rewriting import activations_of, parameter_symbol, paths, static_shape
from ..types import tensor_type
from .amounts import Amount, ValueSizes
from .shapes import symbolic_values

SCALE_BYTES = 2
"""Of one float16 scale or zero point."""


@dataclass(frozen=True)
class OperationCost:
    """One operation of a graph: its name ("lutra.linear"), module path and amounts.

    weight: symbol of the low-bit or plain matrix of a linear. rows: of activations that it is multiplied by.
    keeps_activations: it is multiplied by floating-point activations."""

    name: str
    path: str
    amount: Amount
    weight: str | None = None
    rows: sympy.Expr = sympy.S.One
    keeps_activations: bool = False


def graph_costs(graph: Graph) -> list[OperationCost]:
    """The cost of every operation of `graph` that costs anything, in order; no parameter is computed."""
    sizes = ValueSizes(symbolic_values(graph).by_value(graph), _parameters(graph), graph.phase == "decode")
    found = []
    for op in graph.operations:
        amount = _amount(op, sizes)
        if amount.traffic == 0 and amount.operations == 0:
            continue
        linear = isinstance(op, LinearOp | TableLinearOp)
        found.append(
            OperationCost(
                name=operation_name(op),
                path=" ".join(paths(op)),
                amount=amount,
                weight=parameter_symbol(op.weight) if linear else None,
                rows=sizes.elements(op.out) / static_shape(op.weight)[0] if linear else sympy.Integer(1),
                keeps_activations=linear and activations_of(op) == "float",
            )
        )
    return found


def total(costs_: list[OperationCost]) -> Amount:
    """The sum."""
    return sum((cost.amount for cost in costs_), Amount())


def weight_bytes(type_: Any) -> int:
    """Bytes of a parameter of MLIR type `type_`: packed codes, scales and zero points when it is quantised.

    Kernels may pad rows to a block; `ParameterStore.packed_bytes` knows that, once it is packed."""
    quantized = quantized_format(type_)
    if quantized is None:
        tensor, count = tensor_type(type_), 1
        for size in tensor.shape:
            count *= size or 1
        return count * tensor.dtype.itemsize
    n, k, format_ = quantized
    return n * k * format_.bits // 8 + n * format_.groups(k) * SCALE_BYTES * (2 if format_.has_zero_points else 1)


def _parameters(graph: Graph) -> dict[Any, int]:
    """Bytes of each parameter: as it was packed, where it was."""
    parameters = [op for op in graph.operations if isinstance(op, ParamOp)]
    return {op.out: graph.store.packed_bytes(op.sym.value) or weight_bytes(op.out.type) for op in parameters}


def _amount(op: Any, sizes: ValueSizes) -> Amount:
    name = operation_name(op)
    if name in OPERATIONS:
        return OPERATIONS[name].cost(op, sizes)
    if name in _FORMULAS:
        return _FORMULAS[name](op, sizes)
    if name.startswith(("aten.", "prims.", "lutra.")):  # lutra: a region
        return sizes.elementwise(op, 1)
    return Amount()  # constants, lists, sizes, the return


# Torch operators ------------------------------------------------------------------------------------------------------

Formula = Callable[[Any, ValueSizes], Amount]
_FORMULAS: dict[str, Formula] = {}
"""By the names that `operation_name` gives; others take one operation for each element of the result."""
_FREE = (
    "view",
    "reshape",
    "_unsafe_view",
    "transpose.int",
    "t",
    "permute",
    "unsqueeze",
    "squeeze.dim",
    "squeeze",
    "expand",
    "alias",
    "detach",
    "slice.Tensor",
    "select.int",
    "size",
    "size.int",
    "numel",
    "dim",
)
"""Torch operators that give another view of the same elements, or a number about them."""


def costs(*names: str) -> Callable[[Formula], Formula]:
    """Register the formula of torch operators."""

    def register(formula: Formula) -> Formula:
        _FORMULAS.update(dict.fromkeys(names, formula))
        return formula

    return register


@costs(*(f"aten.{name}" for name in _FREE))
def _free(op: Any, sizes: ValueSizes) -> Amount:
    """A view: nothing moves."""
    return Amount()


@costs("aten.embedding")
def _embedding(op: Any, sizes: ValueSizes) -> Amount:
    """A row of the weight for each index."""
    out = sizes.bytes(op.operation.results[0])
    return Amount(weights=out, read=sizes.bytes(op.operation.operands[1]), written=out)


@costs("aten.mm", "aten.bmm", "aten.matmul", "aten.linear")
def _matmul(op: Any, sizes: ValueSizes) -> Amount:
    """Products that the torch library computes."""
    outputs, columns = sizes.elements(op.operation.results[0]), sizes.shape(op.operation.operands[0])[-1]
    return sizes.moved(op) + Amount(operations=2 * outputs * columns)
