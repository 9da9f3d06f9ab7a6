"""Products with parameters to `lutra.linear`: a weight is `[N, K]` there, whichever way round the model keeps it."""

from dataclasses import dataclass
from typing import Any

from ...ir.ops import LinearOp, ParamOp
from ...ir.patterns import Pattern, Patterns
from ...ir.rewriting import build, constant, parameter_symbol, shape_of, static_shape, vtensor
from ...ir.types import tensor_type
from ...ir.weights.derivations import Transpose
from ...ir.weights.store import ParameterStore
from ..matching import sizes


class Linear(Pattern):
    """`aten.linear(x, weight, bias)` -> `lutra.linear`, for weights that are parameters.

    @w: f32[16,8], @b: f32[16]
    %r = aten.linear(%x, @w, @b) : f32[2,3,16]
    =>
    %r = lutra.linear(%x, @w, bias = @b) : f32[2,3,16]
    """

    roots = ("torch.aten.linear",)

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        x, weight, bias = op.operation.operands
        if not _multiplies(x, weight, 1) or not _is_bias(bias, static_shape(weight)[0]):
            return False
        keywords = {} if shape_of(bias) is None else {"bias": bias}
        new = build(LinearOp, rewriter, op, x, weight, op.operation.results[0].type, **keywords)
        rewriter.replace_op(op, new.operation)
        return True


@dataclass(frozen=True)
class Addmm(Pattern):
    """`aten.addmm(bias, x, W [K, N])` -> `lutra.linear(x, W^T, bias)` (GPT-2's Conv1D); `store` receives W^T.

    %x: f32[6,8], @w: f32[8,16], @w.T: f32[16,8], @b: f32[16]
    %r = aten.addmm(@b, %x, @w, 1, 1) : f32[6,16]
    =>
    %r = lutra.linear(%x, @w.T, bias = @b) : f32[6,16]
    """

    roots = ("torch.aten.addmm",)

    store: ParameterStore

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        bias, x, weight, beta, alpha = op.operation.operands
        if constant(beta) != 1 or constant(alpha) != 1 or not _multiplies(x, weight, 0):
            return False
        if shape_of(bias) != (static_shape(weight)[1],):
            return False
        transposed = _transposed(self.store, op, rewriter, weight)
        new = build(LinearOp, rewriter, op, x, transposed, op.operation.results[0].type, bias=bias)
        rewriter.replace_op(op, new.operation)
        return True


@dataclass(frozen=True)
class Matmul(Pattern):
    """`aten.mm` or `aten.matmul` with a parameter `W [K, N]` on the right -> `lutra.linear(x, W^T)`; `store` receives
    W^T.

        @w: f32[8,16], @w.T: f32[16,8]
        %r = aten.matmul(%x, @w) : f32[2,3,16]
        =>
        %r = lutra.linear(%x, @w.T) : f32[2,3,16]
    """

    roots = ("torch.aten.mm", "torch.aten.matmul")

    store: ParameterStore

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        x, weight = op.operation.operands
        if not _multiplies(x, weight, 0) or len(sizes(x)) < 2:
            return False
        transposed = _transposed(self.store, op, rewriter, weight)
        new = build(LinearOp, rewriter, op, x, transposed, op.operation.results[0].type)
        rewriter.replace_op(op, new.operation)
        return True


def linears(store: ParameterStore) -> Patterns:
    """All of these; `store` receives transposed weights."""
    return Linear() + Addmm(store) + Matmul(store)


def _multiplies(x: Any, weight: Any, columns: int) -> bool:
    """`weight` is a floating-point matrix among the parameters, whose dimension `columns` meets x's last."""
    shape, rows = sizes(weight), sizes(x)
    if parameter_symbol(weight) is None or len(shape) != 2 or not rows:
        return False
    return tensor_type(weight.type).dtype.is_floating_point and rows[-1] == shape[columns]


def _is_bias(bias: Any, n: int) -> bool:
    """`bias` is left out, or has one entry for each of `n` features: torch broadcasts others."""
    return shape_of(bias) in (None, (n,))


def _transposed(store: ParameterStore, op: Any, rewriter: Any, weight: Any) -> Any:
    """A `lutra.param` for the transpose of the parameter `weight [K, N]`."""
    symbol = parameter_symbol(weight)
    name = store.derive(f"{symbol}.T", [symbol or ""], Transpose())
    return build(ParamOp, rewriter, op, name, vtensor(reversed(static_shape(weight)), weight)).out
