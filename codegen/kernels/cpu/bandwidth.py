"""The read ceiling of this machine: how fast its cores can read memory when they do nothing else.

A decode step cannot take less than the bytes that it reads over this figure. It changes with what else runs on the
machine, so it is measured beside what it is compared with.
"""

import time
from functools import cache
from typing import Any

import torch
import tvm
from tvm.script.ir_builder import tirx as T

from ...targets.cpu import memory
from ...targets.cpu.host import host
from ...targets.cpu.launcher import compiled
from .function import kernel

_LANES, _STREAMS = 16, 4
_PIECE = 1 << 17
"""Words that one task reads, as four streams (a low-bit product reads four tiles of rows)."""


@cache
def _read_kernel() -> Any:
    """`f(words int32 [tasks, streams, n], out int32 [tasks, 16])`: the words of each task, xor-ed together."""
    tasks = tvm.tirx.Var("tasks", "int64")
    length = _PIECE // _STREAMS

    def body(words: Any, out: Any) -> None:
        every = T.ramp(0, 1, _LANES)
        with T.parallel(0, tasks) as task:
            sums = [T.alloc_buffer((_LANES,), "int32") for _ in range(_STREAMS)]
            for part in sums:
                T.buffer_store(part, T.broadcast(T.int32(0), _LANES), [every])
            with T.serial(0, length // _LANES) as i:
                for stream, part in enumerate(sums):
                    ahead = T.address_of(words[task, stream, i * _LANES + 1024])
                    T.evaluate(T.call_intrin("void", "tirx.prefetch", ahead, T.int32(0), T.int32(3), T.int32(1)))
                    T.buffer_store(part, part[every] ^ words[task, stream, T.ramp(i * _LANES, 1, _LANES)], [every])
            total = sums[0][every]
            for part in sums[1:]:
                total = total ^ part[every]
            T.buffer_store(out, total, [task, every])

    shapes = [((tasks, _STREAMS, length), "int32"), ((tasks, _LANES), "int32")]
    return compiled(kernel(shapes, body), host())


class ReadCeiling:
    """Measures bytes per second over one buffer of `size` bytes in huge pages, which it keeps.

    Take it well above the caches, or as large as what is read in their stead."""

    def __init__(self, size: int = 1 << 30) -> None:
        tasks = max(size // (4 * _PIECE), 1)
        self._words = memory.empty((tasks, _STREAMS, _PIECE // _STREAMS), torch.int32).fill_(1)
        self._out = torch.empty((tasks, _LANES), dtype=torch.int32)

    def measure(self, repeats: int = 5) -> float:
        """The best of `repeats` readings, in bytes per second, by all of torch's threads."""
        read = _read_kernel()
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            read(self._words, self._out)
            best = min(best, time.perf_counter() - start)
        return self._words.numel() * self._words.element_size() / best
