"""What products read beside their weight: x as a matrix, quantised or in tables; bias and residual."""

from dataclasses import dataclass
from typing import Any

from tvm import relax

from ....kernels.cpu.activations import precompute, precompute_outputs
from ....kernels.cpu.packing import PackedLayout
from ....lowering.builder import Lowering
from ....lowering.lutra.linear import LinearOperands
from ....lowering.symbols import dtype_name
from ....lowering.values import Deferred
from ..isa import Activations


@dataclass(frozen=True)
class Converted:
    """Names `x` as a matrix of `dtype`, among what operations share."""

    x: Any
    dtype: str


@dataclass(frozen=True)
class Precomputed:
    """Names `x` in the form that products with groups of so many columns read."""

    x: Any
    form: Activations
    group: int


def epilogue(low: Lowering, operands: LinearOperands, n: int) -> list[relax.Var]:
    """Bias and residual, where they are."""
    extra = [low[operands.bias]] if operands.bias is not None else []
    return extra + (
        [low.flat(low[operands.residual], low.rows(operands.x), n)] if operands.residual is not None else []
    )


def converted(low: Lowering, x: Any, k: int, dtype: str) -> relax.Var:
    """`x` as a matrix in `dtype`, converted once for all linears that read it."""
    rows = low.rows(x)
    if dtype_name(low.dtype(x)) == dtype:
        return low.flat(low[x], rows, k)
    key = Converted(x, dtype)
    if key not in low.memo:
        low.memo[key] = low.emit(relax.op.astype(low.flat(low[x], rows, k), dtype))
    return low.memo[key]


def precomputed(low: Lowering, x: Any, form: Activations, layout: PackedLayout, m: int | None) -> list[relax.Var]:
    """Quantised activations or tables of `x`, computed once for all linears over it that read the same form."""
    group, rows, k = layout.activation_group, low.rows(x), layout.k
    key = Precomputed(x, form, group)
    if key in low.memo:
        return low.memo[key]
    source, dtype = low.peek(x), dtype_name(low.dtype(x))
    types = [relax.TensorType(list(shape), t) for shape, t in precompute_outputs(form, k, group, rows)]
    if isinstance(source, Deferred):
        prologue, inputs = source.prologue, source.inputs()
        name = f"{source.name}+{form}_activations"
    else:
        prologue, inputs, name = None, [low.flat(low[x], rows, k)], f"{form}_activations"
    function = precompute(form, k, group, m, dtype, prologue)
    low.memo[key] = low.kernel(name, function, inputs, types)
    return low.memo[key]
