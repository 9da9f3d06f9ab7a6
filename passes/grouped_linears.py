"""Stacks of matrices that grouped products read, the experts of a mixture, in the form that quantising takes.

%w = lutra.param {sym = "experts.down_proj"} : [E, N, K]     %w = lutra.param {sym = "experts.down_proj.rows@s4g128"}
%t = aten.transpose(%w, -2, -1)                        =>        : !lutra.quantized [E N, K]
%y = transformers.grouped_mm_fallback(%x, %t, %ends)         %y = lutra.grouped_linear(%x, %w, %ends)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..ir.operator_call import operation_name
from ..ir.ops import GroupedLinearOp, ParamOp
from ..ir.rewriting import (
    LinearActivations,
    build,
    constant,
    defined_by,
    parameter_symbol,
    quantized_type,
    set_activations,
    shape_of,
    static_shape,
)
from ..ir.types import tensor_type
from ..ir.weights.derivations import StackedRows
from ..ir.weights.formats import WeightFormat
from ..ir.weights.store import ParameterStore
from .left_alone import parameter_path
from .matching import dimension, is_fused_float

NAMES = ("aten._grouped_mm", "transformers.grouped_mm_fallback")
"""What grouped products arrive as: bf16, and other dtypes."""
FEATURES = 16
"""The features of a group are a multiple of that: kernels go through a weight by so many rows."""


@dataclass(frozen=True)
class Stack:
    """The weight of a grouped product: parameter `symbol` `[E, N, K]`, or `[E, K, N]` when it is `transposed`."""

    symbol: str
    groups: int
    n: int
    k: int
    transposed: bool

    @property
    def path(self) -> str:
        """What recipes and reports call it."""
        return parameter_path(self.symbol)

    @property
    def rows_symbol(self) -> str:
        """The matrix `[E N, K]`."""
        return f"{self.symbol}{'.T' if self.transposed else ''}.rows"

    @property
    def why_not(self) -> str | None:
        """Why no kernel could multiply it in few bits; None when there are some."""
        if self.n % FEATURES:
            return f"each of its matrices has {self.n} output features, which {FEATURES} does not divide"
        return None

    def derive(self, store: ParameterStore) -> str:
        """Make the matrix of rows known to `store`; its symbol."""
        return store.derive(self.rows_symbol, [self.symbol], StackedRows(self.transposed))


def stacks(operations: Any) -> Iterator[tuple[Any, Stack]]:
    """Every grouped product whose weight is a floating-point parameter, and that weight."""
    for op in operations:
        found = stack_of(op)
        if found is not None:
            yield op, found


def stack_of(op: Any) -> Stack | None:
    """The weight of `op`, if it is such a product."""
    if operation_name(op) not in NAMES:
        return None
    x, weight, offsets, *rest = op.operation.operands
    if any(shape_of(value) is not None for value in rest[:1]) or any(constant(value) is not None for value in rest[1:]):
        return None  # a bias, or another dtype of the result
    symbol, transposed = parameter_symbol(weight), True
    if symbol is None:
        view = defined_by(weight, "aten.transpose.int")
        if view is None or {dimension(d, 3) for d in view.operands[1:]} != {1, 2}:
            return None
        symbol, transposed = parameter_symbol(view.operands[0]), False
    result = op.operation.results[0]
    shape, ends = shape_of(weight), shape_of(offsets)
    if symbol is None or shape is None or len(shape) != 3 or ends != shape[:1]:
        return None
    if len(shape_of(x) or ()) != 2 or not is_fused_float(x, weight, result):
        return None
    if tensor_type(result.type).dtype != tensor_type(x.type).dtype:
        return None
    groups, k, n = static_shape(weight)
    return Stack(symbol, groups, n, k, transposed)


def take_stack(
    op: Any, rewriter: Any, stack: Stack, name: str, format: WeightFormat, form: LinearActivations | None
) -> None:
    """Replace a grouped product by one over the quantised weight `name`."""
    x, _, offsets, *_ = op.operation.operands
    weight = build(ParamOp, rewriter, op, name, quantized_type(stack.groups * stack.n, stack.k, format)).out
    new = build(GroupedLinearOp, rewriter, op, x, weight, offsets, op.operation.results[0].type, path=stack.path)
    if form is not None:
        set_activations(new, form)
    rewriter.replace_op(op, new.operation)
