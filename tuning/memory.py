"""Memory of this process, and of a model's weights.

`resident` counts the pages that are in memory now, shared libraries among them; so compare with the same process before
the model was loaded. `Peak` measures the most between two moments, which a maximum over the whole life of the process
(with loading and compiling in it) does not tell. Weights are counted from their shapes and formats.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import psutil
import torch

from ..ir.analysis.cost import weight_bytes
from ..ir.graph import Graph
from ..ir.ops import ParamOp, quantized_format
from ..ir.rewriting import users

if sys.platform != "win32":
    import resource

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes that were resident since the last `reset_peak`, or since the start where it cannot be reset."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak() -> bool:
    """Start `peak` anew from what is resident now; False where the system has no way to (only Linux does)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


class Peak:
    """`with Peak() as peak: ...`, then `peak.bytes`: the most that was resident inside the block."""

    bytes: int = 0

    def __enter__(self) -> "Peak":
        reset_peak()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bytes = peak()


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of `tensors`, memory that several of them share counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def weights_read_eagerly(model: torch.nn.Module) -> int:
    """Bytes of weights that one pass of `model` reads: all but embeddings, of which it reads a few rows.

    An output head that is tied to an embedding counts: its product reads all of it."""
    read: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if not isinstance(module, torch.nn.Embedding):
            read |= {id(p): p for p in module.parameters(recurse=False)}
    return sum(p.numel() * p.element_size() for p in read.values())


def weights_read(graph: Graph) -> int:
    """Bytes of weights that one call of compiled `graph` reads: low-bit codes with their scales and zero points, and
    what stayed a plain tensor; of embeddings it reads a few rows, which do not count."""
    read = {op.sym.value: op.out.type for op in graph.operations if _read_whole(op)}
    return sum(graph.store.packed_bytes(name) or weight_bytes(type_) for name, type_ in read.items())


def weights_resident(graphs: Iterable[Graph]) -> int:
    """Bytes of all weights that compiled `graphs` keep in memory: packed ones, plain ones that a graph reads, and
    originals that were not released."""
    packed, plain = {}, []
    for graph in graphs:
        store = graph.store
        packed[id(store)] = store.packed_bytes()
        plain += [tensor for name in store.originals() if (tensor := store.original(name)) is not None]
        read = [op.sym.value for op in graph.operations if _is_plain(op)]
        plain += [store.keep(part) for name in read for part in store.parts(name) or (name,)]
    return sum(packed.values()) + tensor_bytes(plain)


def _is_plain(op: object) -> bool:
    return isinstance(op, ParamOp) and quantized_format(op.out.type) is None


def _read_whole(op: object) -> bool:
    return isinstance(op, ParamOp) and any(u.operation.name != "torch.aten.embedding" for u in users(op.out))
