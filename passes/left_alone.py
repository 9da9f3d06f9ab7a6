"""Weights that a finished graph still reads in floating point, and why: what passes that quantise leave alone."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..ir.graph import Graph
from ..ir.operator_call import operation_name
from ..ir.ops import ParamOp
from ..ir.rewriting import parameter_symbol, paths, users
from ..ir.types import tensor_type
from .base import LeftAlone, PassReport, Stays
from .matching import sizes

_VIEWS = (
    "aten.transpose.int",
    "aten.t",
    "aten.permute",
    "aten.view",
    "aten.reshape",
    "aten.slice.Tensor",
    "aten.select.int",
    "aten.unsqueeze",
    "aten.expand",
    "aten._to_copy",
    "aten.clone",
    "aten.contiguous",
    "prims.convert_element_type",
)
"""Operators that hand a weight on as it is; who reads it stands behind them."""


def report_left_alone(graph: Graph, report: PassReport, not_taken: str) -> None:
    """Add every floating-point weight of two or more dimensions to `report.left`, by path; `not_taken`: why a linear
    may have kept its own. What the report names already stays as it is."""
    known = {left.path for left in report.left}
    for op in graph.operations:
        if isinstance(op, ParamOp) and len(sizes(op.out)) > 1:
            if not tensor_type(op.out.type).dtype.is_floating_point:
                continue
            for left in _reasons(op.out, not_taken):
                if left.path not in known:
                    known.add(left.path)
                    report.left.append(left)


def _reasons(weight: Any, not_taken: str) -> Iterator[LeftAlone]:
    """Path, reason and kind for each module that reads `weight`."""
    symbol = parameter_symbol(weight) or ""
    for reader in _readers(weight):
        name = operation_name(reader.operation)
        if name == "lutra.linear" and parameter_symbol(reader.operands[1]) == symbol:
            for path in paths(reader) or (parameter_path(symbol),):
                yield LeftAlone(path, not_taken, "not selected")
        else:
            yield LeftAlone(parameter_path(symbol), *_reason(name, sizes(weight)))


def _reason(name: str, shape: Sequence[int | None]) -> tuple[str, Stays]:
    if name.startswith("aten.embedding"):
        return "an embedding: its rows are looked up, not multiplied", "embedding"
    if "conv" in name:
        return "a convolution, not a linear", "convolution"
    if len(shape) > 2 and shape[0] != 1:  # not the positions or the class token of a vision transformer
        return f"a stack of matrices (experts) that {name} reads, not a linear", "experts"
    return f"read by {name}, not by a linear", "other"


def _readers(weight: Any) -> Iterator[Any]:
    """Operations that do more with `weight` than to pass on a view of it."""
    for user in users(weight):
        name = operation_name(user.operation)
        if name in _VIEWS:
            yield from _readers(user.operation.results[0])
        elif user.operation.name != "func.return":
            yield user


def parameter_path(symbol: str) -> str:
    """The path of a parameter, of its module where it is called `weight`."""
    return symbol.split("@")[0].removesuffix(".weight")
