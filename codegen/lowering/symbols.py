"""Sizes and dtypes in TVM's terms: sympy expressions of the IR to TIR expressions over one variable per symbol."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import add, mul
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as torch_functions
from tvm import tirx
from tvm.sym import Analyzer

from ...ir.errors import LoweringError

SIZE = "int64"
FLOATS = ("float32", "bfloat16", "float16")
"""What our kernels compute in float32; torch computes with float64."""
_SUMS = (sympy.Add, sympy.Mul)


@dataclass
class Symbols:
    """TIR variables by sympy symbol, made when first asked for."""

    variables: dict[sympy.Symbol, tirx.Var] = field(default_factory=dict)
    _known: dict[sympy.Expr, Any] = field(default_factory=dict)
    _analyzer: Any = field(default_factory=Analyzer)

    def variable(self, symbol: sympy.Symbol) -> tirx.Var:
        """The variable for `symbol`."""
        return self.variables.setdefault(symbol, tirx.Var(symbol.name, SIZE))

    def expression(self, value: sympy.Expr | int) -> Any:
        """`value` as a TIR expression of int64 or, where it is no whole number, float64 (a Python number when it is
        known); raises `LoweringError` for what TIR has no word for."""
        if isinstance(value, int) or value.is_Integer:
            return int(value)
        if value.is_number:
            return float(value)
        if isinstance(value, sympy.Symbol):
            return self.variable(value)
        if value not in self._known:
            call = self._call(value, [self.expression(a) for a in value.args])
            # In the form that TVM gives the sizes that it infers: it takes two forms of a size for two sizes.
            self._known[value] = (
                self._analyzer.simplify(call) if isinstance(value, _SUMS) and value.is_integer else call
            )
        return self._known[value]

    def _call(self, value: sympy.Expr, operands: list[Any]) -> Any:
        if isinstance(value, _SUMS):
            combine = add if isinstance(value, sympy.Add) else mul
            return reduce(combine, operands if value.is_integer else [_real(o) for o in operands])
        power = isinstance(value, sympy.Pow | torch_functions.PowByNatural)
        if power and isinstance(operands[1], int) and operands[1] > 0:
            return reduce(mul, [operands[0]] * operands[1])
        if (unary := _UNARY.get(type(value))) is not None:
            return unary(*operands)
        if (binary := _BINARY.get(type(value))) is not None:
            return reduce(
                lambda a, b: binary(*(tirx.const(o, SIZE) if isinstance(o, int) else o for o in (a, b))), operands
            )
        if (real := _REAL.get(type(value))) is not None:
            return real(*map(_real, operands))
        raise LoweringError(f"the size {value} has no form in TIR")

    def shape(self, sizes: Iterable[sympy.Expr | int]) -> list[Any]:
        """`expression` of each size."""
        return [self.expression(size) for size in sizes]


_BINARY: dict[type, Any] = {
    torch_functions.FloorDiv: tirx.floordiv,
    torch_functions.CleanDiv: tirx.floordiv,
    torch_functions.Mod: tirx.floormod,
    torch_functions.PythonMod: tirx.floormod,
    torch_functions.Max: tirx.max,
    torch_functions.Min: tirx.min,
    sympy.Mod: tirx.floormod,
    sympy.Max: tirx.max,
    sympy.Min: tirx.min,
}


def _real(value: Any) -> Any:
    return tirx.const(float(value), "float64") if isinstance(value, int | float) else value.astype("float64")


def _truncated(value: Any) -> Any:
    return _real(value).astype(SIZE)


def _floored(value: Any) -> Any:
    whole = _truncated(value)
    return whole - (whole.astype("float64") > _real(value)).astype(SIZE)


def _ceiled(value: Any) -> Any:
    whole = _truncated(value)
    return whole + (whole.astype("float64") < _real(value)).astype(SIZE)


_UNARY: dict[type, Any] = {
    torch_functions.ToFloat: _real,
    torch_functions.CeilToInt: _ceiled,
    torch_functions.FloorToInt: _floored,
    torch_functions.TruncToInt: _truncated,
    torch_functions.TruncToFloat: lambda x: _real(_truncated(x)),
    torch_functions.Identity: lambda x: x,
}
"""Casts and comparisons alone: Relax takes no calls of functions in a size."""
_REAL: dict[type, Any] = {
    torch_functions.FloatTrueDiv: lambda a, b: a / b,
    torch_functions.IntTrueDiv: lambda a, b: a / b,
    torch_functions.FloatPow: tirx.pow,
    sympy.Pow: tirx.pow,
    torch_functions.OpaqueUnaryFn_sqrt: tirx.sqrt,
}
"""What is computed in float64."""


def dtype_name(dtype: torch.dtype) -> str:
    """TVM's name of a torch dtype."""
    return str(dtype).removeprefix("torch.")
