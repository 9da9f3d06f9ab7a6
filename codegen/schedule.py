"""The default CPU schedule of what Relax made: elementwise functions over many elements run on all cores.

Kernels of `kernels/` carry `tirx.is_scheduled` and are left as they are. Vectors are left to LLVM, which finds them
in the inner loops.
"""

from contextlib import suppress
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import Schedule, ScheduleError

PARALLEL_FROM = 1 << 14
"""Elements below which starting threads costs more than it saves."""
CHUNK = 1 << 11
"""Elements of one parallel step."""


@tvm.transform.module_pass(opt_level=0, name="ScheduleElementwise")
def schedule_elementwise(module: tvm.IRModule, context: Any) -> tvm.IRModule:
    """Spread the loops of every unscheduled function over cores where that pays."""
    del context
    module = module.clone()
    for symbol, function in list(module.functions_items()):
        if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled", False):
            with suppress(ScheduleError):  # loops of a shape that schedules cannot touch (a scan) stay as they are
                module.update_func(symbol, _scheduled(function))
    return module


def _scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    schedule = Schedule(function, error_render_level="none")
    _inline_intermediates(schedule)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        iterators = schedule.get(block).iter_vars
        spatial = []
        for loop, iterator in zip(loops, iterators, strict=False):
            if iterator.iter_type != tirx.IterVar.DataPar:
                break
            spatial.append(loop)
        if len(loops) != len(iterators) or not spatial or not _is_large([schedule.get(loop).extent for loop in loops]):
            continue
        fused = schedule.fuse(*spatial)
        if len(spatial) == len(loops):
            outer, _ = schedule.split(fused, [None, CHUNK])
            schedule.parallel(outer)
        else:
            schedule.parallel(fused)
    return schedule.mod["main"].with_attrs(function.attrs)


def _inline_intermediates(schedule: Schedule) -> None:
    """Compute values that one other block reads where they are read, instead of storing them."""
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        if len(schedule.get_consumers(block)) == 1:
            with suppress(ScheduleError):  # a reduction, or read in a way that cannot be inlined
                schedule.compute_inline(block)


def _is_large(extents: list[Any]) -> bool:
    """A symbolic extent counts as large: threads cost little there beside being slow on many rows."""
    product = 1
    for extent in extents:
        if not isinstance(extent, tirx.IntImm):
            return True
        product *= int(extent)
    return product >= PARALLEL_FROM
