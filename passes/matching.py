"""What patterns of several subjects ask about values: parts of tensors, operands of commutative operations, dtypes.

Every answer is about what is known for certain; where a size or a constant is not, it is None."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..ir.rewriting import constant, constant_list, defined_by, shape_of
from ..ir.types import tensor_type

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of fused operations, which compute in float32: float64 would lose digits, and integers have other rules."""


@dataclass(frozen=True)
class Section:
    """`source[..., start:stop:step, ...]` along dimension `dim` (not negative), whose `size` is known."""

    source: Any
    dim: int
    size: int
    start: int
    stop: int
    step: int

    @property
    def range(self) -> tuple[int, int, int]:
        """`(start, stop, step)`."""
        return self.start, self.stop, self.step


def sizes(value: Any) -> tuple[int | None, ...]:
    """Shape of a tensor; () also for what is none."""
    return shape_of(value) or ()


def is_fused_float(*values: Any) -> bool:
    """All values are tensors of one of `FUSED_DTYPES`."""
    return all(shape_of(value) is not None and tensor_type(value.type).dtype in FUSED_DTYPES for value in values)


def both_orders(op: Any) -> Iterator[tuple[Any, Any]]:
    """The first two operands of an operation that is commutative in them, in either order."""
    left, right = list(op.operands)[:2]
    yield left, right
    yield right, left


def dimension(value: Any, rank: int) -> int | None:
    """The dimension that a constant means on a tensor of `rank`, not negative; None when it is not known."""
    number = constant(value)
    if isinstance(number, bool) or not isinstance(number, int) or not -rank <= number < rank:
        return None
    return number % rank


def section_of(value: Any) -> Section | None:
    """The part of another tensor that `value` is: a slice, or a result of a split."""
    op = defined_by(value, "lutra.split")
    if op is not None:
        return _part(op, value)
    op = defined_by(value, "aten.slice.Tensor")
    if op is not None:
        return _slice(op)
    unpack = defined_by(value, "prim.ListUnpack")
    if unpack is None:
        return None
    split = defined_by(unpack.operands[0], "aten.split.Tensor", "aten.split_with_sizes")
    if split is None:
        return None
    source, given = split.operands[0], split.operands[1]
    shape = sizes(source)
    dim = dimension(split.operands[2], len(shape))
    size = None if dim is None else shape[dim]
    if dim is None or size is None:
        return None
    lengths = constant_list(given) or [constant(given)] * len(unpack.results)
    if not all(isinstance(length, int) for length in lengths):
        return None
    start = sum(lengths[: value.result_number])
    return Section(source, dim, size, start, min(start + lengths[value.result_number], size), 1)


def _part(op: Any, value: Any) -> Section | None:
    source, start = op.operands[0], op.attributes["start"].value
    size, features = sizes(source)[-1], sizes(value)[-1]
    if size is None or features is None:
        return None
    return Section(source, len(sizes(source)) - 1, size, start, start + features, 1)


def _slice(op: Any) -> Section | None:
    source, where, *bounds = op.operands
    shape = sizes(source)
    dim = dimension(where, len(shape))
    size = None if dim is None else shape[dim]
    numbers = [constant(bound) for bound in bounds]
    if dim is None or size is None or not all(n is None or isinstance(n, int) for n in numbers):
        return None
    start, stop, step = slice(*numbers).indices(size)
    return Section(source, dim, size, start, max(start, stop), step)


def cast_source(value: Any) -> Any | None:
    """x when `value` is x in another dtype."""
    op = defined_by(value, "aten._to_copy", "prims.convert_element_type")
    return None if op is None else op.operands[0]


def list_of(value: Any) -> list[Any] | None:
    """The elements of a list of tensors."""
    op = defined_by(value, "prim.ListConstruct")
    return None if op is None else list(op.operands)
