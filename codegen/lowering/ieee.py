"""Arithmetic on scalar TIR expressions that means what IEEE 754 and two's complement say.

TVM's simplifier takes floats for real numbers and integers for indices: it folds `x - x`, `0 * x` and `x != x`, negates
a comparison by turning it round, drops a rounding that the next cast undoes and believes that nothing overflows. What
is built here is of a form that it does not know, and that LLVM still makes vectors of. (LLVM contracts a product and
a sum of float32, which rounds once instead of twice.) Half precision is no type to compute in: `convert` to float32
first, and back once per operator.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import torch
from tvm import tirx

Expr = Any
_SIGN = {"float32": ("int32", -(2**31)), "float64": ("int64", -(2**63))}
HALF = ("float16", "bfloat16")


def dtype_of(x: Expr) -> str:
    """Element type of an expression."""
    return str(x.ty.dtype)


def is_float(dtype: str) -> bool:
    """float32 or float64."""
    return dtype in _SIGN


def number(value: bool | int | float, dtype: str) -> Expr:
    """A constant as torch would convert it: integers wrap, floats round. `dtype`: none of half precision."""
    if not is_float(dtype):
        value = torch.tensor(value).to(getattr(torch, dtype)).item()
        return tirx.const(value, dtype)
    value = torch.tensor(value, dtype=torch.float64).to(getattr(torch, dtype)).item()
    word, _ = _SIGN[dtype]
    if value == 0 and math.copysign(1, value) > 0:  # bits of zero are no float to TVM
        return _llvm("fabs", tirx.const(0.0, dtype))
    if value == 0 or not math.isfinite(value):
        float_code, int_code = ("f", "i") if word == "int32" else ("d", "q")
        bits = struct.unpack(int_code, struct.pack(float_code, value))[0]
        return tirx.reinterpret(dtype, tirx.const(bits, word))
    return tirx.const(value, dtype)


def convert(x: Expr, dtype: str) -> Expr:
    """`x` in `dtype`, rounded to half precision for good: a cast back does not restore what was lost. Floats become
    small integers modulo their range, as on every machine that torch runs on."""
    source = dtype_of(x)
    if source == dtype:
        return x
    if source in HALF:
        x = tirx.Cast("float32", x)
    if dtype == "bool":
        return unequal(x, number(0, dtype_of(x)))
    if dtype in HALF:
        return tirx.Cast(dtype, rounded(convert(x, "float32"), dtype))
    if is_float(dtype_of(x)) and dtype in ("int8", "uint8", "int16"):
        x = tirx.Cast("int32", x)
    return tirx.Cast(dtype, x) if dtype_of(x) != dtype else x


def rounded(x: Expr, dtype: str) -> Expr:
    """float32 rounded to `dtype`, still in float32 where that is bfloat16: TVM would drop two casts."""
    if dtype != "bfloat16":
        return x
    bits = tirx.reinterpret("int32", x)
    odd = (bits >> tirx.const(16, "int32")) & tirx.const(1, "int32")
    nearest = (bits + tirx.const(0x7FFF, "int32") + odd) & tirx.const(-0x10000, "int32")
    return tirx.Select(tirx.isnan(x), number(math.nan, "float32"), tirx.reinterpret("float32", nearest))


def negative(x: Expr) -> Expr:
    """`-x`, also of zeros and of the least integer."""
    dtype = dtype_of(x)
    if not is_float(dtype):
        return _wrapping(lambda a: number(0, dtype_of(a)) - a, x)
    word, sign = _SIGN[dtype]
    return tirx.reinterpret(dtype, tirx.reinterpret(word, x) ^ tirx.const(sign, word))


def add(a: Expr, b: Expr) -> Expr:
    """`a + b`."""
    return a + b if is_float(dtype_of(a)) else _wrapping(lambda a, b: a + b, a, b)


def subtract(a: Expr, b: Expr) -> Expr:
    """`a - b`."""
    return a + negative(b) if is_float(dtype_of(a)) else _wrapping(lambda a, b: a - b, a, b)


def multiply(a: Expr, b: Expr) -> Expr:
    """`a * b`."""
    return a * b if is_float(dtype_of(a)) else _wrapping(lambda a, b: a * b, a, b)


def divide(a: Expr, b: Expr) -> Expr:
    """`a / b` of floats."""
    return a / b


def less(a: Expr, b: Expr) -> Expr:
    """`a < b`."""
    return _ordered(a < b, a, b)


def less_equal(a: Expr, b: Expr) -> Expr:
    """`a <= b`."""
    return _ordered(a <= b, a, b)


def greater(a: Expr, b: Expr) -> Expr:
    """`a > b`."""
    return less(b, a)


def greater_equal(a: Expr, b: Expr) -> Expr:
    """`a >= b`."""
    return less_equal(b, a)


def equal(a: Expr, b: Expr) -> Expr:
    """`a == b`."""
    return _ordered(tirx.EQ(a, b), a, b)


def unequal(a: Expr, b: Expr) -> Expr:
    """`a != b`: true of NaN."""
    return inverse(equal(a, b))


def exclusive(a: Expr, b: Expr) -> Expr:
    """Whether one of two conditions is true."""
    return tirx.NE(tirx.Cast("uint8", a), tirx.Cast("uint8", b))


def inverse(condition: Expr) -> Expr:
    """`not condition`, which is no comparison the other way round where there is a NaN."""
    return tirx.EQ(tirx.Cast("uint8", condition), tirx.const(0, "uint8"))


def larger(a: Expr, b: Expr) -> Expr:
    """The maximum, NaN if one is."""
    return _chosen(b < a, a, b)


def smaller(a: Expr, b: Expr) -> Expr:
    """The minimum, NaN if one is."""
    return _chosen(a < b, a, b)


def _chosen(first: Expr, a: Expr, b: Expr) -> Expr:
    """A comparison with a NaN in `b` is false, and gives it; one in `a` has to be looked for."""
    return tirx.Select(tirx.Or(first, tirx.isnan(a)) if is_float(dtype_of(a)) else first, a, b)


def _ordered(condition: Expr, *operands: Expr) -> Expr:
    """`condition`, and no operand is NaN; LLVM makes one instruction of it."""
    for operand in operands:
        if is_float(dtype_of(operand)):
            condition = tirx.And(condition, tirx.Not(tirx.isnan(operand)))
    return condition


def _wrapping(function: Callable[..., Expr], *operands: Expr) -> Expr:
    """`function` of integers modulo their range: signed overflow is undefined to LLVM and unthinkable to TVM."""
    dtype = dtype_of(operands[0])
    unsigned = dtype if dtype.startswith("u") else f"u{dtype}"
    return _cast(function(*(_cast(x, unsigned) for x in operands)), dtype)


def _cast(x: Expr, dtype: str) -> Expr:
    return x if dtype_of(x) == dtype else tirx.Cast(dtype, x)


def _llvm(name: str, x: Expr) -> Expr:
    dtype = dtype_of(x)
    return tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}.f{dtype[5:]}", x)
