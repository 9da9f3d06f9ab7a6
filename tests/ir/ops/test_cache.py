"""Updates of caches: what the verifiers refuse, the references, costs by hand."""

from typing import Any

import pytest
import torch
from lutra.ir.analysis.amounts import Amount
from lutra.ir.ops import KvUpdateOp, RopeKvUpdateOp, RopeOp
from lutra.tests.support.operations import cost, read_back, refusal, tensor, written

X, Q, KV, HALF = tensor(2, "?", 64), tensor(2, 4, "?", 8), tensor(2, 2, 16, 8), tensor(2, 2, 16, 8, dtype="bf16")
ONE = tensor(1, dtype="si64")
UPDATE = {"cache": KV, "new": tensor(2, 2, 1, 8), "positions": ONE, "out": KV}
PROJECTIONS = {name: tensor(2, "?", heads, 8) for name, heads in (("q", 4), ("k", 2), ("v", 2))}
ANGLES = dict.fromkeys(("cos", "sin"), tensor(1, "?", 8))
CACHES = dict.fromkeys(("key_cache", "value_cache"), KV)
RESULTS = {"query": Q, "keys": KV, "values": KV}
STEP = {**PROJECTIONS, **ANGLES, **CACHES, "positions": tensor("?", dtype="si64"), **RESULTS}


@pytest.mark.parametrize("text", [written("kv_update", **UPDATE), written("rope_kv_update", **STEP)])
def test_valid_operations_are_read_back_as_they_were(text: str):
    read_back(text)


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        ("kv_update", UPDATE | {"cache": X, "new": X, "out": X}, "cache and new must be [B, G, L, D]"),
        ("kv_update", UPDATE | {"new": tensor(2, 2, 1, 8, dtype="bf16")}, "the new entries are torch.bfloat16"),
        ("kv_update", UPDATE | {"out": tensor(2, 2, 9, 8)}, "cache and result types differ"),
        ("rope_kv_update", STEP | {"q": X}, "q, k, v must be [B, S, heads, D]"),
        ("rope_kv_update", STEP | {"key_cache": Q, "keys": Q}, "do not fit a cache [2, 4, None, 8]"),
        ("rope_kv_update", STEP | {"cos": X, "sin": X}, "cos [2, None, 64] does not fit q"),
        ("rope_kv_update", STEP | {"positions": X}, "positions must be [S]"),
        ("rope_kv_update", STEP | {"values": X}, "cache and result types differ"),
        ("rope_kv_update", STEP | {"value_cache": HALF, "values": HALF}, "must have one dtype"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, fields: dict[str, Any], complaint: str):
    text = refusal(written(name, **fields))
    assert f"lutra.{name}: " in text and complaint in text


def test_kv_update_leaves_the_cache_that_it_is_given():
    cache, new = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 2, 4)
    before = cache.clone()
    out = KvUpdateOp.reference(cache, new, torch.tensor([5, 1]))
    assert torch.equal(cache, before)
    assert torch.equal(out[:, :, [5, 1]], new)
    assert torch.equal(out[:, :, [0, 2, 3, 4]], cache[:, :, [0, 2, 3, 4]])


def test_rope_kv_update_is_a_rope_of_queries_and_keys_and_two_updates():
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 2, 8), torch.randn(2, 3, 2, 8)
    angle, places = torch.randn(1, 3, 4), torch.tensor([4, 0, 5])
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    caches = torch.randn(2, 2, 2, 6, 8)
    query, keys, values = RopeKvUpdateOp.reference(q, k, v, cos, sin, *caches, places)
    turn, write = RopeOp.reference, KvUpdateOp.reference
    assert torch.equal(query, turn(q.transpose(1, 2), cos, sin))
    assert torch.equal(keys, write(caches[0], turn(k.transpose(1, 2), cos, sin), places))
    assert torch.equal(values, write(caches[1], v.transpose(1, 2), places))


def test_costs_are_those_of_the_new_entries():
    assert cost(written("kv_update", **UPDATE)) == Amount(0, 32 * 4, 32 * 4)
    q, kv, angles = tensor(2, 1, 4, 8), tensor(2, 1, 2, 8), tensor(1, 1, 8)
    step = {"q": q, "k": kv, "v": kv, "cos": angles, "sin": angles, "positions": ONE, "query": tensor(2, 4, 1, 8)}
    rows = 64 + 32 + 32
    assert cost(written("rope_kv_update", **STEP | step)) == Amount(0, (rows + 16) * 4, rows * 4, 3 * (64 + 32))
