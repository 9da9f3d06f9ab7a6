"""Cost formulas against numbers worked out by hand, and bytes of weights against what was packed."""

from typing import Any

import pytest
import sympy
import torch
import transformers.integrations.moe  # noqa: F401  (registers the grouped product)
from lutra.ir.analysis.cost import CONTEXT, Amount, graph_costs, total
from lutra.ir.errors import LutraError
from lutra.tests.support.assets import TINY_LLAMA
from lutra.torch_plugin.inspect.report import states_of
from torch import nn


@pytest.fixture(autouse=True)
def forget() -> None:
    torch._dynamo.reset()  # it gives up on a function that was compiled for 8 models


def compiled(model: nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    fast = torch.compile(model, backend="lutra", dynamic=False, options=options)
    with torch.no_grad():
        fast(*inputs)
    return next(g.graph for state in states_of(model) for g in state.graphs)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_low_bit_linear(bits: int, scheme: str):
    step = {"bits": bits, "group_size": 64, "scheme": scheme, "select": {"operators": "linear"}}
    recipe = {"lutra": 1, "name": "x", "passes": [{"quantize-weights": step}]}
    graph = compiled(nn.Linear(128, 192, bias=False), torch.randn(3, 128), recipe=recipe)
    (cost,) = [c for c in graph_costs(graph) if c.name == "lutra.linear"]
    scales = 192 * 2 * 2 * (2 if scheme == "asymmetric" else 1)
    assert cost.amount == Amount(192 * 128 * bits // 8 + scales, 3 * 128 * 4, 3 * 192 * 4, 2 * 3 * 192 * 128)
    assert cost.weight is not None and cost.rows == 3
    assert cost.amount.weights == graph.store.packed_bytes(cost.weight)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 96, 128))

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.ops.transformers.grouped_mm_fallback(x, self.weight.transpose(1, 2), ends)


@pytest.mark.parametrize("rows", [1, 9])
def test_experts_read_no_more_matrices_than_there_are_rows(rows: int):
    recipe = {"lutra": 1, "name": "x", "passes": [{"quantize-weights": {"bits": 4, "group_size": 64}}]}
    graph = compiled(Experts(), torch.randn(rows, 128), torch.tensor([0, 1, 1, rows]), recipe=recipe)
    (amount,) = [c.amount for c in graph_costs(graph) if c.name == "lutra.grouped_linear"]
    assert amount.weights == min(rows, 4) * (96 * 128 // 2 + 96 * 2 * 2)
    assert amount.operations == 2 * rows * 96 * 128


def test_plain_linears_count_their_bias():
    graph = compiled(nn.Linear(8, 16), torch.randn(2, 8), recipe="none")
    amount = total(graph_costs(graph))
    assert amount.weights == 4 * (8 * 16 + 16)
    assert amount.operations == 2 * 16 * (2 * 8 + 1)


def test_symbolic_sizes_stay_symbols():
    model = nn.Linear(8, 16, bias=False)
    fast = torch.compile(model, backend="lutra", dynamic=True, options={"recipe": "none"})
    with torch.no_grad():
        fast(torch.randn(5, 8))
    graph = next(g.graph for state in states_of(model) for g in state.graphs)
    operations = total(graph_costs(graph)).operations
    (symbol,) = operations.free_symbols
    assert sympy.expand(operations - 256 * symbol) == 0
    assert total(graph_costs(graph)).at({symbol: 7}).operations == 7 * 256
    with pytest.raises(LutraError, match=f"needs a size for {symbol}"):
        total(graph_costs(graph)).at({})


def test_decode_attention_follows_the_context_and_not_the_cache():
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(TINY_LLAMA).eval()
    from lutra.torch_plugin.models.causal_lm import generate

    model.compile(backend="lutra", options={"recipe": "none"})
    generate(model, 9, 3)
    graph = next(g.graph for s in states_of(model) for g in s.graphs if g.graph.phase == "decode")
    attention = [c.amount for c in graph_costs(graph) if c.name == "lutra.attention"]
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    item = model.dtype.itemsize
    assert len(attention) == config.num_hidden_layers
    for amount in attention:
        assert amount.operations == config.num_attention_heads * CONTEXT * (4 * head + 5)
        assert amount.read.coeff(CONTEXT) == 2 * config.num_key_value_heads * head * item
