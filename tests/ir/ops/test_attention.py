"""Attention: what the verifier refuses, the reference in float64, its cost by hand and in a decode step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra.ir.analysis.amounts import CONTEXT, Amount
from lutra.ir.analysis.cost import graph_costs
from lutra.ir.ops import AttentionOp
from lutra.tests.support.graphs import compiled_graphs
from lutra.tests.support.operations import close, cost, read_back, refusal, tensor, written
from lutra.torch_plugin.models.causal_lm import generate

X, Q, KV, ANY = tensor(2, "?", 64), tensor(2, 4, "?", 8), tensor(2, 2, 16, 8), tensor("?", "?", "?", "?")
ATTENTION = {"q": Q, "k": KV, "v": KV, "scale": 1.0, "causal": 0, "merge_heads": 1, "out": tensor(2, "?", 32)}


@pytest.mark.parametrize(
    "fields",
    [{}, {"merge_heads": 0, "out": Q}, {"mask": tensor(2, 1, "?", 16, dtype="i1")}, {"q": ANY, "k": ANY, "v": ANY}],
)
def test_valid_operations_are_read_back_as_they_were(fields: dict[str, Any]):
    read_back(written("attention", **ATTENTION | fields))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"q": X}, "q, k and v must have rank 4, got 3, 4, 4"),
        ({"q": tensor(2, 4, 3, 6)}, "q has head size 6, k 8"),
        ({"q": tensor(2, 3, 3, 8)}, "2 key/value heads do not divide 3 query heads"),
        ({"k": tensor(2, 0, 16, 8)}, "0 key/value heads do not divide 4 query heads"),
        ({"out": Q}, "result must have rank 3"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], complaint: str):
    assert f"lutra.attention: {complaint}" in refusal(written("attention", **ATTENTION | fields))


@pytest.mark.parametrize("mask", ["none", "bool", "additive", "causal"])
@pytest.mark.parametrize("merge_heads", [False, True])
def test_attention_follows_its_formula_with_grouped_heads(mask: str, merge_heads: bool):
    q, k, v = torch.randn(2, 6, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    allowed = torch.rand(2, 1, 5, 7) > 0.3
    allowed[..., 0] = True
    additive = torch.randn(2, 1, 5, 7)
    keys, values = (t.double().repeat_interleave(2, 1) for t in (k, v))
    scores = 0.3 * q.double() @ keys.transpose(-1, -2)
    if mask == "bool":
        scores = scores.masked_fill(~allowed, -torch.inf)
    elif mask == "additive":
        scores = scores + additive.double()
    elif mask == "causal":
        scores = scores.masked_fill(~torch.ones(5, 7).tril().bool(), -torch.inf)
    expected = scores.softmax(-1) @ values
    if merge_heads:
        expected = expected.transpose(1, 2).reshape(2, 5, 48)
    given = {"bool": allowed, "additive": additive}.get(mask)
    close(AttentionOp.reference(q, k, v, given, scale=0.3, causal=mask == "causal", merge_heads=merge_heads), expected)


def test_a_query_that_may_attend_nothing_gives_zeros():
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 4, 8)
    nothing = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
    out = AttentionOp.reference(q, k, k, nothing, scale=1.0, causal=False, merge_heads=True)
    assert torch.equal(out, torch.zeros(1, 1, 16))


def test_it_costs_all_keys_or_in_a_decode_step_under_a_mask_the_context():
    step = ATTENTION | {"q": tensor(2, 4, 1, 8), "out": tensor(2, 1, 32)}
    q = 64 * 4
    whole = cost(written("attention", **step), "decode")
    assert whole == Amount(0, q + 2 * 2 * 2 * 16 * 8 * 4, q, 2 * 4 * 16 * (4 * 8 + 5))
    masked = written("attention", **step, mask=tensor(2, 1, 1, 16, dtype="i1"))
    assert cost(masked, "prefill") == whole + Amount(read=2 * 16)
    assert cost(masked, "decode") == Amount(0, q + 2 * 2 * 2 * CONTEXT * 8 * 4 + 32, q, 2 * 4 * CONTEXT * (4 * 8 + 5))


def test_attention_of_a_decode_step_costs_the_context_and_not_the_cache(make_model: Callable[[str], Any]):
    model = make_model("llama")
    torch._dynamo.reset()
    model.compile(backend="lutra", options={"recipe": "none"})
    generate(model, 9, 3)
    graph = next(graph for graph in compiled_graphs(model) if graph.phase == "decode")
    attention = [c.amount for c in graph_costs(graph) if c.name == AttentionOp.OPERATION_NAME]
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    assert len(attention) == config.num_hidden_layers
    for amount in attention:
        assert amount.operations == config.num_attention_heads * CONTEXT * (4 * head + 5)
        assert amount.read.coeff(CONTEXT) == 2 * config.num_key_value_heads * head * model.dtype.itemsize
