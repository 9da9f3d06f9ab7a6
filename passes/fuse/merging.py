"""Linears that read the same input become one product, when their weights have one format."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from os.path import commonpath
from typing import Any

from ...ir.ops import ParamOp, SplitOp, quantized_format
from ...ir.patterns import Pattern
from ...ir.rewriting import (
    activations_of,
    build,
    defined_by,
    parameter_symbol,
    paths,
    quantized_type,
    static_shape,
    users,
    vtensor,
)
from ...ir.types import tensor_type
from ...ir.weights.store import ParameterStore
from .products import NAMES, with_operands


@dataclass(frozen=True)
class MergeLinears(Pattern):
    """All linears like the first that reads an input -> one linear over their stacked weights, a `lutra.split` each.

    Alike are those of one format (or dtype) and number of columns that all have a bias or none: scales belong to rows,
    so that the stacked weight is the rows of its parts, unchanged. store: receives it.

        @m.a.weight: f32[8,8], @m.b.weight: f32[16,8], @m.{a,b}.weight: f32[24,8]
        %a = lutra.linear(%x, @m.a.weight)
        %b = lutra.linear(%x, @m.b.weight) : f32[2,3,16]
        %r = aten.cat([%a, %b], -1) : f32[2,3,24]
        =>
        %y = lutra.linear(%x, @m.{a,b}.weight) : f32[2,3,24]
        %a = lutra.split(%y) {start = 0 : i64} : f32[2,3,8]
        %b = lutra.split(%y) {start = 8 : i64} : f32[2,3,16]
        %r = aten.cat([%a, %b], -1) : f32[2,3,24]
    """

    roots = NAMES

    store: ParameterStore

    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        group = [user.opview for user in _siblings(op) if _form(user.opview) == _form(op)]
        if len(group) < 2 or _form(op) is None or group[0].operation != op.operation:
            return False
        symbols = _symbols(linear.weight for linear in group)
        biases = _symbols(linear.bias for linear in group if linear.bias is not None)
        if len(set(symbols)) < len(symbols) or len(biases) not in (0, len(symbols)):
            return False
        if not self.store.can_stack(symbols):
            return False
        shapes = [static_shape(linear.weight) for linear in group]
        rows, columns = [n for n, _ in shapes], shapes[0][1]
        weight = self._stacked(symbols, op, rewriter, _weight_type(op.weight, sum(rows), columns))
        bias = self._stacked(biases, op, rewriter, vtensor((sum(rows),), op.bias)) if biases else None
        out = vtensor((*tensor_type(op.out.type).shape[:-1], sum(rows)), op.out)
        path = tuple(path for linear in group for path in paths(linear))
        merged = with_operands(op, rewriter, op, weight, out, path=path, bias=bias).out
        starts = [sum(rows[:i]) for i in range(len(rows))]
        parts = [
            build(SplitOp, rewriter, op, merged, start, linear.out.type, path="|".join(paths(linear)))
            for linear, start in zip(group, starts, strict=True)
        ]
        for linear, part in zip(group, parts, strict=True):
            rewriter.replace_op(linear.operation, part.operation)
        return True

    def _stacked(self, symbols: list[str], op: Any, rewriter: Any, type_: Any) -> Any:
        return build(ParamOp, rewriter, op, self.store.stack(stacked_name(symbols), symbols), type_).out


def _form(linear: Any) -> tuple[Any, ...] | None:
    """What linears that may merge have in common; None for one that stays as it is."""
    weight, source = linear.weight, linear.operation.operands[0]
    table = defined_by(source, "lutra.table")
    x = source if table is None else table.operands[0]
    if linear.residual is not None or parameter_symbol(weight) is None or parameter_symbol(x) is not None:
        return None
    activations = activations_of(linear)
    if activations == "integers":  # each has a scale of its own behind it
        return None
    quantized = quantized_format(weight.type)
    kind = tensor_type(weight.type).dtype if quantized is None else quantized[2]
    return linear.operation.name, kind, static_shape(weight)[1], linear.bias is None, activations


def _weight_type(like: Any, n: int, k: int) -> Any:
    quantized = quantized_format(like.type)
    return vtensor((n, k), like) if quantized is None else quantized_type(n, k, quantized[2])


def _symbols(values: Iterable[Any]) -> list[str]:
    """Parameter symbols of those `values` that are parameters."""
    return [symbol for value in values if (symbol := parameter_symbol(value)) is not None]


def _siblings(op: Any) -> list[Any]:
    """Linears over the same input, in program order."""
    source, unique = op.operation.operands[0], []
    for user in users(source):
        if user.operation.name in NAMES and user.operands[0] == source and user not in unique:
            unique.append(user)
    return sorted(unique, key=lambda u: sum(other.is_before_in_block(u) for other in unique if other != u))


def stacked_name(symbols: list[str]) -> str:
    """`a.q_proj.weight`, `a.k_proj.weight` -> `a.{q_proj,k_proj}.weight`."""
    prefix = commonpath([s.rsplit(".", 2)[0] + "." if s.count(".") > 1 else "" for s in symbols])
    prefix = prefix[: prefix.rfind(".") + 1]
    suffixes = {s.rsplit(".", 1)[-1] for s in symbols}
    if len(suffixes) == 1 and all(s.startswith(prefix) for s in symbols):
        tail = suffixes.pop()
        return f"{prefix}{{{','.join(s[len(prefix) :].removesuffix('.' + tail) for s in symbols)}}}.{tail}"
    return "{" + ",".join(symbols) + "}"


def names_in(stacked: str) -> list[str]:
    """What `stacked_name` made `stacked` of; [] for any other name."""
    found = re.fullmatch(r"([^{}]*)\{([^{}]+)\}([^{}]*)", stacked)
    return [] if found is None else [f"{found[1]}{part}{found[3]}" for part in found[2].split(",")]
