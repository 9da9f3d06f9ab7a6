"""Gates: what the verifier refuses, the reference in float64, its cost by hand."""

import math

import pytest
import torch
from lutra.ir.analysis.amounts import Amount
from lutra.ir.ops import GatedMlpOp
from lutra.ir.ops.gate import ACTIVATIONS
from lutra.tests.support.operations import close, cost, read_back, refusal, tensor, written

X, HALF = tensor(2, "?", 64), tensor(2, "?", 32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_valid_operations_are_read_back_as_they_were(activation: str):
    read_back(written("gated_mlp", gate=X, activation=activation, out=HALF))
    read_back(written("gated_mlp", gate=X, up=X, activation=activation, out=X))


@pytest.mark.parametrize(
    ("activation", "complaint"),
    [("tanh", "activation 'tanh' is not one of silu"), ("silu", "gate has 64 features, the result 64")],
)
def test_what_does_not_fit_is_refused(activation: str, complaint: str):
    assert f"lutra.gated_mlp: {complaint}" in refusal(written("gated_mlp", gate=X, activation=activation, out=X))


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
    close(GatedMlpOp.reference(gate, up, activation=activation), activated * up.double())
    close(GatedMlpOp.reference(torch.cat([gate, up], -1), activation=activation), activated * up.double())


def test_it_costs_five_operations_an_element():
    amount = cost(written("gated_mlp", gate=tensor(3, 64), activation="silu", out=tensor(3, 32)))
    assert amount == Amount(0, 3 * 64 * 4, 96 * 4, 5 * 96)
