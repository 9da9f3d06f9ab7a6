"""Elementwise operators and casts: one TIR computation each, which Relax fuses with its neighbours.

Half-precision operands are computed in float32 and rounded once per operator, as torch does. What numbers mean stands
in `codegen/lowering/ieee.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from tvm import relax, te, tirx

from ....ir.rewriting import constant
from .. import ieee
from ..builder import Lowering, is_size, is_tensor
from ..ieee import Expr
from ..registry import DECLINED, lowers
from ..symbols import dtype_name

_HALF = (torch.float16, torch.bfloat16)
_COMPUTED = {*_HALF, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32,
             torch.int64}  # fmt: skip
"""The dtypes that are computed here; torch computes the rest (float8, complex numbers)."""


@dataclass(frozen=True)
class Operand:
    """What an elementwise computation reads: elements of `tensor`, or a number where that is None; `read` makes of an
    element what is computed with."""

    tensor: relax.Expr | None
    read: Callable[[Expr], Expr]


def elementwise(
    low: Lowering, name: str, function: Callable[..., Expr], operands: list[Operand], dtype: torch.dtype
) -> relax.Var:
    """`function` of the operands' elements, converted to `dtype`; operands are broadcast."""

    def compute(*tensors: te.Tensor) -> te.Tensor:
        shape = _broadcast([list(t.shape) for t in tensors])

        def element(*at: Any) -> Expr:
            given = iter(tensors)
            values = [o.read(None if o.tensor is None else _element(next(given), at)) for o in operands]
            return ieee.convert(function(*values), dtype_name(dtype))

        return te.compute(shape, element, name=name)

    tensors = [o.tensor for o in operands if o.tensor is not None]
    return low.emit(low.builder.call_te(compute, *tensors, primfunc_name_hint=name))


def _broadcast(shapes: list[list[Any]]) -> list[Any]:
    """The sizes that torch broadcasts `shapes` to."""
    rank = max(map(len, shapes))
    padded = [[1] * (rank - len(shape)) + shape for shape in shapes]
    return [next((size for size in sizes if not _is_one(size)), sizes[0]) for sizes in zip(*padded, strict=True)]


def _element(tensor: te.Tensor, at: tuple[Any, ...]) -> Expr:
    """What `tensor` has at a place of what it is broadcast to."""
    own = at[len(at) - len(tensor.shape) :]
    return tensor(*(0 if _is_one(size) else place for size, place in zip(tensor.shape, own, strict=True)))


def _is_one(size: Any) -> bool:
    return isinstance(size, int | tirx.IntImm) and int(size) == 1


def filled(low: Lowering, sizes: list[Any], value: float, dtype: torch.dtype) -> relax.Var:
    """A tensor of one number."""
    scalar = ieee.number(value, dtype_name(compute_dtype(dtype)))

    def compute() -> te.Tensor:
        return te.compute(sizes, lambda *_: ieee.convert(scalar, dtype_name(dtype)), name="filled")

    return low.emit(low.builder.call_te(compute, primfunc_name_hint="filled"))


def cast(low: Lowering, value: relax.Expr, dtype: torch.dtype) -> relax.Expr:
    """`value` in `dtype`; to bool: whether it is not zero."""
    if str(value.ty.dtype) == dtype_name(dtype):
        return value
    return elementwise(low, "cast", lambda x: x, [Operand(value, lambda x: x)], dtype)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that elementwise operators of `dtype` are computed in."""
    if dtype in _HALF:
        return torch.float32
    return torch.uint8 if dtype is torch.bool else dtype


def operand(low: Lowering, value: Any, dtype: torch.dtype, exact: bool = False) -> Operand:
    """A tensor, a constant or a size, converted to `dtype` and read in its `compute_dtype`.

    exact: what has no dimensions is not rounded to half precision on the way."""
    item, compute = low[value], dtype_name(compute_dtype(dtype))
    exact = exact and not (is_tensor(item) and low.sizes(value))
    if isinstance(item, bool | int | float):
        scalar = torch.tensor(item, dtype=torch.float64 if isinstance(item, float) else torch.int64)
        scalar = scalar if exact else scalar.to(dtype)
        return Operand(None, lambda _: ieee.number(scalar.item(), compute))
    if not is_tensor(item):
        item = low.scalar(item, getattr(torch, str(item.ty.dtype)))
    passing = compute if exact else dtype_name(dtype)
    return Operand(item, lambda x: ieee.convert(ieee.convert(x, passing), compute))


def _condition(low: Lowering, value: Any) -> Operand:
    """Whether the elements of a tensor are not zero."""
    return Operand(low[value], lambda x: ieee.convert(x, "bool"))


def computable(low: Lowering, *values: Any, out: Any = None) -> bool:
    """Whether `operand` knows what to do with all of `values`, and what `out` holds is computed here."""
    return (out is None or low.dtype(out) in _COMPUTED) and all(
        low.dtype(v) in _COMPUTED if is_tensor(low[v]) else _is_number(low[v]) for v in values
    )


def _is_number(item: Any) -> bool:
    return is_size(item) or isinstance(item, bool | float)


def _fits(low: Lowering, value: Any, dtype: torch.dtype) -> bool:
    """False for a constant that torch refuses to convert to `dtype`."""
    item = low[value]
    if not isinstance(item, bool | int | float):
        return True
    if dtype.is_floating_point:
        return abs(item) <= torch.finfo(dtype).max or abs(item) == float("inf") or item != item
    return isinstance(item, bool) or (
        dtype is not torch.bool and isinstance(item, int) and torch.iinfo(dtype).min <= item <= torch.iinfo(dtype).max
    )


def _arithmetic(function: Callable[[Expr, Expr], Expr], exact: bool, bools: bool) -> Callable[[Lowering, Any], Any]:
    """exact: of half precision, an operand on the right without dimensions is not rounded. bools: it takes bools."""

    def lower(low: Lowering, op: Any) -> Any:
        left, right, *alpha = op.operation.operands
        out = op.operation.results[0]
        dtype = low.dtype(out)
        if (
            not computable(low, left, right, out=out)
            or (alpha and constant(alpha[0]) != 1)
            or (dtype is torch.bool and not bools)
        ):
            return DECLINED
        operands = [operand(low, left, dtype), operand(low, right, dtype, exact)]
        return low.emit(elementwise(low, function.__name__, function, operands, dtype), out)

    return lower


for _name, _function in {
    "add": ieee.add,
    "sub": ieee.subtract,
    "mul": ieee.multiply,
    "div": ieee.divide,
    "maximum": ieee.larger,
    "minimum": ieee.smaller,
}.items():
    lowers(f"torch.aten.{_name}.Tensor", f"torch.aten.{_name}.Scalar", f"torch.aten.{_name}")(
        _arithmetic(_function, _name in ("mul", "div"), _name in ("add", "mul"))
    )
lowers("torch.aten.true_divide.Tensor")(_arithmetic(ieee.divide, exact=True, bools=False))


@lowers("torch.aten.rsub.Scalar")
def _rsub(low: Lowering, op: Any) -> Any:
    x, scalar, alpha = op.operation.operands
    out = op.operation.results[0]
    dtype = low.dtype(out)
    if constant(alpha) != 1 or not computable(low, x, scalar) or dtype is torch.bool:
        return DECLINED
    operands = [operand(low, scalar, dtype), operand(low, x, dtype)]
    return low.emit(elementwise(low, "subtract", ieee.subtract, operands, dtype), out)


def _comparison(function: Callable[[Expr, Expr], Expr]) -> Callable[[Lowering, Any], Any]:
    def lower(low: Lowering, op: Any) -> Any:
        left, right = op.operation.operands
        if not computable(low, left, right):
            return DECLINED
        dtype = torch.result_type(*(_sample(low, v) for v in (left, right)))
        operands = [operand(low, left, dtype), operand(low, right, dtype)]
        return low.emit(elementwise(low, function.__name__, function, operands, torch.bool), op.operation.results[0])

    return lower


def _sample(low: Lowering, value: Any) -> Any:
    """Something that takes part in torch's type promotion as `value` does."""
    item = low[value]
    if not is_tensor(item):
        return item if isinstance(item, bool | int | float) else 0
    return torch.empty([1] * len(low.sizes(value)), dtype=low.dtype(value), device="meta")


for _name, _function in {
    "eq": ieee.equal,
    "ne": ieee.unequal,
    "lt": ieee.less,
    "le": ieee.less_equal,
    "gt": ieee.greater,
    "ge": ieee.greater_equal,
}.items():
    lowers(f"torch.aten.{_name}.Tensor", f"torch.aten.{_name}.Scalar")(_comparison(_function))


def _logical(function: Callable[..., Expr], only_bool: bool) -> Callable[[Lowering, Any], Any]:
    def lower(low: Lowering, op: Any) -> Any:
        values = list(op.operation.operands)
        if any(not is_tensor(low[v]) for v in values) or not computable(low, *values):
            return DECLINED
        if only_bool and any(low.dtype(v) is not torch.bool for v in values):
            return DECLINED
        operands = [_condition(low, v) for v in values]
        return low.emit(elementwise(low, "logical", function, operands, torch.bool), op.operation.results[0])

    return lower


for _name, _function in {
    "and": tirx.And,
    "or": tirx.Or,
    "xor": ieee.exclusive,
    "not": ieee.inverse,
}.items():
    lowers(f"torch.aten.logical_{_name}")(_logical(_function, only_bool=False))
    lowers(f"torch.aten.bitwise_{_name}.Tensor", f"torch.aten.bitwise_{_name}")(_logical(_function, only_bool=True))


def _constant(value: float) -> Expr:
    return ieee.number(value, "float32")


def _silu(x: Expr) -> Expr:
    return x / (_constant(1) + tirx.exp(ieee.negative(x)))


def _gelu(x: Expr) -> Expr:
    return x * _constant(0.5) * (_constant(1) + tirx.erf(x * _constant(0.5**0.5)))


def _gelu_tanh(x: Expr) -> Expr:
    inner = _constant(math.sqrt(2 / math.pi)) * (x + _constant(0.044715) * x * x * x)
    return x * _constant(0.5) * (_constant(1) + _tanh(inner))


def _tanh(x: Expr) -> Expr:
    """TVM's quotient of polynomials has an absolute error of 1e-7, too much near zero: there the Taylor series."""
    square = x * x
    series = _constant(-1 / 3) + square * (_constant(2 / 15) + square * _constant(-17 / 315))
    return tirx.Select(tirx.abs(x) < _constant(0.1), x + x * square * series, tirx.tanh(x))


def _relu(x: Expr) -> Expr:
    return tirx.Select(ieee.less(x, _constant(0)), _constant(0), x)


_UNARY: dict[str, Callable[[Expr], Expr]] = {
    "abs": tirx.abs,
    "neg": ieee.negative,
    "exp": tirx.exp,
    "log": tirx.log,
    "sqrt": tirx.sqrt,
    "rsqrt": tirx.rsqrt,
    "sin": tirx.sin,
    "cos": tirx.cos,
    "tanh": _tanh,
    "sigmoid": tirx.sigmoid,
    "erf": tirx.erf,
    "floor": tirx.floor,
    "ceil": tirx.ceil,
    "round": tirx.nearbyint,
    "silu": _silu,
    "relu": _relu,
    "reciprocal": lambda x: _constant(1) / x,
}


def _unary(low: Lowering, op: Any, name: str, function: Callable[[Expr], Expr]) -> Any:
    x, out = op.operation.operands[0], op.operation.results[0]
    dtype = low.dtype(out)
    if compute_dtype(dtype) is not torch.float32 or not computable(low, x):
        return DECLINED
    return low.emit(elementwise(low, name, function, [operand(low, x, dtype)], dtype), out)


for _name, _function in _UNARY.items():
    lowers(f"torch.aten.{_name}")(
        lambda low, op, name=_name, function=_function: _unary(low, op, name, function),
    )


@lowers("torch.aten.gelu")
def _gelu_of(low: Lowering, op: Any) -> Any:
    exact = constant(op.operation.operands[1]) == "none"
    return _unary(low, op, "gelu", _gelu if exact else _gelu_tanh)


_ROOTS = {0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@lowers("torch.aten.pow.Tensor_Scalar")
def _pow(low: Lowering, op: Any) -> Any:
    """Small whole exponents as products: what torch does for 2 and 3 (of bfloat16, rounded between), and far cheaper
    than `pow`. Roots where torch takes them, which of -inf are not what `pow` is."""
    exponent = constant(op.operation.operands[1])
    if exponent in _ROOTS and low.dtype(op.operation.results[0]) is not torch.float16:
        return _unary(low, op, _ROOTS[exponent], _UNARY[_ROOTS[exponent]])
    if exponent not in (1, 2, 3, 4):
        return DECLINED
    between = dtype_name(low.dtype(op.operation.results[0])) if exponent == 3 else "float32"
    return _unary(
        low, op, "power", lambda x: reduce(lambda a, b: ieee.multiply(ieee.rounded(a, between), b), [x] * int(exponent))
    )


@lowers("torch.aten._to_copy", "torch.prims.convert_element_type", "torch.aten.to.dtype")
def _convert(low: Lowering, op: Any) -> Any:
    x, out = op.operation.operands[0], op.operation.results[0]
    if low.dtype(x) == low.dtype(out):
        return low[x]
    return low.emit(cast(low, low[x], low.dtype(out)), out) if computable(low, x, out=out) else DECLINED


@lowers(
    "torch.aten.clone", "torch.aten.contiguous", "torch.aten.detach", "torch.aten.alias", "torch.aten.lift_fresh_copy"
)
def _same(low: Lowering, op: Any) -> Any:
    return low[op.operation.operands[0]]


@lowers(
    "torch.aten.where.self", "torch.aten.where.ScalarOther", "torch.aten.where.ScalarSelf", "torch.aten.where.Scalar"
)
def _where(low: Lowering, op: Any) -> Any:
    return _select(low, op, *op.operation.operands)


@lowers("torch.aten.masked_fill.Scalar", "torch.aten.masked_fill.Tensor")
def _masked_fill(low: Lowering, op: Any) -> Any:
    x, mask, value = op.operation.operands
    return _select(low, op, mask, value, x)


def _select(low: Lowering, op: Any, condition: Any, left: Any, right: Any) -> Any:
    out = op.operation.results[0]
    dtype = low.dtype(out)
    if not computable(low, condition, left, right) or not all(_fits(low, v, dtype) for v in (left, right)):
        return DECLINED
    operands = [_condition(low, condition), operand(low, left, dtype), operand(low, right, dtype)]
    return low.emit(elementwise(low, "select", tirx.Select, operands, dtype), out)


@lowers("torch.aten.clamp", "torch.aten.clamp.Tensor")
def _clamp(low: Lowering, op: Any) -> Any:
    """NaN stays, and a bound that is NaN makes everything NaN."""
    x, *bounds = op.operation.operands
    out = op.operation.results[0]
    dtype = low.dtype(out)
    steps = {v: step for v, step in zip(bounds, (ieee.larger, ieee.smaller), strict=True) if low[v] is not None}
    if not computable(low, x, *steps, out=out) or not all(_fits(low, v, dtype) for v in steps):
        return DECLINED

    def clamp(value: Expr, *limits: Expr) -> Expr:
        for step, limit in zip(steps.values(), limits, strict=True):
            value = step(value, limit)
        return value

    operands = [operand(low, v, dtype) for v in (x, *steps)]
    return low.emit(elementwise(low, "clamp", clamp, operands, dtype), out)
