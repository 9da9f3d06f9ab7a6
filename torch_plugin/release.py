"""`release_weights`: give the memory of original weights back once every graph reads their packed form."""

import ctypes
import gc
import math
import mmap
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ..ir.graph import Graph
from ..ir.ops import ParamOp, quantized_format
from ..ir.weights.store import ParameterStore

_fillers: dict[torch.dtype, torch.Tensor] = {}
_MARKED_BYTES = 1 << 14
"""What is filled of a filler: the first rows of any weight. The rest is address space that nobody touches, and takes no
memory."""
_COMPILER_LIBRARIES = ("libtvm_compiler.so", "libTorchMLIRAggregateCAPI.so")


def release_originals(store: ParameterStore, graphs: Iterable[Graph]) -> list[str]:
    """Release every original that no graph reads as a plain tensor; returns their names.

    A released `nn.Parameter` keeps shape, strides and dtype (compiled graphs are guarded on them) but shares one
    buffer, which begins with NaN, with all the others: eager use shows at once instead of giving a wrong answer."""
    read = [op for graph in graphs for op in graph.operations if isinstance(op, ParamOp)]
    plain = {op.sym.value for op in read if store.original(op.sym.value) is not None}
    # Products read each part of a stack where it lies.
    plain |= {part for op in read if quantized_format(op.out.type) is None for part in store.parts(op.sym.value)}
    tensors = {name: tensor for name in store.originals() if (tensor := store.original(name)) is not None}
    gone = store.release(keep=plain)
    for name in sorted(gone, key=lambda n: -tensors[n].numel()):  # the largest first: one filler then serves all
        tensor = tensors[name]
        if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            tensor.data = unreadable(tensor.shape, tensor.dtype, tensor.stride())
    _return_free_memory()
    return gone


def unreadable(shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None) -> torch.Tensor:
    """A tensor of `shape` and `stride` (None: contiguous), NaN where it begins, over a buffer that all share which need
    no larger one."""
    stride = stride if stride is not None else torch.empty(tuple(shape), device="meta").stride()
    size = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0
    filler = _fillers.get(dtype)
    if filler is None or filler.numel() < size:
        filler = _fillers[dtype] = torch.empty(size, dtype=dtype)
    # Every time: somebody may have written to a tensor that lies over it.
    filler[: _MARKED_BYTES // dtype.itemsize] = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
    return filler.as_strided(tuple(shape), tuple(stride))


def is_unreadable(tensor: torch.Tensor) -> bool:
    """True for what `unreadable` made, also when it was converted to another dtype of its kind since."""
    start = tensor.detach()
    while start.dim() > 1 and len(start):
        start = start[0]
    start = start.flatten()[:16]
    return bool((start.isnan() if start.is_floating_point() else start == torch.iinfo(start.dtype).max).all())


def _return_free_memory() -> None:
    """Hand back to the system what the allocator holds free, and the compiler's code (about 100 MB of TVM and MLIR),
    which is read from its files again when something is compiled. For glibc on Linux; elsewhere nothing is done."""
    gc.collect()
    library = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or not hasattr(library, "malloc_trim"):
        return
    library.malloc_trim(0)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        # Code alone: it is never written to, while read-only data holds relocated addresses that no file has.
        if len(fields) == 6 and fields[1] == "r-xp" and Path(fields[5]).name in _COMPILER_LIBRARIES:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
