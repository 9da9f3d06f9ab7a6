"""Memory figures: of the process as pages come and go, of weights by counting by hand."""

import sys

import pytest
import torch
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
