"""Graphs of real models without code generation: capture, the passes of a recipe, then the interpreter.

backend = Interpreted("w4")                 # a recipe, entries of one, or nothing: the graphs as they are imported
torch.compile(model, backend=backend)(ids)
backend.graph
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lutra.ir.graph import Graph
from lutra.ir.interpreter import interpret
from lutra.ir.operator_call import operation_name
from lutra.ir.weights.store import ParameterStore
from lutra.passes.base import PassReport
from lutra.passes.calibration import Calibration
from lutra.passes.pipeline import run_passes
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe
from lutra.torch_plugin.capture import capture
from lutra.torch_plugin.retracing import trace_as_wanted
from torch import fx

_NO_OPERATIONS = ("constant.", "prim.", "param", "return", "func.return", "vtensor.literal")


@dataclass(frozen=True)
class Call:
    """One run of a graph: `arguments`, one per block argument, as they were before it."""

    graph: Graph
    arguments: list[Any]


class Interpreted:
    """A backend for `torch.compile`: what it captures goes through passes and is interpreted.

    recipe: name of one, or entries of its list of passes. facts: for conditions of entries. `graphs`, `functionals`
    (the FX graphs that they were imported from), `reports` of all passes and `calls` are kept, in order; `raised`: the
    last report of what is recognised before the passes. Making one forgets what torch has compiled so far."""

    def __init__(self, *recipe: str | Mapping[str, Any], facts: Mapping[str, int] | None = None) -> None:
        torch._dynamo.reset()
        self.facts = facts
        self.steps = _steps(*recipe)
        self.store = ParameterStore()
        self.graphs: list[Graph] = []
        self.functionals: list[fx.GraphModule] = []
        self.reports: list[PassReport] = []
        self.raised = PassReport("raise")
        self.calls: list[Call] = []

    @property
    def graph(self) -> Graph:
        """The only graph."""
        (graph,) = self.graphs
        return graph

    @property
    def arguments(self) -> list[Any]:
        """Of the last call."""
        return self.calls[-1].arguments

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        trace_as_wanted(gm, inputs)
        return capture(gm, inputs, self.store, self._compile)

    def _compile(self, graph: Graph, functional: fx.GraphModule) -> Callable[..., Any]:
        if self.steps:
            self.raised, *reports = run_passes(graph, self.steps, self.facts)
            self.reports += reports
        self.graphs.append(graph)
        self.functionals.append(functional)

        def run(arguments: list[Any]) -> list[Any]:
            inputs = [arguments[i.position] for i in graph.inputs]
            self.calls.append(Call(graph, [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]))
            outputs = interpret(graph, inputs)
            for result, argument in graph.mutations.items():
                inputs[argument].copy_(outputs[result])
            return [value for i, value in enumerate(outputs) if i not in graph.mutations]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def again(self) -> list[Any]:
        """Results of the only graph, as it is now, for the arguments of the last call."""
        return interpret(self.graph, self.arguments)

    def rewrite(
        self, *recipe: str | Mapping[str, Any], calibration: Calibration | None = None, strict: bool = False
    ) -> list[PassReport]:
        """Run more passes on the only graph."""
        return self._more(self.graph, *recipe, calibration=calibration, strict=strict)

    def run_passes(self, graph: Graph, *recipe: str | Mapping[str, Any]) -> list[PassReport]:
        """Run more passes on one of the graphs."""
        return self._more(graph, *recipe)

    def _more(self, graph: Graph, *recipe: str | Mapping[str, Any], **keywords: Any) -> list[PassReport]:
        self.raised, *reports = run_passes(graph, _steps(*recipe), self.facts, **keywords)
        return reports

    def counts(self) -> Counter[str]:
        """Operations of the only graph by name, without `torch.` and `lutra.`; constants and parameters left out."""
        names = Counter(operation_name(op).removeprefix("lutra.") for op in self.graph.operations)
        return Counter({name: n for name, n in names.items() if not name.startswith(_NO_OPERATIONS)})


def graphs_of(model: Callable[..., Any], *inputs: Any, recipe: str | None = None, **keywords: Any) -> list[Graph]:
    """All graphs that one call `model(*inputs)` makes, after the passes of `recipe`, in the order of their capture.

    keywords: of `torch.compile`, such as `dynamic`."""
    backend = Interpreted(*([recipe] if recipe is not None else []))
    with torch.no_grad():
        torch.compile(model, backend=backend, **keywords)(*inputs)
    return backend.graphs


def _steps(*recipe: str | Mapping[str, Any]) -> Sequence[Any]:
    if len(recipe) == 1 and isinstance(recipe[0], str):
        return load_recipe(recipe[0], available_passes()).steps
    return load_recipe({"lutra": 1, "name": "test", "passes": list(recipe)}, available_passes()).steps
