"""A compiled graph that can be called: a library on disk bound to the weights of one parameter store."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import tvm_ffi
from torch.utils.dlpack import from_dlpack
from tvm import relax

from ...ir.weights.store import ParameterStore
from ..device import Device
from .callbacks import Region, register, running
from .manifest import Chosen, Manifest, Output, SizeOutput, TensorOutput, UpdatedInput
from .torch_calls import TorchCall

Watch = Callable[[str, bool, int], None]
"""`watch(name, begins, bytes of weights)`."""
Progress = Callable[[int, int], None]
"""`progress(done, total)`, before each weight."""


@dataclass(frozen=True)
class ExecutableSummary:
    """What runs: calls of each kernel, what torch runs for want of a lowering, which implementations were chosen and
    why, where the code came from ("hit", "miss: why"), stages in seconds."""

    kernels: Mapping[str, int]
    fallbacks: tuple[TorchCall, ...]
    chosen: tuple[Chosen, ...]
    cache: str
    seconds: dict[str, float]


class Executable:
    """A `library` whose `main` is as `manifest` says, on `device`.

    Call it with the graph's inputs (tensors and ints, in order); it returns the graph's results in order."""

    def __init__(
        self,
        library: Any,
        manifest: Manifest,
        device: Device,
        store: ParameterStore,
        summary: ExecutableSummary,
        regions: Mapping[str, Region],
        progress: Progress | None = None,
    ) -> None:
        register()
        device.prepare()
        self._device = device
        self._regions = regions
        self.summary = summary
        self._outputs = manifest.outputs
        self._library = library
        self._machine = relax.VirtualMachine(self._library, device.tvm)
        self._main = self._machine["main"]
        self.sources = manifest.weights
        self._workspace = [tvm_ffi.from_dlpack(x) for x in manifest.workspace.tensors(device)]
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
        usable = [self._device.usable(value) if isinstance(value, torch.Tensor) else int(value) for value in inputs]
        sizes = tuple(value for value in usable if isinstance(value, int))
        tensors = [value for value in usable if isinstance(value, torch.Tensor)]
        with self._lock, running(self._regions):  # the machine and the workspace serve one call at a time
            results = self._main(tvm_ffi.Shape(sizes), *tensors, *self._bound, *self._workspace)
        return [_result(output, results, usable) for output in self._outputs]

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

        machine = relax.VirtualMachine(self._library, self._device.tvm)  # one cannot take an instrument off again
        machine.set_instrument(instrument)
        plain, watched, self._main = self._main, machine["main"], main
        try:
            yield
        finally:
            self._main = plain


def _result(output: Output, results: Sequence[Any], inputs: Sequence[Any]) -> Any:
    """What the caller gets: of what the function returned, or of what it was called with."""
    if isinstance(output, TensorOutput):
        # By way of the capsule: what torch negotiates with other libraries takes longer than small kernels.
        return from_dlpack(results[output.index].__dlpack__())
    if isinstance(output, UpdatedInput):
        return inputs[output.index]
    return results[0][output.index] if isinstance(output, SizeOutput) else output.value
