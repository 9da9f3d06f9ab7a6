"""Graphs from text, and a backend that captures them of models in miniature."""

from collections.abc import Callable

import pytest
from lutra.ir.context import make_context
from lutra.ir.graph import Graph, GraphInput
from lutra.ir.weights.store import ParameterStore
from lutra.tests.support.capture import Interpreted
from lutra.tests.support.models import make_model, tokens
from torch_mlir import ir

__all__ = ["make_model", "tokens"]


@pytest.fixture
def parse() -> Callable[..., Graph]:
    """`parse(body, "%x: !torch.vtensor<...>", result types)`: a graph whose `@main` has that body."""

    def make(body: str, arguments: str = "", results: str = "") -> Graph:
        text = f"func.func @main({arguments}) -> ({results}) {{\n{body}\n}}"
        module = ir.Module.parse(text, make_context())
        number = len(module.body.operations[0].regions[0].blocks[0].arguments)
        return Graph(module, ParameterStore(), "encode", [GraphInput(i, f"arg{i}") for i in range(number)])

    return make


@pytest.fixture
def captured() -> Interpreted:
    """A fresh backend for `torch.compile`."""
    return Interpreted()
