"""Operators that move elements or make new tensors: views, slices, joins, lookups, ranges, constants."""

import math
from typing import Any

import torch
from tvm import relax, tirx

from ....ir.rewriting import constant, constant_list, literal, parameter_symbol
from ...kernels.cpu.indexing import embedding, gather, index
from ..builder import Lowering, is_size, is_tensor
from ..registry import DECLINED, lowers
from ..symbols import dtype_name
from ..values import Parameter, Split, Values
from .pointwise import cast, filled

R = relax.op


@lowers(
    "torch.aten.view",
    "torch.aten._unsafe_view",
    "torch.aten.reshape",
    "torch.aten.unsqueeze",
    "torch.aten.squeeze",
    "torch.aten.squeeze.dim",
    "torch.aten.squeeze.dims",
    "torch.aten.flatten.using_ints",
    "torch.aten.unflatten.int",
)
def _reshape(low: Lowering, op: Any) -> Any:
    out = op.operation.results[0]
    return low.reshape(low[op.operation.operands[0]], low.sizes(out))


def permuted(low: Lowering, x: Any, out: Any, order: list[int]) -> relax.Var:
    """`x` with its dimensions in `order`: a mere reshape where only dimensions of size 1 change places."""
    sizes = low.sizes(x)
    moving = [axis for axis in order if sizes[axis] != 1]
    if moving == sorted(moving):
        return low.reshape(low[x], low.sizes(out))
    return low.emit(R.permute_dims(low[x], order), out)


@lowers("torch.aten.transpose.int")
def _transpose(low: Lowering, op: Any) -> Any:
    x, first, second = op.operation.operands
    rank = len(low.sizes(x))
    order = list(range(rank))
    a, b = constant(first) % rank, constant(second) % rank
    order[a], order[b] = order[b], order[a]
    return permuted(low, x, op.operation.results[0], order)


@lowers("torch.aten.t")
def _t(low: Lowering, op: Any) -> Any:
    x = op.operation.operands[0]
    return permuted(low, x, op.operation.results[0], list(range(len(low.sizes(x))))[::-1])


@lowers("torch.aten.permute")
def _permute(low: Lowering, op: Any) -> Any:
    x, dims = op.operation.operands
    order = constant_list(dims)
    rank = len(low.sizes(x))
    return permuted(low, x, op.operation.results[0], [d % rank for d in order]) if order else DECLINED


@lowers("torch.aten.expand", "torch.aten.broadcast_to")
def _expand(low: Lowering, op: Any) -> Any:
    out = op.operation.results[0]
    return low.emit(R.broadcast_to(low[op.operation.operands[0]], relax.ShapeExpr(low.sizes(out))), out)


def sliced(low: Lowering, x: relax.Var, axis: int, start: Any, size: Any, step: int, like: Any) -> relax.Var:
    """`x[..., start : start + size * step : step, ...]` along `axis`, with the type of `like`."""
    end = start + (size - 1) * step + 1
    return low.emit(R.strided_slice(x, [axis], [start], [end], [step], assume_inbound=True), like)


@lowers("torch.aten.slice.Tensor")
def _slice(low: Lowering, op: Any) -> Any:
    x, dim, start, _, step = op.operation.operands
    out = op.operation.results[0]
    axis, first, stride = constant(dim), low[start], constant(step)
    if not isinstance(axis, int) or not isinstance(stride, int):
        return DECLINED
    axis %= len(low.sizes(x))
    size, whole = low.sizes(out)[axis], low.sizes(x)[axis]
    if low.shape(out) == low.shape(x) and stride == 1:
        return low[x]
    if first is None:
        first = 0
    if not isinstance(first, int):
        return DECLINED  # a symbolic start may be negative or beyond the end
    if first < 0:
        first = tirx.max(whole + first, 0) if isinstance(whole, tirx.Expr) else max(whole + first, 0)
    return sliced(low, low[x], axis, first, size, stride, out)


@lowers("torch.aten.select.int")
def _select(low: Lowering, op: Any) -> Any:
    x, dim, index = op.operation.operands
    out = op.operation.results[0]
    axis, place = constant(dim), low[index]
    if not isinstance(axis, int) or not isinstance(place, int):
        return DECLINED
    sizes = low.sizes(x)
    axis %= len(sizes)
    first = place if place >= 0 else sizes[axis] + place
    part = low.builder.emit(R.strided_slice(low[x], [axis], [first], [first + 1], [1], assume_inbound=True))
    return low.reshape(part, low.sizes(out))


@lowers(
    "torch.aten.split.Tensor",
    "torch.aten.split_with_sizes",
    "torch.aten.unsafe_split.Tensor",
    "torch.aten.unsafe_split_with_sizes",
    "torch.aten.unbind.int",
    "torch.aten.chunk",
    "torch.aten.unsafe_chunk",
)
def _split(low: Lowering, op: Any) -> Any:
    """A list whose members `ListUnpack` slices out: their sizes stand on its results."""
    name, operands = op.operation.name, list(op.operation.operands)
    axis = constant(operands[1] if name.endswith("unbind.int") else operands[2])
    if not isinstance(axis, int) or any(
        u.owner.operation.name != "torch.prim.ListUnpack" for u in op.operation.results[0].uses
    ):
        return DECLINED
    return Split(operands[0], axis % len(low.sizes(operands[0])), drops=name.endswith("unbind.int"))


@lowers("torch.prim.ListUnpack")
def _unpack(low: Lowering, op: Any) -> Any:
    item = low[op.operation.operands[0]]
    if isinstance(item, list):
        return item
    if not isinstance(item, Split):
        return DECLINED
    axis, x, start, parts = item.axis, low[item.source], 0, []
    for out in op.operation.results:
        size = 1 if item.drops else low.sizes(out)[axis]
        part = low.builder.emit(R.strided_slice(x, [axis], [start], [start + size], [1], assume_inbound=True))
        parts.append(low.reshape(part, low.sizes(out)) if item.drops else low.emit(part, out))
        start = start + size
    return parts if len(parts) > 1 else parts[0]


@lowers("torch.prim.ListConstruct")
def _list(low: Lowering, op: Any) -> Any:
    return Values(tuple(op.operation.operands))


@lowers("torch.aten.cat")
def _cat(low: Lowering, op: Any) -> Any:
    values, dim = op.operation.operands
    out = op.operation.results[0]
    axis = constant(dim)
    if not isinstance(axis, int):
        return DECLINED
    dtype = low.dtype(out)
    rank = len(low.sizes(out))
    parts = [v for v in low[values].items if len(low.sizes(v)) == rank]  # torch skips legacy empty tensors of rank 1
    if len(parts) != len(low[values].items):
        return DECLINED
    tensors = [cast(low, low[v], dtype) for v in parts]
    return low.emit(R.concat(tensors, axis % rank), out) if len(tensors) > 1 else tensors[0]


@lowers("torch.aten.embedding")
def _embedding(low: Lowering, op: Any) -> Any:
    table, places = list(op.operation.operands)[:2]
    out = op.operation.results[0]
    rows, features = low.sizes(table)
    if not isinstance(rows, int) or not low.dtype(table).is_floating_point:
        return DECLINED
    count = math.prod(low.sizes(places))
    name = dtype_name(low.dtype(table))
    function = embedding(rows, features, name, dtype_name(low.dtype(places)))
    flat = low.reshape(low[places], [count])
    result = low.kernel("embedding", function, [low[table], flat], relax.TensorType([count, features], name))
    return low.reshape(result, low.sizes(out))


@lowers("torch.aten.gather")
def _gather(low: Lowering, op: Any) -> Any:
    x, dim, places = list(op.operation.operands)[:3]
    out = op.operation.results[0]
    shape = _known(low, x)
    if not isinstance(constant(dim), int) or not shape:
        return DECLINED
    names = dtype_name(low.dtype(x)), dtype_name(low.dtype(places))
    function = gather(shape, _known(low, places), constant(dim) % len(shape), *names)
    return low.kernel("gather", function, [low[x], low[places]], low.tensor_type(out))


@lowers("torch.aten.index.Tensor")
def _index(low: Lowering, op: Any) -> Any:
    """`x[i, j]` with integer tensors for the leading dimensions."""
    x, indices = op.operation.operands[0], list(low[op.operation.operands[1]].items)
    if not all(is_tensor(low[v]) for v in indices) or any(low.dtype(v) in (torch.bool, torch.uint8) for v in indices):
        return DECLINED
    out, rank = op.operation.results[0], len(indices)
    count = len(low.sizes(out)) - (len(low.sizes(x)) - rank)
    lead = low.shape(out)[:count]
    shapes = [low.shape(v) for v in indices]
    if any(n not in (1, size) for shape in shapes for n, size in zip(shape, lead[count - len(shape) :], strict=True)):
        return DECLINED
    rest = math.prod(low.sizes(x)[rank:])
    function = index(
        _known(low, x)[:rank],
        _known(low, out)[:count],
        tuple(_known(low, v) for v in indices),
        dtype_name(low.dtype(x)),
        tuple(dtype_name(low.dtype(v)) for v in indices),
    )
    operands = [low.reshape(low[x], [*low.sizes(x)[:rank], rest]), *(low[v] for v in indices)]
    type_ = relax.TensorType([*low.sizes(out)[:count], rest], dtype_name(low.dtype(x)))
    return low.reshape(low.kernel("index", function, operands, type_), low.sizes(out))


def _known(low: Lowering, value: Any) -> tuple[int | None, ...]:
    """Sizes of a tensor value, None where they are known at run time."""
    return tuple(size if isinstance(size, int) else None for size in low.sizes(value))


@lowers("torch.aten.arange", "torch.aten.arange.start", "torch.aten.arange.start_step")
def _arange(low: Lowering, op: Any) -> Any:
    out, operands = op.operation.results[0], list(op.operation.operands)
    given = {"torch.aten.arange": 1, "torch.aten.arange.start": 2}.get(op.operation.name, 3)
    bounds = [low[v] for v in operands[:given]]
    start, step = (bounds[0] if given > 1 else 0), (bounds[2] if given > 2 else 1)
    if not all(isinstance(n, int) for n in (start, step)) or low.dtype(out).is_floating_point:
        return DECLINED
    count, name = low.sizes(out)[0], dtype_name(low.dtype(out))
    if step > 0:
        return low.emit(R.arange(start, start + count * step, step, name), out)
    numbers = low.emit(R.arange(0, count, 1, name))  # Relax counts wrongly with a negative step
    numbers = low.emit(R.multiply(numbers, relax.const(step, name)))
    return low.emit(R.add(numbers, relax.const(start, name)), out)


def _filled(low: Lowering, out: Any, value: Any) -> relax.Var:
    name = dtype_name(low.dtype(out))
    if not math.isfinite(value):  # which `R.full` cannot write
        return low.emit(filled(low, low.sizes(out), value, low.dtype(out)), out)
    return low.emit(R.full(relax.ShapeExpr(low.sizes(out)), relax.const(value, name), name), out)


@lowers("torch.aten.zeros", "torch.aten.zeros_like", "torch.aten.new_zeros")
def _zeros(low: Lowering, op: Any) -> Any:
    return _filled(low, op.operation.results[0], 0)


@lowers("torch.aten.ones", "torch.aten.ones_like", "torch.aten.new_ones")
def _ones(low: Lowering, op: Any) -> Any:
    return _filled(low, op.operation.results[0], 1)


_VALUE_AT = {
    "torch.aten.full": 1,
    "torch.aten.full_like": 1,
    "torch.aten.new_full": 2,
    "torch.aten.scalar_tensor": 0,
    "torch.prim.NumToTensor.Scalar": 0,
}


@lowers(*_VALUE_AT)
def _full(low: Lowering, op: Any) -> Any:
    value = low[op.operation.operands[_VALUE_AT[op.operation.name]]]
    if isinstance(value, bool | int | float):
        return _filled(low, op.operation.results[0], value)
    out = op.operation.results[0]
    if not is_size(value):
        return DECLINED
    return low.emit(R.broadcast_to(low.scalar(value, low.dtype(out)), relax.ShapeExpr(low.sizes(out))), out)


@lowers("torch.vtensor.literal")
def _literal(low: Lowering, op: Any) -> Any:
    data, dtype = literal(op), low.dtype(op.operation.results[0])
    if data is None:
        return DECLINED
    if dtype is torch.bfloat16:  # numpy, which Relax reads constants from, has no such type
        return cast(low, low.emit(relax.const(data.float().numpy(), "float32")), dtype)
    return low.builder.emit(relax.const(data.numpy(), dtype_name(dtype)))


def _constant_value(low: Lowering, op: Any) -> Any:
    return constant(op.operation.results[0])


for _kind in ("int", "float", "bool", "str", "none", "number", "device"):
    lowers(f"torch.constant.{_kind}")(_constant_value)


def read_in_parts(low: Lowering, value: Any) -> bool:
    """True for a matrix stacked of several weights that only products read: from each where it lies."""
    if not low.graph.store.parts(parameter_symbol(value)) or len(low.sizes(value)) != 2:
        return False
    return all(use.owner.name == "lutra.linear" and use.owner.operands[1] == value for use in value.uses)


@lowers("lutra.param")
def _param(low: Lowering, op: Any) -> Any:
    """A plain parameter; of a quantised one its consumers ask for the buffers that they read."""
    symbol, out = op.sym.value, op.operation.results[0]
    if not str(out.type).startswith("!torch") or read_in_parts(low, out):
        return Parameter(symbol)
    return low.weight(symbol, low.sizes(out), low.dtype(out))


@lowers("lutra.split")
def _split_features(low: Lowering, op: Any) -> Any:
    out = op.operation.results[0]
    sizes = low.sizes(out)
    return sliced(low, low[op.x], len(sizes) - 1, op.start.value, sizes[-1], 1, out)
