"""Small inputs that a graph updates (the length of a cache, say) are written inside the executable: as results of it,
each would cost Python more than all the arithmetic behind it."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tvm import relax

from ..kernels.cpu.pointwise import overwrite
from .builder import Lowering
from .symbols import dtype_name

LARGEST = 1024
"""Elements of what is small."""
KERNEL_CALLS = ("relax.call_tir", "relax.call_tir_inplace", "relax.call_dps_packed", "relax.call_pure_packed")
"""What gives results that are their own, or updates in place, which `Lowering.updated` knows."""


def write_back(low: Lowering, results: Sequence[Any]) -> dict[int, relax.Var]:
    """Emit, after everything else, copies of updates into their inputs; number of the result -> the input after that.

    Left out: an update that is in place already, one that is also a result of another kind, and an input that another
    result may share memory with."""
    arguments = low.graph.function.regions[0].blocks[0].arguments
    items = [low[value] for value in results]
    written: dict[int, relax.Var] = {}
    for number, position in low.graph.mutations.items():
        argument, value = arguments[position], results[number]
        sizes = low.sizes(argument)
        if value in low.updated or sum(value == other for other in results) > 1 or not _small(sizes):
            continue
        target, others = low[argument], [item for i, item in enumerate(items) if i != number]
        if low.shape(value) != low.shape(argument) or low.dtype(value) != low.dtype(argument):
            continue
        if not _may_read(low, others, target):
            function = overwrite(tuple(sizes), dtype_name(low.dtype(argument)))
            operands, type_ = [target, items[number]], low.tensor_type(argument)
            written[number] = low.kernel("overwrite", function, operands, type_, inplace=[0])
    return written


def _small(sizes: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in sizes) and math.prod(sizes) <= LARGEST


def _may_read(low: Lowering, values: Iterable[Any], target: relax.Var) -> bool:
    """True when one of `values` may be a view of `target`: it comes from it by Relax operators on one tensor."""
    waiting, seen = [v for v in values if isinstance(v, relax.Var)], set()
    while waiting:
        var = waiting.pop()
        if var.same_as(target):
            return True
        bound: Any = low.builder.lookup_binding(var) if var not in seen else None
        seen.add(var)
        if isinstance(bound, relax.Var):
            waiting.append(bound)
        elif isinstance(bound, relax.Call) and getattr(bound.op, "name", "") not in KERNEL_CALLS:
            tensors = [argument for argument in bound.args if isinstance(argument.ty, relax.TensorType)]
            waiting += tensors if len(tensors) == 1 else []
    return False
