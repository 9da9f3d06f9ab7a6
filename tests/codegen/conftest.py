"""Graphs of the IR for code generation."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lutra.ir.graph import Graph
from lutra.ir.weights.store import ParameterStore
from lutra.passes.pipeline import run_passes
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe
from lutra.torch_plugin.capture import capture
from torch import nn


@pytest.fixture
def graph_of() -> Callable[..., Graph]:
    """`graph_of(model, *inputs, passes=[...])`: the one graph of a call, after the passes of a recipe."""

    def make(model: nn.Module, *inputs: torch.Tensor, passes: Sequence[Any] = ()) -> Graph:
        torch._dynamo.reset()
        recipe = load_recipe({"lutra": 1, "name": "r", "passes": list(passes)}, available_passes())
        graphs: list[Graph] = []

        def keep(graph: Graph, functional: torch.fx.GraphModule) -> Callable[..., Any]:
            run_passes(graph, recipe.steps, {})
            graphs.append(graph)
            return functional.forward

        def backend(gm: torch.fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
            return capture(gm, given, ParameterStore(), keep)

        with torch.no_grad():
            torch.compile(model, backend=backend)(*inputs)
        (graph,) = graphs
        return graph

    return make
