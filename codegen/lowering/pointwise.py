"""Elementwise operators and casts, as Relax operators that Relax fuses with their neighbours.

Half-precision operands are computed in float32 and rounded once per operator, as torch does.
"""

from collections.abc import Callable
from typing import Any

import torch
from tvm import relax, te, tirx

from ...ir.rewriting import constant
from .builder import Lowering, is_size, is_tensor
from .registry import DECLINED, lowers
from .symbols import dtype_name

R = relax.op
_HALF = (torch.float16, torch.bfloat16)


def cast(value: relax.Expr, dtype: torch.dtype) -> relax.Expr:
    """`value` in `dtype`; to bool: whether it is not zero."""
    current = str(value.ty.dtype) if is_tensor(value) else None
    if current == dtype_name(dtype):
        return value
    if dtype is torch.bool:
        return R.not_equal(value, relax.const(0, str(current)))
    return R.astype(value, dtype_name(dtype))


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that torch computes elementwise operators of `dtype` in."""
    return torch.float32 if dtype in _HALF else dtype


def operand(low: Lowering, value: Any, dtype: torch.dtype) -> relax.Expr:
    """A tensor, a constant or a size as a Relax expression of `dtype`."""
    item = low[value]
    if is_tensor(item):
        return cast(item, dtype)
    if isinstance(item, bool | int | float):
        return relax.const(item, dtype_name(dtype))
    return low.scalar(item, dtype)


def _is_operand(low: Lowering, value: Any) -> bool:
    """`operand` knows what to do with it."""
    item = low[value]
    return is_tensor(item) or is_size(item) or isinstance(item, bool | float)


def _binary(function: Callable[..., relax.Expr]) -> Callable[[Lowering, Any], Any]:
    def lower(low: Lowering, op: Any) -> Any:
        left, right, *alpha = op.operation.operands
        if not all(_is_operand(low, v) for v in (left, right)) or (
            alpha and not isinstance(constant(alpha[0]), int | float)
        ):
            return DECLINED
        out = op.operation.results[0]
        dtype = compute_dtype(low.dtype(out))
        if dtype is torch.bool:
            return DECLINED
        a, b = operand(low, left, dtype), operand(low, right, dtype)
        if alpha and constant(alpha[0]) != 1:
            b = R.multiply(b, relax.const(constant(alpha[0]), dtype_name(dtype)))
        return low.emit(cast(low.emit(function(a, b)), low.dtype(out)), out)

    return lower


for _name, _function in {
    "add": R.add,
    "sub": R.subtract,
    "mul": R.multiply,
    "div": R.divide,
    "maximum": R.maximum,
    "minimum": R.minimum,
}.items():
    lowers(f"torch.aten.{_name}.Tensor", f"torch.aten.{_name}.Scalar", f"torch.aten.{_name}")(_binary(_function))
lowers("torch.aten.true_divide.Tensor")(_binary(R.divide))


@lowers("torch.aten.rsub.Scalar")
def _rsub(low: Lowering, op: Any) -> Any:
    x, scalar, alpha = op.operation.operands
    if constant(alpha) != 1 or not _is_operand(low, scalar):
        return DECLINED
    out = op.operation.results[0]
    dtype = compute_dtype(low.dtype(out))
    return low.emit(
        cast(low.emit(R.subtract(operand(low, scalar, dtype), operand(low, x, dtype))), low.dtype(out)), out
    )


def _comparison(function: Callable[..., relax.Expr]) -> Callable[[Lowering, Any], Any]:
    def lower(low: Lowering, op: Any) -> Any:
        left, right = op.operation.operands
        if not all(_is_operand(low, v) for v in (left, right)):
            return DECLINED
        samples = [_sample(low, v) for v in (left, right)]
        dtype = compute_dtype(torch.result_type(*samples))
        out = op.operation.results[0]
        return low.emit(function(operand(low, left, dtype), operand(low, right, dtype)), out)

    return lower


def _sample(low: Lowering, value: Any) -> Any:
    """Something that takes part in torch's type promotion as `value` does."""
    item = low[value]
    if not is_tensor(item):
        return item if isinstance(item, bool | int | float) else 0
    return torch.empty([1] * len(low.sizes(value)), dtype=low.dtype(value), device="meta")


for _name, _function in {
    "eq": R.equal,
    "ne": R.not_equal,
    "lt": R.less,
    "le": R.less_equal,
    "gt": R.greater,
    "ge": R.greater_equal,
}.items():
    lowers(f"torch.aten.{_name}.Tensor", f"torch.aten.{_name}.Scalar")(_comparison(_function))


def _logical(function: Callable[..., relax.Expr], only_bool: bool) -> Callable[[Lowering, Any], Any]:
    def lower(low: Lowering, op: Any) -> Any:
        values = list(op.operation.operands)
        if any(not is_tensor(low[v]) for v in values):
            return DECLINED
        if only_bool and any(low.dtype(v) is not torch.bool for v in values):
            return DECLINED
        return low.emit(function(*(cast(low[v], torch.bool) for v in values)), op.operation.results[0])

    return lower


for _name, _function in {"and": R.logical_and, "or": R.logical_or, "xor": R.logical_xor, "not": R.logical_not}.items():
    lowers(f"torch.aten.logical_{_name}")(_logical(_function, only_bool=False))
    lowers(f"torch.aten.bitwise_{_name}.Tensor", f"torch.aten.bitwise_{_name}")(_logical(_function, only_bool=True))


_UNARY: dict[str, Callable[[relax.Expr], relax.Expr]] = {
    "abs": R.abs,
    "neg": R.negative,
    "exp": R.exp,
    "log": R.log,
    "sqrt": R.sqrt,
    "rsqrt": R.rsqrt,
    "sin": R.sin,
    "cos": R.cos,
    "tanh": R.tanh,
    "sigmoid": R.sigmoid,
    "erf": R.erf,
    "floor": R.floor,
    "ceil": R.ceil,
    "silu": R.nn.silu,
    "relu": R.nn.relu,
    "reciprocal": lambda x: R.divide(relax.const(1.0, "float32"), x),
}


def _unary(low: Lowering, op: Any, function: Callable[[relax.Expr], relax.Expr]) -> Any:
    x, out = op.operation.operands[0], op.operation.results[0]
    dtype = low.dtype(out)
    if not dtype.is_floating_point or dtype is torch.float64:
        return DECLINED
    return low.emit(cast(low.emit(function(cast(low[x], torch.float32))), dtype), out)


for _name, _function in _UNARY.items():
    lowers(f"torch.aten.{_name}")(lambda low, op, function=_function: _unary(low, op, function))


@lowers("torch.aten.gelu")
def _gelu(low: Lowering, op: Any) -> Any:
    exact = constant(op.operation.operands[1]) == "none"
    return _unary(low, op, R.nn.gelu if exact else R.nn.gelu_tanh)


@lowers("torch.aten.pow.Tensor_Scalar")
def _pow(low: Lowering, op: Any) -> Any:
    """Small whole exponents as products: what torch does for 2 and 3, and far cheaper than `pow`."""
    exponent = constant(op.operation.operands[1])
    if exponent not in (1, 2, 3, 4):
        return DECLINED

    def product(x: relax.Expr) -> relax.Expr:
        out = x
        for _ in range(int(exponent) - 1):
            out = R.multiply(out, x)
        return out

    return _unary(low, op, product)


@lowers("torch.aten._to_copy", "torch.prims.convert_element_type", "torch.aten.to.dtype")
def _convert(low: Lowering, op: Any) -> Any:
    x, out = op.operation.operands[0], op.operation.results[0]
    value = low[x]
    return low.emit(cast(value, low.dtype(out)), out) if low.dtype(x) != low.dtype(out) else value


@lowers(
    "torch.aten.clone", "torch.aten.contiguous", "torch.aten.detach", "torch.aten.alias", "torch.aten.lift_fresh_copy"
)
def _same(low: Lowering, op: Any) -> Any:
    return low[op.operation.operands[0]]


@lowers(
    "torch.aten.where.self", "torch.aten.where.ScalarOther", "torch.aten.where.ScalarSelf", "torch.aten.where.Scalar"
)
def _where(low: Lowering, op: Any) -> Any:
    condition, left, right = op.operation.operands
    out = op.operation.results[0]
    if not (_is_operand(low, left) and _is_operand(low, right)):
        return DECLINED
    dtype = low.dtype(out)
    return low.emit(
        R.where(cast(low[condition], torch.bool), operand(low, left, dtype), operand(low, right, dtype)), out
    )


@lowers("torch.aten.masked_fill.Scalar", "torch.aten.masked_fill.Tensor")
def _masked_fill(low: Lowering, op: Any) -> Any:
    x, mask, value = op.operation.operands
    out = op.operation.results[0]
    if not _is_operand(low, value):
        return DECLINED
    return low.emit(R.where(low[mask], operand(low, value, low.dtype(out)), low[x]), out)


@lowers("torch.aten.clamp")
def _clamp(low: Lowering, op: Any) -> Any:
    x, *bounds = op.operation.operands
    out = op.operation.results[0]
    limits = [constant(bound) for bound in bounds]
    if any(not isinstance(limit, int | float | None) for limit in limits) or low.dtype(x) != low.dtype(out):
        return DECLINED
    value = low[x]
    for limit, beyond in zip(limits, (R.less, R.greater), strict=True):
        if limit is not None:  # a comparison is false for NaN, which stays
            edge = relax.const(limit, dtype_name(low.dtype(out)))
            value = low.emit(R.where(low.emit(beyond(value, edge)), edge, value))
    return low.emit(value, out)


@lowers("torch.aten.round")
def _round(low: Lowering, op: Any) -> Any:
    x, out = op.operation.operands[0], op.operation.results[0]
    if not low.dtype(x).is_floating_point:
        return DECLINED
    wide = low.emit(cast(low[x], compute_dtype(low.dtype(x))))
    nearest = low.emit(low.builder.call_te(_nearest_even, wide))
    return low.emit(cast(nearest, low.dtype(out)), out)


def _nearest_even(x: te.Tensor) -> te.Tensor:
    """Relax's own `round` takes halves away from zero, torch to the even neighbour."""
    return te.compute(x.shape, lambda *at: tirx.nearbyint(x(*at)), name="nearest_even")
