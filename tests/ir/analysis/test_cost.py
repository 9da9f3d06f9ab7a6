"""Costs of whole graphs: sums of the operations' own formulas, in the sizes of the capture."""

import pytest
import sympy
import torch
from lutra.ir.analysis.cost import graph_costs, total
from lutra.ir.errors import LutraError
from lutra.tests.support.graphs import compiled, compiled_graphs
from torch import nn


def test_a_graph_costs_what_its_operations_do():
    graph = compiled(nn.Linear(8, 16), torch.randn(2, 8), recipe="none")
    amount = total(graph_costs(graph))
    assert amount.weights == 4 * (8 * 16 + 16)
    assert amount.operations == 2 * 16 * (2 * 8 + 1)


def test_symbolic_sizes_stay_symbols():
    torch._dynamo.reset()
    model = nn.Linear(8, 16, bias=False)
    fast = torch.compile(model, backend="lutra", dynamic=True, options={"recipe": "none"})
    with torch.no_grad():
        fast(torch.randn(5, 8))
    (graph,) = compiled_graphs(model)
    operations = total(graph_costs(graph)).operations
    (symbol,) = operations.free_symbols
    assert sympy.expand(operations - 256 * symbol) == 0
    assert total(graph_costs(graph)).at({symbol: 7}).operations == 7 * 256
    with pytest.raises(LutraError, match=f"needs a size for {symbol}"):
        total(graph_costs(graph)).at({})
