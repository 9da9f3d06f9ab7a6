"""Memory figures: of the process as pages come and go, of weights by counting by hand."""

import sys
from typing import Any

import pytest
import torch
from lutra.ir.errors import CaptureError
from lutra.ir.graph import Graph
from lutra.tests.support.capture import Interpreted
from lutra.tuning import memory

MEGABYTE = 1 << 20


def test_resident_memory_follows_what_is_allocated():
    before = memory.resident()
    block = torch.ones(64 * MEGABYTE, dtype=torch.uint8)
    assert memory.resident() - before > 60 * MEGABYTE
    del block
    assert memory.resident() - before < 16 * MEGABYTE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can start the peak anew")
def test_the_peak_of_a_block_counts_what_was_freed_inside_it_and_nothing_from_before():
    torch.ones(256 * MEGABYTE, dtype=torch.uint8)  # an earlier peak
    before = memory.resident()
    with memory.Peak() as peak:
        torch.ones(64 * MEGABYTE, dtype=torch.uint8)
    assert 60 * MEGABYTE < peak.bytes - before < 160 * MEGABYTE


def test_shared_memory_is_counted_once():
    whole = torch.zeros(100, 10)
    assert memory.tensor_bytes([whole, whole[:50], whole.t(), torch.zeros(5)]) == 4000 + 20


def test_an_embedding_counts_only_where_a_head_is_tied_to_it():
    embedding, linear, head = torch.nn.Embedding(100, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 100, bias=False)
    layers = torch.nn.Sequential(embedding, linear, head)
    assert memory.weights_read_eagerly(layers) == 4 * (8 * 8 + 8 + 800)
    head.weight = embedding.weight
    assert memory.weights_read_eagerly(layers) == 4 * (8 * 8 + 8 + 800)
    assert memory.weights_read_eagerly(layers[:2]) == 4 * (8 * 8 + 8)


class Model(torch.nn.Module):
    """An embedding, a linear without and one with a bias, and a head."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(96, 64)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64)])
        self.head = torch.nn.Linear(64, 96, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


def captured(model: torch.nn.Module, passes: list[dict[str, Any]]) -> Graph:
    """The graph of `model` after `passes`."""
    backend = Interpreted(*passes)
    with torch.no_grad():
        torch.compile(model, backend=backend)(torch.randint(0, 96, (1, 5)))
    return backend.graph


@pytest.mark.parametrize("tied", [False, True])
def test_an_unquantised_graph_reads_what_eager_reads(tied: bool):
    model = Model(tied)
    assert memory.weights_read(captured(model, [{"fuse": {}}])) == memory.weights_read_eagerly(model)


@pytest.mark.parametrize(
    ("format_", "bytes_a_weight"),
    [
        ({"bits": 4, "group_size": 32}, 4 / 8 + 2 / 32),
        ({"bits": 4, "group_size": 32, "scheme": "asymmetric"}, 4 / 8 + 4 / 32),
        ({"bits": 2, "group_size": "channel", "scheme": "ternary"}, 2 / 8 + 2 / 64),
        ({"bits": 1, "group_size": 64}, 1 / 8 + 2 / 64),
    ],
)
def test_a_quantised_graph_reads_codes_scales_and_zero_points(format_: dict[str, Any], bytes_a_weight: float):
    graph = captured(Model(tied=True), [{"fuse": {}}, {"quantize-weights": format_}])
    weights = 64 * 64 + 64 * 64 + 96 * 64
    assert memory.weights_read(graph) == weights * bytes_a_weight + 4 * 64


def test_resident_weights_are_the_originals_and_after_release_what_graphs_read():
    model = Model(tied=False)
    everything = memory.tensor_bytes(model.parameters())
    plain = captured(model, [{"fuse": {}}])
    quantised = captured(model, [{"fuse": {}}, {"quantize-weights": {"group_size": 32}}])
    assert memory.weights_resident([plain, plain]) == memory.weights_resident([quantised]) == everything
    for graph in (plain, quantised):
        graph.store.release(keep=["embed.weight", "layers.1.bias"])
    assert memory.weights_resident([quantised]) == 4 * (96 * 64 + 64)
    with pytest.raises(CaptureError, match="was released"):  # it says so when somebody released what a graph reads
        memory.weights_resident([plain])


def test_projections_stacked_into_one_are_counted_once():
    class Projections(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(96, 64)
            self.q, self.k = torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)

        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.embed(ids)
            return self.q(x), self.k(x)

    model = Projections()
    everything = memory.tensor_bytes(model.parameters())
    graph = captured(model, [{"fuse": {}}])
    assert memory.weights_resident([graph]) == everything
    graph.store.release(keep=["embed.weight", "{q,k}.weight", "{q,k}.bias"])
    assert memory.weights_resident([graph]) == everything
