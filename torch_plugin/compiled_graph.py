"""A compiled graph as AOTAutograd calls it: arguments in, results out, in-place updates done, parameters checked."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Protocol

import torch

from ..codegen.runtime.executable import Executable
from ..ir.errors import Mistake
from ..ir.graph import Graph
from ..ir.importing.foreign import decode, encode
from ..passes.base import PassReport
from .nets import TorchGraph, described, warn_once
from .options import Options
from .weight_watch import WeightWatch

_PIECES = {"decode": 1, "prefill": 256, "encode": 256}
"""How much of the weights whose values were copied is compared in full at each call, in 64 KB: see `weight_watch`."""


class Shared(Protocol):
    """What the graphs of one model share: see `model_state.ModelState`."""

    watch: WeightWatch
    lock: AbstractContextManager[Any]
    options: Options

    def watch_over(self, tensors: Mapping[str, torch.Tensor]) -> WeightWatch:
        """The watch of other `tensors` under the names of the model's."""
        ...


class _Binding:
    """An executable, and whether the weights that it was bound to are still what they were."""

    def __init__(self, watch: WeightWatch, graph: Graph, executable: Executable) -> None:
        self.watch = watch
        self.executable = executable
        self._names = list(graph.parameter_positions.values())
        self._pieces = _PIECES[graph.phase]
        self._note()

    def is_fresh(self, tensors: Sequence[torch.Tensor]) -> bool:
        """True when `executable` can be called with its `tensors`, which is asked at every step."""
        return self._generation == self.watch.store.generation and self._glance.agrees(tensors, self._pieces)

    def refresh(self) -> None:
        """Bind `executable` to the weights as they are now; packs anew what changed."""
        self.watch.renew(self._names)
        self.executable.bind(self.watch.store)
        self._note()

    def _note(self) -> None:
        store = self.watch.store
        self.watch.add(self.executable.copied(store))
        self._glance = self.watch.glance(self._names)
        self._generation = store.generation

    def is_abandoned(self) -> bool:
        """True when the model has no more what this is bound to."""
        return any(map(self.watch.store.is_abandoned, self._names))

    def replaced(self, tensors: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of `tensors`, one a parameter of the graph, that are not what this is bound to, by name."""
        store = self.watch.store
        given = zip(self._names, tensors, strict=True)
        return {name: tensor for name, tensor in given if store.bound(name) is not tensor}


class CompiledGraph:
    """Runs one graph.

    Weights are read where they are, or packed when the graph is compiled and whenever they changed. A call with other
    parameters than those of the model at capture gets its own executable, made from the same graph (regional
    compilation runs one graph over the weights of many layers), unless they took the place of parameters that the model
    has no more: then the executable goes over to them."""

    def __init__(
        self,
        state: Shared,
        graph: Graph,
        reports: list[PassReport],
        build: Callable[[Graph], Executable],
        in_torch: TorchGraph | None = None,
    ) -> None:
        self.state = state  # keeps the shared state alive as long as this graph
        self.graph = graph
        self.pass_reports = reports
        self._build = build
        self._in_torch = in_torch
        self._encoded = [number for number, i in enumerate(graph.inputs) if i.encoded is not None]
        self._positions = [i.position for i in graph.inputs]
        self._places = list(graph.parameter_positions)
        tensors = [graph.store.bound(name) for name in graph.parameter_positions.values()]
        # By the tensors' ids, which are theirs for as long as the stores hold them.
        self._bindings = {tuple(map(id, tensors)): _Binding(state.watch, graph, build(graph))}

    @property
    def executable(self) -> Executable:
        """The one that was made first, or what took its place."""
        return self.executables()[0]

    def executables(self) -> list[Executable]:
        """All that were made of the graph: one for each set of weights."""
        return [binding.executable for binding in self._bindings.values()]

    def boxed(self) -> Callable[[list[Any]], list[Any]]:
        """The callable in AOTAutograd's boxed convention: one list of arguments, which it may empty."""

        def run(arguments: list[Any]) -> list[Any]:
            outputs = self(arguments)
            arguments.clear()
            return outputs

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def __call__(self, arguments: list[Any]) -> list[Any]:
        try:
            executable = self._executable_for(arguments)
            inputs = [arguments[p] for p in self._positions]
            for position in self._encoded:
                inputs[position] = encode(inputs[position])
            for position in range(self.graph.tokens):
                inputs[position] = torch.empty(0)
            outputs = executable(*inputs)
        except Exception as error:
            failure = error
        else:
            return self._results(inputs, outputs)
        return self._run_in_torch(arguments, failure)

    def _run_in_torch(self, arguments: list[Any], failure: Exception) -> list[Any]:
        """What torch makes of a call that failed: its own error, or the answer that was wanted."""
        if self._in_torch is None or isinstance(failure, Mistake) or self.graph.store.released_names():
            raise failure
        results = self._in_torch(arguments)
        warn_once(f"torch ran a call of a {self.graph.phase} graph, since compiled code failed: {described(failure)}")
        return results

    def _results(self, inputs: list[Any], outputs: list[Any]) -> list[Any]:
        # A clone that was optimised away must not hand the caller's own tensor back, nor what that becomes below.
        places = [t.data_ptr() if _is_tensor(t) else None for t in inputs]
        given = set(places)

        def own(value: Any) -> Any:
            return value.clone() if _is_tensor(value) and value.numel() and value.data_ptr() in given else value

        mutations = self.graph.mutations
        results = [own(value) for i, value in enumerate(outputs) if i not in mutations]
        pairs = ((argument, outputs[result]) for result, argument in mutations.items())
        # All values first: one input may become what another one was.
        updates = [(argument, own(value)) for argument, value in pairs if value.data_ptr() != places[argument]]
        for argument, value in updates:
            inputs[argument].copy_(value)
        for result, dtype in self.graph.encoded_results.items():
            results[result] = decode(results[result], dtype)
        return results

    def refresh(self) -> None:
        """Bind every executable to the weights as they are now."""
        with self.state.lock:
            for binding in self._bindings.values():
                binding.refresh()

    def _executable_for(self, arguments: list[Any]) -> Executable:
        given = [arguments[position] for position in self._places]
        binding = self._bindings.get(tuple(map(id, given)))
        if binding is None or not binding.is_fresh(given):
            with self.state.lock:
                binding = self._rebound(given)
        return binding.executable

    def _rebound(self, tensors: list[torch.Tensor]) -> _Binding:
        """The binding to `tensors`, fresh: the one that there is, one to tensors that the model has no more, or a new
        one."""
        key = tuple(map(id, tensors))
        binding = self._bindings.pop(key, None)
        if binding is None or binding.replaced(tensors):  # an id may have been another tensor's
            binding = self._taken_over(tensors)
            self._bindings = {k: b for k, b in self._bindings.items() if not b.is_abandoned()}
        if binding is None:
            watch = self.state.watch_over(dict(zip(self.graph.parameter_positions.values(), tensors, strict=True)))
            binding = _Binding(watch, self.graph, self._build(replace(self.graph, store=watch.store)))
        else:
            binding.refresh()
        self._bindings[key] = binding
        return binding

    def _taken_over(self, tensors: list[torch.Tensor]) -> _Binding | None:
        for key, binding in self._bindings.items():
            store, replaced = binding.watch.store, binding.replaced(tensors)
            if all(store.is_abandoned(name) for name in replaced):
                if replaced:
                    store.replace(replaced)
                return self._bindings.pop(key)
        return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
