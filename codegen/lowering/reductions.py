"""Reductions and scans along axes; in float32 for half precision, rounded once."""

from typing import Any

import torch
from tvm import relax, te, tirx, topi

from ...ir.rewriting import constant, constant_list
from .builder import Lowering
from .pointwise import cast, compute_dtype
from .registry import DECLINED, lowers
from .symbols import dtype_name

R = relax.op


def _axes(low: Lowering, op: Any) -> list[int] | None:
    axes = constant_list(op.operation.operands[1])
    rank = len(low.sizes(op.operation.operands[0]))
    if axes is None:
        return list(range(rank)) if constant(op.operation.operands[1]) is None else None
    return [a % rank for a in axes] or list(range(rank))


@lowers("torch.aten.mean.dim", "torch.aten.sum.dim_IntList")
def _reduce(low: Lowering, op: Any) -> Any:
    axes, keep, out = _axes(low, op), constant(op.operation.operands[2]), op.operation.results[0]
    dtype = compute_dtype(low.dtype(out))
    if axes is None or not isinstance(keep, bool):
        return DECLINED
    function = R.mean if op.operation.name == "torch.aten.mean.dim" else R.sum
    x = cast(low[op.operation.operands[0]], dtype)
    return low.emit(cast(low.emit(function(x, axes, keepdims=keep)), low.dtype(out)), out)


@lowers("torch.aten.max.dim")
def _largest(low: Lowering, op: Any) -> Any:
    """The values alone; NaN where there is one, as in torch."""
    x, axis, keep = (op.operation.operands[0], *(constant(v) for v in op.operation.operands[1:]))
    values, indices = op.operation.results
    if (
        not isinstance(axis, int)
        or not isinstance(keep, bool)
        or list(indices.uses)
        or not low.dtype(x).is_floating_point
    ):
        return DECLINED
    dtype = compute_dtype(low.dtype(x))
    largest = low.emit(low.builder.call_te(_maximum, low.emit(cast(low[x], dtype)), axis % len(low.sizes(x)), keep))
    return [low.emit(cast(largest, low.dtype(values)), values), None]


def _maximum(x: te.Tensor, axis: int, keep: bool) -> te.Tensor:
    reducer = te.comm_reducer(
        lambda a, b: tirx.Select(tirx.any(a >= b, a != a), a, b), lambda t: tirx.min_value(t), name="largest"
    )
    over = te.reduce_axis((0, x.shape[axis]), name="k")
    shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]

    def element(*at: Any) -> Any:
        rest = at[axis + 1 :] if keep else at[axis:]
        return reducer(x(*at[:axis], over, *rest), axis=over)

    return te.compute(shape, element, name="largest")


@lowers("torch.aten.softmax.int", "torch.aten._softmax")
def _softmax(low: Lowering, op: Any) -> Any:
    x, axis = op.operation.operands[0], constant(op.operation.operands[1])
    out = op.operation.results[0]
    if not isinstance(axis, int):
        return DECLINED
    return low.emit(cast(low.emit(R.nn.softmax(cast(low[x], torch.float32), axis)), low.dtype(out)), out)


@lowers("torch.aten.cumsum")
def _cumsum(low: Lowering, op: Any) -> Any:
    x, axis, out = op.operation.operands[0], constant(op.operation.operands[1]), op.operation.results[0]
    if not isinstance(axis, int):
        return DECLINED
    name = dtype_name(low.dtype(out))
    source = low.emit(cast(low[x], low.dtype(out)))
    return low.emit(low.builder.call_te(topi.cumsum, source, axis % len(low.sizes(out)), name), out)
