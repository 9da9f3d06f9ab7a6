"""Models in miniature, graphs from text, and a backend that runs passes and then interprets."""

from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
import torch
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from filecheck.parser import Parser, pattern_for_opts
from lutra.ir.context import make_context
from lutra.ir.graph import Graph, GraphInput
from lutra.ir.interpreter import interpret
from lutra.ir.ops import ParamOp
from lutra.ir.types import TensorType, tensor_type
from lutra.ir.weights.store import ParameterStore
from lutra.tests.support.capture import Interpreted
from lutra.tests.support.models import make_model, tokens
from torch_mlir import ir

__all__ = ["make_model", "tokens"]


@pytest.fixture
def interpreted() -> Callable[..., Interpreted]:
    """`interpreted({"fuse": {}}, ...)`: a backend for `torch.compile` that runs these passes."""
    return Interpreted


@dataclass
class Parsed:
    """A graph from text, random arguments for it, and random values for the parameters that it names."""

    graph: Graph
    arguments: list[torch.Tensor]

    def run(self) -> list[Any]:
        """Results of the graph as it is now."""
        return interpret(self.graph, self.arguments)


@pytest.fixture
def parse() -> Callable[[str], Parsed]:
    """`parse(text)`: one function `@main` in the torch and lutra dialects."""

    def make(text: str) -> Parsed:
        module = ir.Module.parse(text, make_context())
        function = module.body.operations[0]
        types = [tensor_type(a.type) for a in function.regions[0].blocks[0].arguments]
        graph = Graph(module, ParameterStore(), "encode", [GraphInput(i, f"arg{i}") for i in range(len(types))])
        for op in graph.operations:
            if isinstance(op, ParamOp):
                graph.store.bind(op.sym.value, _random(tensor_type(op.out.type)))
        return Parsed(graph, [_random(type_) for type_ in types])

    return make


def _random(type_: TensorType) -> torch.Tensor:
    shape = tuple(n or 0 for n in type_.shape)
    if type_.dtype == torch.int64:
        return torch.randperm(16)[: shape[0]]
    return torch.randn(shape).to(type_.dtype)


@pytest.fixture
def filecheck() -> Callable[[str, str], None]:
    """`filecheck(output, text)`: LLVM's FileCheck with the `CHECK` lines of `text`."""

    def check(output: str, text: str) -> None:
        options = parse_argv_options(["filecheck", "-", "--reject-empty-vars"])
        parser = Parser(options, StringIO(text), *pattern_for_opts(options))
        assert Matcher(options, FInput("output", output), parser).run() == 0, output

    return check
