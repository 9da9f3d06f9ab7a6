"""The default CPU schedule of what Relax made: elementwise functions over many elements run on all cores.

Kernels of `kernels/` carry `tirx.is_scheduled` and are left as they are. Vectors are left to LLVM, which finds them
in the inner loops.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir.expr import TensorLoad
from tvm.s_tir import Schedule, ScheduleError

from ..select import Knobs

_OPERANDS = ("a", "b", "value", "condition", "true_value", "false_value")
"""Where TIR expressions keep what they are made of, beside the arguments of calls."""


@dataclass(frozen=True)
class ScheduleKnobs(Knobs):
    """parallel_from: elements below which starting threads costs more than it saves. chunk: elements of one parallel
    step. largest_expression: reads in an element's expression up to which intermediate values are computed where they
    are read."""

    parallel_from: int = 1 << 14
    chunk: int = 1 << 11
    largest_expression: int = 256


def elementwise_schedule(knobs: ScheduleKnobs) -> tvm.transform.Pass:
    """A pass that spreads the loops of every unscheduled function over cores where that pays."""

    @tvm.transform.module_pass(opt_level=0, name="ScheduleElementwise")
    def schedule(module: tvm.IRModule, context: Any) -> tvm.IRModule:
        del context
        module = module.clone()
        for symbol, function in list(module.functions_items()):
            if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled", False):
                with suppress(ScheduleError):  # loops of a shape that schedules cannot touch (a scan) stay as they are
                    module.update_func(symbol, _scheduled(function, knobs))
        return module

    return schedule


def _scheduled(function: tirx.PrimFunc, knobs: ScheduleKnobs) -> tirx.PrimFunc:
    schedule = Schedule(function, error_render_level="none")
    _inline_intermediates(schedule, knobs.largest_expression)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        iterators = schedule.get(block).iter_vars
        spatial = []
        for loop, iterator in zip(loops, iterators, strict=False):
            if iterator.iter_type != tirx.IterVar.DataPar:
                break
            spatial.append(loop)
        if (
            len(loops) != len(iterators)
            or not spatial
            or not _is_large([schedule.get(loop).extent for loop in loops], knobs.parallel_from)
        ):
            continue
        fused = schedule.fuse(*spatial)
        if len(spatial) == len(loops):
            outer, _ = schedule.split(fused, [None, knobs.chunk])
            schedule.parallel(outer)
        else:
            schedule.parallel(fused)
    return schedule.mod["main"].with_attrs(function.attrs)


def _inline_intermediates(schedule: Schedule, largest: int) -> None:
    """Compute values that one other block reads where they are read, instead of storing them, while that stays small:
    an expression that is read twice is written twice, so chains of such expressions grow exponentially."""
    blocks = [(block, schedule.get(block)) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    sizes = {node.name_hint: _reads(node) for _, node in blocks}
    for block, node in blocks:
        consumers = schedule.get_consumers(block)
        if len(consumers) != 1 or not hasattr(node.body, "buffer"):
            continue
        reader = schedule.get(consumers[0])
        grown = sizes[reader.name_hint] + sizes[node.name_hint] * _reads(reader, node.body.buffer)
        if grown <= largest:
            with suppress(ScheduleError):  # a reduction, or read in a way that cannot be inlined
                schedule.compute_inline(block)
                sizes[reader.name_hint] = grown


def _reads(block: Any, buffer: tirx.Buffer | None = None) -> int:
    """How often the expression of an elementwise block reads `buffer`, or any."""
    count, left = 0, list[Any]([getattr(block.body, "value", None)])
    while left:
        node = left.pop()
        count += isinstance(node, TensorLoad) and (buffer is None or node.source.same_as(buffer))
        left.extend(child for name in _OPERANDS if (child := getattr(node, name, None)) is not None)
        left.extend(getattr(node, "args", ()))
    return count


def _is_large(extents: list[Any], parallel_from: int) -> bool:
    """A symbolic extent counts as large: threads cost little there beside being slow on many rows."""
    product = 1
    for extent in extents:
        if not isinstance(extent, tirx.IntImm):
            return True
        product *= int(extent)
    return product >= parallel_from
