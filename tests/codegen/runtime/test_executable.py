"""A library bound to weights: what it reads, what it returns, and who watches."""

from typing import Any

import pytest
import torch
from lutra.codegen.compile import CodegenOptions, compile_graph
from lutra.codegen.runtime.executable import Executable
from lutra.codegen.targets.registry import get_target
from torch import nn

TARGET = get_target("portable")


@pytest.fixture
def compiled(graph_of: Any):
    """`compiled(model, *inputs)`: the executable of the graph of a call, and that graph."""

    def make(model: nn.Module, *inputs: torch.Tensor) -> tuple[Executable, Any]:
        torch.manual_seed(0)
        graph = graph_of(model, *inputs, passes=[{"fuse": {}}])
        return compile_graph(graph, TARGET, CodegenOptions()), graph

    return make


class Several(nn.Module):
    """A tensor, an argument that is updated, and the square of the first."""

    def forward(self, x: torch.Tensor, count: torch.Tensor) -> tuple[torch.Tensor, ...]:
        doubled = x * 2
        count.add_(1)
        return doubled, doubled * doubled


def test_results_come_in_order_and_an_updated_input_is_that_input(compiled: Any):
    x, count = torch.randn(4, 8), torch.tensor([5])
    executable, graph = compiled(Several(), x, count.clone())
    results = executable(x, count)
    (updated,) = graph.mutations
    assert results[updated] is count and count.item() == 6
    first, second = (value for number, value in enumerate(results) if number != updated)
    torch.testing.assert_close(first, x * 2)
    torch.testing.assert_close(second, 4 * x * x)


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].view_as(x),
        lambda x: x.clone().requires_grad_(),
    ],
    ids=["transposed", "at an odd address", "with a gradient"],
)
def test_inputs_may_lie_anywhere_and_stay_what_they_are(compiled: Any, given: Any):
    model, x = nn.Linear(16, 8), torch.randn(4, 16)
    executable, _ = compiled(model, x)
    moved = given(x)
    torch.testing.assert_close(executable(moved)[0], model(x))
    assert torch.equal(moved, x)


def test_other_weights_are_read_once_they_are_bound(compiled: Any):
    model, x = nn.Linear(16, 8), torch.randn(4, 16)
    executable, graph = compiled(model, x)
    with torch.no_grad():
        model.weight.copy_(torch.randn(8, 16))
    executable.bind(graph.store)
    torch.testing.assert_close(executable(x)[0], model(x))


def test_what_is_watched_is_told_kernel_by_kernel_with_the_weights_that_each_reads(compiled: Any):
    model, x = nn.Sequential(nn.Linear(64, 32, bias=False), nn.ReLU()), torch.randn(2, 64)
    executable, _ = compiled(model, x)
    events: list[tuple[str, bool, int]] = []
    runs: list[bool] = []
    with executable.watched(lambda *event: events.append(event), runs.append):
        executable(x)
    assert runs == [True, False]
    begun, ended = ([name for name, begins, _ in events if begins == side] for side in (True, False))
    assert sorted(begun) == sorted(ended) and any("dense_linear" in name for name in begun)
    assert sum(read for _, begins, read in events if not begins) == model[0].weight.nbytes
    events.clear()
    executable(x)
    assert not events
