"""Reference semantics of the `lutra` operations against their formulas in float64."""

import math

import pytest
import torch
from lutra.ir.dialect import ACTIVATIONS, Lutra, NumberOp, ParamOp
from lutra.ir.reference import REFERENCE
from lutra.ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat, dequantize


def random_weight(n: int, k: int, device: str = "cpu") -> QuantizedWeight:
    codes = torch.randint(0, 8, (n, k), dtype=torch.uint8, device=device)
    return QuantizedWeight(
        codes,
        torch.rand(n, 1, device=device).half(),
        torch.rand(n, 1, device=device).half(),
        WeightFormat(3, 0, "asymmetric"),
    )


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to float64 up to the rounding of `got`'s dtype."""
    torch.testing.assert_close(got, expected.to(got.dtype))


def test_every_operation_with_operands_has_a_reference():
    operations = {cls.OPERATION_NAME for cls in Lutra.Operation.__subclasses__()}
    assert set(REFERENCE) == operations - {ParamOp.OPERATION_NAME, NumberOp.OPERATION_NAME}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_adds_bias_and_residual(dtype: torch.dtype):
    x, weight, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 3, 8), (5, 8), (5,), (2, 3, 5)))
    expected = (x.double() @ weight.double().T).to(dtype) + bias + residual
    torch.testing.assert_close(REFERENCE["lutra.linear"](x, weight, bias, residual), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_linears_round_once(dtype: torch.dtype):
    x, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 3, 10), (5,), (2, 3, 5)))
    weight = random_weight(5, 10)
    expected = x.double() @ dequantize(weight).double().T + bias.double() + residual.double()
    close(REFERENCE["lutra.linear"](x, weight, bias, residual), expected)
    entries = REFERENCE["lutra.table"](x, half=True)
    close(REFERENCE["lutra.table_linear"](entries, weight, bias, residual, dtype=dtype), expected)


def test_grouped_linears_give_each_row_the_matrix_of_its_group():
    x, weight = torch.randn(6, 10), random_weight(15, 10)
    matrices = dequantize(weight).double().unflatten(0, (3, 5))
    expected = torch.zeros(6, 5, dtype=torch.float64)
    expected[:2], expected[2:5] = x[:2].double() @ matrices[0].T, x[2:5].double() @ matrices[2].T
    close(REFERENCE["lutra.grouped_linear"](x, weight, torch.tensor([2, 2, 5])), expected)


def test_rms_norm_follows_its_formula_and_rounds_where_it_is_told():
    x, weight = torch.randn(3, 16).bfloat16(), torch.randn(16).bfloat16()
    wide = x.double()
    normalized = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    norm = REFERENCE["lutra.rms_norm"]
    close(norm(x, weight, eps=1e-3, round_before_weight=0), normalized * weight.double())
    torch.testing.assert_close(norm(x, weight, eps=1e-3, round_before_weight=1), normalized.bfloat16() * weight)


def test_layer_norm_follows_its_formula():
    x, weight, bias = torch.randn(3, 16), torch.randn(16), torch.randn(16)
    wide = x.double() - x.double().mean(-1, keepdim=True)
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    close(REFERENCE["lutra.layer_norm"](x, weight, eps=1e-3), expected)
    close(REFERENCE["lutra.layer_norm"](x, weight, bias, eps=1e-3), expected + bias.double())


def test_rope_rotates_pairs_of_columns():
    x, angle = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 4)
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pairs * torch.polar(torch.ones_like(angle).double(), angle.double()).unsqueeze(1)
    close(REFERENCE["lutra.rope"](x, cos, sin), torch.cat([turned.real, turned.imag], -1))
    adjacent = x.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)  # columns i and i + 4 stand at 2i and 2i + 1
    close(
        REFERENCE["lutra.rope"](adjacent, cos, sin, pairs="adjacent_to_halves"),
        torch.cat([turned.real, turned.imag], -1),
    )
    beside = [table[..., :4].repeat_interleave(2, -1) for table in (cos, sin)]
    expected = torch.stack([turned.real, turned.imag], -1).flatten(-2)
    close(REFERENCE["lutra.rope"](adjacent, *beside, pairs="adjacent"), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_merged_and_separate_gates_agree(activation: str):
    gate, up = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    x = gate.double()
    cubic = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    activated = {
        "silu": x / (1 + (-x).exp()),
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": x * (1 + cubic.tanh()) / 2,
        "relu": x * (x > 0),
    }[activation]
    gated = REFERENCE["lutra.gated_mlp"]
    close(gated(gate, up, activation=activation), activated * up.double())
    close(gated(torch.cat([gate, up], -1), activation=activation), activated * up.double())


def test_split_takes_columns():
    x = torch.randn(2, 9)
    assert torch.equal(REFERENCE["lutra.split"](x, start=3, size=4), x[:, 3:7])


def test_kv_update_leaves_the_cache_that_it_is_given():
    cache, new = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 2, 4)
    before = cache.clone()
    out = REFERENCE["lutra.kv_update"](cache, new, torch.tensor([5, 1]))
    assert torch.equal(cache, before)
    assert torch.equal(out[:, :, [5, 1]], new)
    assert torch.equal(out[:, :, [0, 2, 3, 4]], cache[:, :, [0, 2, 3, 4]])


def test_rope_kv_update_is_a_rope_of_queries_and_keys_and_two_updates():
    q, k, v = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 2, 8), torch.randn(2, 3, 2, 8)
    angle, places = torch.randn(1, 3, 4), torch.tensor([4, 0, 5])
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    caches = torch.randn(2, 2, 2, 6, 8)
    query, keys, values = REFERENCE["lutra.rope_kv_update"](q, k, v, cos, sin, *caches, places)
    turn, write = REFERENCE["lutra.rope"], REFERENCE["lutra.kv_update"]
    assert torch.equal(query, turn(q.transpose(1, 2), cos, sin))
    assert torch.equal(keys, write(caches[0], turn(k.transpose(1, 2), cos, sin), places))
    assert torch.equal(values, write(caches[1], v.transpose(1, 2), places))


@pytest.mark.parametrize("mask", ["none", "bool", "additive", "causal"])
@pytest.mark.parametrize("merge_heads", [0, 1])
def test_attention_follows_its_formula_with_grouped_heads(mask: str, merge_heads: int):
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
    got = REFERENCE["lutra.attention"](q, k, v, given, scale=0.3, causal=int(mask == "causal"), merge_heads=merge_heads)
    close(got, expected)


def test_a_query_that_may_attend_nothing_gives_zeros():
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 4, 8)
    nothing = torch.zeros(1, 1, 1, 4, dtype=torch.bool)
    out = REFERENCE["lutra.attention"](q, k, k, nothing, scale=1.0, causal=0, merge_heads=1)
    assert torch.equal(out, torch.zeros(1, 1, 16))


def test_references_look_at_no_values():
    x = torch.empty(2, 3, 10, device="meta")
    weight = random_weight(5, 10, "meta")
    for half in (0, 1):
        entries = REFERENCE["lutra.table"](x, half=half)
        assert REFERENCE["lutra.table_linear"](entries, weight, dtype=torch.bfloat16).shape == (2, 3, 5)
    assert REFERENCE["lutra.linear"](x, weight).shape == (2, 3, 5)
    assert weight.format.group_size == PER_CHANNEL
