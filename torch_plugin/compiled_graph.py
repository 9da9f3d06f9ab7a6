"""A compiled graph as AOTAutograd calls it: arguments in, results out, in-place updates done, parameters checked."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..codegen.executable import Executable
from ..ir.foreign import decode, encode
from ..ir.graph import Graph
from ..passes.base import PassReport
from .nets import MISTAKES, TorchGraph, described, warn_once

if TYPE_CHECKING:
    from .model_state import ModelState

_VERSION = operator.attrgetter("_version")


class CompiledGraph:
    """Runs one graph.

    Weights are read at compile time; a call with other or changed parameters gets its own
    executable, made from the same graph (regional compilation runs one graph over the weights of many layers;
    `load_state_dict` changes them)."""

    def __init__(
        self,
        state: "ModelState",
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
        self.executable = build(graph)
        self._positions = [i.position for i in graph.inputs]
        self._names = graph.parameter_positions
        self._others: dict[tuple[int, ...], tuple[list[torch.Tensor], Executable]] = {}
        self.remember_parameters()

    def remember_parameters(self) -> None:
        """Take the parameters as they are now for the ones that `executable` was built from."""
        store = self.graph.store
        originals = ((position, store.original(name)) for position, name in self._names.items())
        bound = [(position, tensor) for position, tensor in originals if tensor is not None]
        self._places = [position for position, _ in bound]
        self._bound = [tensor for _, tensor in bound]
        # Each counts how often it was written to, unless it is of inference mode.
        self._counting = [tensor for tensor in self._bound if not tensor.is_inference()]
        self._versions = list(map(_VERSION, self._counting))

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
        if self._in_torch is None or isinstance(failure, MISTAKES) or self.graph.store.released_names():
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

    def executables(self) -> list[Executable]:
        """All that were made of the graph: one for each set of weights."""
        return [self.executable, *(executable for _, executable in self._others.values())]

    def _executable_for(self, arguments: list[Any]) -> Executable:
        # At every step, over all parameters: in loops that Python itself runs.
        given = [arguments[position] for position in self._places]
        if all(map(operator.is_, given, self._bound)) and list(map(_VERSION, self._counting)) == self._versions:
            return self.executable
        return self._rebuilt(given)

    def _rebuilt(self, tensors: list[torch.Tensor]) -> Executable:
        versions = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
        key = (*map(id, tensors), *versions)
        if key not in self._others:
            names = [self._names[position] for position in self._places]
            store = self.graph.store.rebound(dict(zip(names, tensors, strict=True)))
            # The tensors are kept beside the executable: an id stays theirs for as long as they live.
            self._others[key] = (tensors, self._build(replace(self.graph, store=store)))
        return self._others[key][1]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
