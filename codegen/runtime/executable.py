"""A compiled graph that can be called: a library on disk bound to the weights of one parameter store."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import tvm
import tvm_ffi
from torch.utils.dlpack import from_dlpack
from tvm import relax

from ...ir.weights.store import ParameterStore
from ..cache.executables import Entry
from .callbacks import Region, register, running
from .torch_calls import TorchCall
from .weights import ALIGNMENT, from_data
from .workspace import Workspace

Watch = Callable[[str, bool, int], None]
"""`watch(name, begins, bytes of weights)`."""
Progress = Callable[[int, int], None]
"""`progress(done, total)`, before each weight."""


@dataclass(frozen=True)
class ExecutableSummary:
    """What runs: calls of each kernel, what torch runs for want of a lowering, where the code came from ("hit", "miss:
    why"), stages in seconds."""

    kernels: dict[str, int]
    fallbacks: tuple[TorchCall, ...]
    cache: str
    seconds: dict[str, float]


class Executable:
    """Call it with the graph's inputs (tensors and ints, in order); it returns the graph's results in order."""

    def __init__(
        self,
        entry: Entry,
        store: ParameterStore,
        summary: ExecutableSummary,
        regions: Mapping[str, Region],
        progress: Progress | None = None,
    ) -> None:
        register()
        self._regions = regions
        self.summary = summary
        self._outputs: list[tuple[str, Any]] = [(kind, value) for kind, value in entry.content["outputs"]]
        self._library = entry.library
        self._machine = relax.VirtualMachine(self._library, tvm.cpu())
        self._main = self._machine["main"]
        self.sources = [from_data(data) for data in entry.content["weights"]]
        self._workspace = [tvm_ffi.from_dlpack(x) for x in Workspace.from_data(entry.content["workspace"]).tensors()]
        self._lock = threading.Lock()
        self.bind(store, progress)

    def bind(self, store: ParameterStore, progress: Progress | None = None) -> None:
        """Read the weights of `store` from now on, where they are now; packs those that are not packed yet."""
        weights = []
        for number, source in enumerate(self.sources):
            if progress is not None:
                progress(number, len(self.sources))
            weights.append(source.resolve(store))
        with self._lock:
            self._weights = weights  # they own the memory
            self._bound = [tvm_ffi.from_dlpack(weight) for weight in weights]

    def copied(self, store: ParameterStore) -> set[str]:
        """Names of the tensors of `store` that are not read where they are: packed, derived or moved."""
        names: set[str] = set()
        for source, weight in zip(self.sources, self._weights, strict=True):
            original = store.original(source.symbol)
            if original is None or original.data_ptr() != weight.data_ptr():
                names |= store.sources(source.symbol)
        return names

    def __call__(self, *inputs: Any) -> list[Any]:
        usable = [_usable(value) if isinstance(value, torch.Tensor) else int(value) for value in inputs]
        sizes = tuple(value for value in usable if isinstance(value, int))
        tensors = [value for value in usable if isinstance(value, torch.Tensor)]
        with self._lock, running(self._regions):  # the machine and the workspace serve one call at a time
            results = self._main(tvm_ffi.Shape(sizes), *tensors, *self._bound, *self._workspace)
        return [
            usable[value] if kind == "input" else self._result(kind, value, results) for kind, value in self._outputs
        ]

    @contextmanager
    def watched(self, watch: Watch, call: Callable[[bool], None]) -> Iterator[None]:
        """Within the block `watch(name, begins, bytes of weights)` is called before and after every kernel and every
        step of the virtual machine, and `call(begins)` before and after each run of the whole."""
        weights = {tensor.data_ptr(): tensor.numel() * tensor.dtype.itemsize for tensor in self._bound}

        def instrument(function: Any, name: str, begins: bool, result: Any, *arguments: Any) -> None:
            tensors = (a for a in arguments if isinstance(a, tvm_ffi.Tensor))
            watch(name, bool(begins), sum(weights.get(t.data_ptr(), 0) for t in tensors) if not begins else 0)

        def main(*arguments: Any) -> Any:
            call(True)
            try:
                return watched(*arguments)
            finally:
                call(False)

        machine = relax.VirtualMachine(self._library, tvm.cpu())  # one cannot take an instrument off again
        machine.set_instrument(instrument)
        plain, watched, self._main = self._main, machine["main"], main
        try:
            yield
        finally:
            self._main = plain

    @staticmethod
    def _result(kind: str, value: Any, results: Sequence[Any]) -> Any:
        if kind == "literal":
            return value
        # By way of the capsule: what torch negotiates with other libraries takes longer than small kernels.
        return results[0][value] if kind == "size" else from_dlpack(results[value].__dlpack__())


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself when compiled code may read it where it is: compact and aligned; else a copy."""
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    if tensor.data_ptr() % ALIGNMENT:
        return tensor.clone()
    return tensor.detach() if tensor.requires_grad else tensor
