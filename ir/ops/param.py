"""What a graph reads besides its arguments: parameters, and numbers that follow from sizes."""

from collections.abc import Mapping
from typing import Any

import sympy
from torch_mlir.dialects.ext import Result
from torch_mlir.ir import StringAttr

from ..analysis.amounts import Amount, ValueSizes
from .base import Op


class ParamOp(Op, name="param"):
    """A parameter or buffer of the model, by its name in the store that all graphs of the model share.

        out = store[sym]

    `out`: a tensor, or a weight in the format that its type says. Derived forms (`...weight@s4g128`) are names too,
    computed when asked for."""

    NEEDS_GRAPH = True

    sym: StringAttr
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        if not op.attributes["sym"].value:
            return "sym is empty: a parameter has a name"
        if not str(op.out.type).startswith(("!torch.vtensor", "!lutra.quantized")):
            return f"a parameter is a tensor or a quantised weight, got {op.out.type}"
        return None

    @staticmethod
    def reference(store: Any, *, sym: str) -> Any:
        """`store`: the graph's `ParameterStore`."""
        return store.value(sym)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Nothing: who uses a parameter reads it."""
        return Amount()


class NumberOp(Op, name="number"):
    """A number that follows from the sizes of the graph's arguments.

        out = expression

    `out`: a `!torch.int` or `!torch.float`. `Graph.sizes` has the expression that the text stands for."""

    NEEDS_GRAPH = True

    expression: StringAttr
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        if not op.attributes["expression"].value:
            return "expression is empty"
        type_ = str(op.out.type)
        return None if type_ in ("!torch.int", "!torch.float") else f"a number is an int or a float, got {type_}"

    @staticmethod
    def reference(sizes: Mapping[sympy.Symbol, int], *, expression: sympy.Expr) -> int | float:
        """`sizes`: what the symbols stand for; `expression`: what `Graph.sizes` has for the text."""
        value = expression.xreplace({symbol: sympy.Integer(size) for symbol, size in sizes.items()})
        return int(value) if expression.is_integer else float(value)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Nothing."""
        return Amount()
