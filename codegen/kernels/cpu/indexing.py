"""Reading at given positions, and the check that these lie inside of what is read or written.

All positions are looked at before anything is read or written. One outside raises `IndexError`, as in torch.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .function import kernel

PARALLEL_FROM = 1 << 14
"""Elements below which starting threads costs more than it saves."""
Sizes = tuple[int | None, ...]
"""Sizes of a buffer, None where they are known at run time."""


def check(positions: Any, shape: Sequence[Any], size: Any, operator: str, negative: bool = False) -> None:
    """Emit what raises `IndexError` unless every element of `positions` (of `shape`) lies in `[0, size)`.

    `negative`: positions from the end, down to `-size`, are allowed too."""
    message = f"{operator}: index out of range"

    def inside(position: Any) -> Any:
        return tirx.all(position >= (-size if negative else 0), position < size)

    if not shape:
        with T.Assert(inside(positions[()].astype("int64")), message, "IndexError"):
            pass
        return
    with T.grid(*shape) as axes:
        place = (axes,) if len(shape) == 1 else tuple(axes)
        position = T.bind(positions[place].astype("int64"))
        with T.Assert(inside(position), message, "IndexError"):
            pass


@cache
def embedding(rows: int, features: int, dtype: str, index_dtype: str) -> tirx.PrimFunc:
    """`out[m, F] = table[index[m]]`."""
    m = tirx.Var("m", "int64")

    def body(table: Any, index: Any, out: Any) -> None:
        check(index, (m,), rows, "embedding")
        with T.parallel(0, m) as i, T.serial(0, features) as c:
            T.buffer_store(out, table[index[i], c], [i, c])

    return kernel([((rows, features), dtype), ((m,), index_dtype), ((m, features), dtype)], body)


@cache
def gather(shape: Sizes, index_shape: Sizes, axis: int, dtype: str, index_dtype: str) -> tirx.PrimFunc:
    """`out[..., i, ...] = x[..., index[..., i, ...], ...]` along `axis`; index is no larger than x along the others."""
    sizes, index_sizes = _variables(shape, "x"), _variables(index_shape, "i")

    def body(x: Any, index: Any, out: Any) -> None:
        check(index, index_sizes, sizes[axis], "gather")
        with _elements(index_sizes) as place:
            T.buffer_store(out, x[(*place[:axis], index[place].astype("int64"), *place[axis + 1 :])], list(place))

    return kernel([(sizes, dtype), (index_sizes, index_dtype), (index_sizes, dtype)], body)


@cache
def index(
    shape: Sizes, lead: Sizes, index_shapes: tuple[Sizes, ...], dtype: str, index_dtypes: tuple[str, ...]
) -> tirx.PrimFunc:
    """`out[*lead, rest] = x[i0[*lead], i1[*lead], ..., rest]` for x `[*shape, rest]`.

    An index counts from the end where it is negative, and is broadcast to `lead` where its size is 1."""
    rest = tirx.Var("rest", "int64")
    sizes, lead_sizes = _variables(shape, "x"), _variables(lead, "out")
    shapes = [
        [1 if n == 1 else size for n, size in zip(own, lead_sizes[len(lead) - len(own) :], strict=True)]
        for own in index_shapes
    ]

    def body(x: Any, *buffers: Any) -> None:
        *indices, out = buffers
        for buffer, own, size in zip(indices, shapes, sizes, strict=True):
            check(buffer, own, size, "index", negative=True)
        with _elements([*lead_sizes, rest]) as place:
            chosen = []
            for buffer, own, size in zip(indices, index_shapes, sizes, strict=True):
                at = place[len(lead) - len(own) : len(lead)]
                position = buffer[tuple(0 if n == 1 else i for n, i in zip(own, at, strict=True))].astype("int64")
                chosen.append(tirx.if_then_else(position < 0, position + size, position))
            T.buffer_store(out, x[(*chosen, place[-1])], list(place))

    indices = list(zip(shapes, index_dtypes, strict=True))
    return kernel([([*sizes, rest], dtype), *indices, ([*lead_sizes, rest], dtype)], body)


def _variables(shape: Sizes, name: str) -> list[Any]:
    return [tirx.Var(f"{name}{i}", "int64") if size is None else size for i, size in enumerate(shape)]


@contextmanager
def _elements(sizes: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The place of each element of a buffer; on all cores unless these are known to be few."""
    *outer, inner = sizes
    few = all(isinstance(size, int) for size in sizes) and math.prod(sizes) < PARALLEL_FROM
    with (T.serial if few else T.parallel)(0, math.prod(outer)) as row, T.serial(0, inner) as last:
        place: list[Any] = []
        for size in reversed(outer):
            place.append(row % size)
            row = row // size
        yield (*reversed(place), last)
