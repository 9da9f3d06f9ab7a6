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

from ...ir.errors import LoweringError

SIZE = "int64"


@dataclass
class Symbols:
    """TIR variables by sympy symbol, made when first asked for."""

    variables: dict[sympy.Symbol, tirx.Var] = field(default_factory=dict)

    def variable(self, symbol: sympy.Symbol) -> tirx.Var:
        """The variable for `symbol`."""
        return self.variables.setdefault(symbol, tirx.Var(symbol.name, SIZE))

    def expression(self, value: sympy.Expr | int) -> Any:
        """`value` as a TIR expression (or a Python int); raises `LoweringError` for what TIR has no word for."""
        if isinstance(value, int) or value.is_Integer:
            return int(value)
        if isinstance(value, sympy.Symbol):
            return self.variable(value)
        operands = [self.expression(a) for a in value.args]
        if isinstance(value, sympy.Add):
            return reduce(add, operands)
        if isinstance(value, sympy.Mul):
            return reduce(mul, operands)
        if isinstance(value, sympy.Pow) and isinstance(operands[1], int) and operands[1] > 0:
            return reduce(mul, [operands[0]] * operands[1])
        binary = _BINARY.get(type(value))
        if binary is None:
            raise LoweringError(f"the size {value} has no form in TIR")
        return reduce(lambda a, b: binary(tirx.const(a, SIZE) if isinstance(a, int) else a, b), operands)

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


def dtype_name(dtype: torch.dtype) -> str:
    """TVM's name of a torch dtype."""
    return str(dtype).removeprefix("torch.")
