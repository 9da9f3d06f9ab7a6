"""What one call of a graph costs on any machine: bytes and arithmetic of each operation, as sympy formulas.

Formulas are in the graph's symbolic sizes (`Graph.symbol_ranges`); a size that was a constant at capture is a number in
them. One symbol is ours: `CONTEXT`, the keys that a decode step attends to. A static cache has a constant length L, but
the kernel reads only the keys that the mask admits, so its cost follows the context and not L.

Weights are counted as they lie in memory (packed codes, scales, zero points). Everything else is counted once per
operand and result; views and constants cost nothing. What fusion saves of the traffic of activations is not modelled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy

from ..dialect import quantized_format
from ..errors import LutraError
from ..graph import Graph
from ..operator_call import operation_name
from ..rewriting import activations_of, parameter_symbol, paths, tensor_type
from .shapes import SymbolicValue, symbolic_values

CONTEXT = sympy.Symbol("context", integer=True, positive=True)
"""Keys that one decode step attends to: the tokens so far, its own included."""

SCALE_BYTES = 2
"""Of one float16 scale or zero point."""


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


Values = Mapping[Any, Any]
Formula = Callable[[Graph, Any, Values], Amount]
_FORMULAS: dict[str, Formula] = {}

_PER_ELEMENT = {
    "lutra.rms_norm": 4,  # square, sum, two products
    "lutra.layer_norm": 7,  # two sums, difference, square, two products, bias
    "lutra.rope": 3,  # two products and a sum
    "lutra.gated_mlp": 5,  # exponential, sum, quotient, two products
}
"""Operations for an element of the result; all others that have no formula take one, tables among them, where each sum
builds on another."""
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
    """Register the formula of operations, by the names that `operation_name` gives."""

    def register(formula: Formula) -> Formula:
        _FORMULAS.update(dict.fromkeys(names, formula))
        return formula

    return register


def graph_costs(graph: Graph) -> list[OperationCost]:
    """The cost of every operation of `graph` that costs anything, in order; no parameter is computed."""
    values = symbolic_values(graph).by_value(graph)
    found = []
    for op in graph.operations:
        amount = _amount(graph, op, values)
        if amount.traffic == 0 and amount.operations == 0:
            continue
        linear = operation_name(op.operation) in ("lutra.linear", "lutra.table_linear")
        found.append(
            OperationCost(
                name=operation_name(op.operation),
                path=" ".join(paths(op)),
                amount=amount,
                weight=parameter_symbol(op.weight) if linear else None,
                rows=_elements(values, op.out) / op_features(op) if linear else sympy.Integer(1),
                keeps_activations=linear and activations_of(op) == "float",
            )
        )
    return found


def total(costs_: list[OperationCost]) -> Amount:
    """The sum."""
    return sum((cost.amount for cost in costs_), Amount())


def op_features(linear: Any) -> int:
    """N of a linear."""
    return _matrix(linear.weight)[0]


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


# Formulas -------------------------------------------------------------------------------------------------------------


@costs("lutra.param")
def _param(graph: Graph, op: Any, values: Values) -> Amount:
    """Who uses a parameter reads it."""
    return Amount()


@costs("lutra.linear", "lutra.table_linear")
def _product(graph: Graph, op: Any, values: Values) -> Amount:
    """2 M N K, also where x stands in tables, so that families compare; a bias or residual is one an element."""
    outputs = _elements(values, op.out)
    added = sum(operand is not None for operand in (op.bias, op.residual))
    moved = _moved(graph, op, values)
    return Amount(moved.weights, moved.read, moved.written, outputs * (2 * _matrix(op.weight)[1] + added))


@costs("lutra.grouped_linear")
def _grouped_product(graph: Graph, op: Any, values: Values) -> Amount:
    """As a linear; of the weight at most the matrices of as many groups as there are rows."""
    outputs, moved = _elements(values, op.out), _moved(graph, op, values)
    rows, groups = values[op.x].shape[0], tensor_type(op.offsets.type).shape[0]
    weights = moved.weights * sympy.Min(rows, groups) / groups
    return Amount(weights, moved.read, moved.written, outputs * 2 * _matrix(op.weight)[1])


@costs("lutra.attention")
def _attention(graph: Graph, op: Any, values: Values) -> Amount:
    """4 B H S C D and five for each score (scale, mask, maximum, exponential, sum).

    C: `CONTEXT` for a decode step under a mask, else all keys. Keys and values are read once for each query position
    of a key/value head; the mask is read whole."""
    b, heads, queries, head = values[op.q].shape
    groups, length = values[op.k].shape[1:3]
    keys = CONTEXT if graph.phase == "decode" and op.mask is not None else length
    item = values[op.k].dtype.itemsize
    read = _bytes(values, op.q) + 2 * b * groups * keys * head * item
    if op.mask is not None:
        read += _bytes(values, op.mask)
    return Amount(read=read, written=_bytes(values, op.out), operations=b * heads * queries * keys * (4 * head + 5))


@costs("lutra.kv_update")
def _kv_update(graph: Graph, op: Any, values: Values) -> Amount:
    """Written in place: the new entries only."""
    new = _bytes(values, op.new)
    return Amount(read=new, written=new)


@costs("lutra.rope_kv_update")
def _rope_kv_update(graph: Graph, op: Any, values: Values) -> Amount:
    """Caches are written in place; three operations for an element that is rotated."""
    rotated = _elements(values, op.q) + _elements(values, op.k)
    moved = sum((_bytes(values, x) for x in (op.q, op.k, op.v)), sympy.Integer(0))
    tables = _bytes(values, op.cos) + _bytes(values, op.sin)
    return Amount(read=moved + tables, written=moved, operations=_PER_ELEMENT["lutra.rope"] * rotated)


@costs("lutra.split", *(f"aten.{name}" for name in _FREE))
def _free(graph: Graph, op: Any, values: Values) -> Amount:
    """A view: nothing moves."""
    return Amount()


@costs("aten.embedding")
def _embedding(graph: Graph, op: Any, values: Values) -> Amount:
    """A row of the weight for each index."""
    out = _bytes(values, op.operation.results[0])
    return Amount(weights=out, read=_bytes(values, op.operation.operands[1]), written=out)


@costs("aten.mm", "aten.bmm", "aten.matmul", "aten.linear")
def _matmul(graph: Graph, op: Any, values: Values) -> Amount:
    """Products that the torch library computes."""
    moved, x = _moved(graph, op, values), values[op.operation.operands[0]]
    outputs = _elements(values, op.operation.results[0])
    return Amount(moved.weights, moved.read, moved.written, 2 * outputs * x.shape[-1])


def _amount(graph: Graph, op: Any, values: Values) -> Amount:
    name = operation_name(op.operation)
    if name in _FORMULAS:
        return _FORMULAS[name](graph, op, values)
    if not name.startswith(("aten.", "prims.", "lutra.")):
        return Amount()  # constants, lists, sizes, the return
    moved = _moved(graph, op, values)
    outputs = sum((_elements(values, result) for result in op.operation.results), sympy.Integer(0))
    return Amount(moved.weights, moved.read, moved.written, _PER_ELEMENT.get(name, 1) * outputs)


def _moved(graph: Graph, op: Any, values: Values) -> Amount:
    """Every operand read once, every result written once."""
    weights = read = written = sympy.Integer(0)
    for operand in op.operation.operands:
        symbol = parameter_symbol(operand)
        if symbol is not None:
            weights += graph.store.packed_bytes(symbol) or weight_bytes(operand.type)
        else:
            read += _bytes(values, operand)
    for result in op.operation.results:
        written += _bytes(values, result)
    return Amount(weights, read, written)


def _matrix(weight: Any) -> tuple[int, int]:
    quantized = quantized_format(weight.type)
    if quantized is not None:
        return quantized[:2]
    n, k = tensor_type(weight.type).shape
    assert n is not None and k is not None, "weights have static shapes"
    return n, k


def _tensors(values: Values, value: Any) -> list[tuple[sympy.Expr, int]]:
    """Elements of a tensor, or of each one of a list, and bytes of one; a number has none."""
    described = values[value]
    parts = described if isinstance(described, tuple) else (described,)
    return [
        (sympy.Mul(*part.shape), part.dtype.itemsize)
        for part in parts
        if isinstance(part, SymbolicValue) and part.shape is not None and part.dtype is not None
    ]


def _elements(values: Values, value: Any) -> sympy.Expr:
    return sum((count for count, _ in _tensors(values, value)), sympy.Integer(0))


def _bytes(values: Values, value: Any) -> sympy.Expr:
    return sum((count * item for count, item in _tensors(values, value)), sympy.Integer(0))
