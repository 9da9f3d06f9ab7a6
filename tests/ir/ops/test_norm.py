"""Norms: what the verifiers refuse, the references in float64, costs by hand."""

from typing import Any

import pytest
import torch
from lutra.ir.analysis.amounts import Amount
from lutra.ir.ops import LayerNormOp, RmsNormOp
from lutra.tests.support.operations import close, cost, read_back, refusal, tensor, written

X = tensor(2, "?", 64)
RMS = {"x": X, "weight": tensor(64), "eps": 1e-6, "round_before_weight": 1, "out": X}
LAYER = {"x": X, "weight": tensor(64), "bias": tensor(64), "eps": 1e-6, "out": X}


@pytest.mark.parametrize("text", [written("rms_norm", **RMS), written("layer_norm", **LAYER)])
def test_valid_operations_are_read_back_as_they_were(text: str):
    read_back(text)


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        ("rms_norm", RMS | {"weight": tensor(32)}, "weight must be [64], got [32]"),
        ("rms_norm", RMS | {"eps": -1.0}, "eps must not be negative"),
        ("layer_norm", LAYER | {"weight": tensor(1, 64)}, "weight must be [64], got [1, 64]"),
        ("layer_norm", LAYER | {"bias": tensor(32)}, "bias must be [64], got [32]"),
    ],
)
def test_what_does_not_fit_the_features_is_refused(name: str, fields: dict[str, Any], complaint: str):
    assert f"lutra.{name}: {complaint}" in refusal(written(name, **fields))


def test_rms_norm_follows_its_formula_and_rounds_where_it_is_told():
    x, weight = torch.randn(3, 16).bfloat16(), torch.randn(16).bfloat16()
    wide = x.double()
    normalized = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    norm = RmsNormOp.reference
    close(norm(x, weight, eps=1e-3, round_before_weight=False), normalized * weight.double())
    torch.testing.assert_close(norm(x, weight, eps=1e-3, round_before_weight=True), normalized.bfloat16() * weight)


def test_layer_norm_follows_its_formula():
    x, weight, bias = torch.randn(3, 16), torch.randn(16), torch.randn(16)
    wide = x.double() - x.double().mean(-1, keepdim=True)
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight.double()
    close(LayerNormOp.reference(x, weight, eps=1e-3), expected)
    close(LayerNormOp.reference(x, weight, bias, eps=1e-3), expected + bias.double())


def test_costs_are_so_many_operations_an_element():
    x = {"x": tensor(3, 64), "out": tensor(3, 64)}
    assert cost(written("rms_norm", **RMS | x)) == Amount(64 * 4, 192 * 4, 192 * 4, 4 * 192)
    assert cost(written("layer_norm", **LAYER | x)) == Amount(2 * 64 * 4, 192 * 4, 192 * 4, 7 * 192)
