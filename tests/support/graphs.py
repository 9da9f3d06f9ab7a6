"""Graphs of small models that were compiled."""

from typing import Any

import torch
from lutra.ir.graph import Graph
from lutra.torch_plugin.inspect.report import states_of
from torch import nn


def compiled(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> Graph:
    """The graph of `model`, compiled for `inputs` of these sizes."""
    torch._dynamo.reset()  # it gives up on a function that was compiled for 8 models
    fast = torch.compile(model, backend="lutra", dynamic=False, options=options)
    with torch.no_grad():
        fast(*inputs)
    return compiled_graphs(model)[0]


def compiled_graphs(model: nn.Module) -> list[Graph]:
    """Every graph that was compiled for `model`, in order."""
    return [compiled.graph for state in states_of(model) for compiled in state.graphs]
