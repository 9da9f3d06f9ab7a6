"""Products with weights: what the verifiers refuse, the references in float64, costs worked out by hand."""

from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  (registers the grouped product)
from lutra.ir.analysis.amounts import Amount
from lutra.ir.analysis.cost import graph_costs
from lutra.ir.ops import GroupedLinearOp, LinearOp, SplitOp
from lutra.ir.weights.formats import dequantize
from lutra.tests.support.graphs import compiled
from lutra.tests.support.models import Experts
from lutra.tests.support.operations import (
    close,
    cost,
    quantized,
    random_weight,
    read_back,
    refusal,
    tensor,
    written,
)
from torch import nn

X, SHORT = tensor(2, "?", 64), tensor(2, "?", 8)
ENDS = tensor(4, dtype="si32")  # of the groups of `lutra.grouped_linear`
ROWS = {"x": tensor(9, 64), "weight": quantized(32, 64), "offsets": ENDS, "out": tensor(9, 8)}


@pytest.mark.parametrize(
    "text",
    [
        written("linear", x=X, weight=tensor(8, 64), out=SHORT),
        written("linear", x=X, weight=quantized(8, 64), bias=tensor(8), residual=SHORT, out=SHORT),
        written("grouped_linear", x=tensor("?", 64), weight=quantized(32, 64), offsets=ENDS, out=tensor("?", 8)),
        written("split", x=X, start=16, out=tensor(2, "?", 48)),
    ],
)
def test_valid_operations_are_read_back_as_they_were(text: str):
    read_back(text)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"weight": tensor(8, 63)}, "x has 64 features but the weight takes 63"),
        ({"weight": quantized(8, 32)}, "x has 64 features but the weight takes 32"),
        ({"weight": quantized(8, 64, bits=5)}, "bits = 5 is not supported"),
        ({"out": X}, "result has 64 features but the weight gives 8"),
        ({"weight": tensor(64)}, "weight must be [N, K], got rank 1"),
        ({"bias": tensor(7)}, "bias must be [8], got [7]"),
        ({"residual": X}, "residual must end in 8 features"),
        ({"x": "!torch.int"}, "!torch.int is not a tensor type"),
    ],
)
def test_a_linear_whose_parts_do_not_fit_is_refused(fields: dict[str, Any], complaint: str):
    text = refusal(written("linear", **{"x": X, "weight": tensor(8, 64), "out": SHORT} | fields))
    assert "lutra.linear: " in text and complaint in text


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"x": X}, "x must be [S, K] and offsets [E]"),
        ({"x": tensor(9, 32)}, "x has 32 features but the weight takes 64"),
        ({"out": tensor(9, 32)}, "4 groups of 32 features need as many rows, the weight has 32"),
        ({"weight": tensor(32, 64)}, "weight must be !lutra.quantized"),
    ],
)
def test_a_grouped_linear_whose_parts_do_not_fit_is_refused(fields: dict[str, Any], complaint: str):
    assert f"lutra.grouped_linear: {complaint}" in refusal(written("grouped_linear", **ROWS | fields))


@pytest.mark.parametrize(
    ("start", "complaint"), [(60, "[60, 68) is not inside the 64 features"), (-1, "[-1, 7) is not")]
)
def test_a_split_beyond_the_features_is_refused(start: int, complaint: str):
    assert f"lutra.split: {complaint}" in refusal(written("split", x=X, start=start, out=SHORT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_adds_bias_and_residual(dtype: torch.dtype):
    x, weight, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 3, 8), (5, 8), (5,), (2, 3, 5)))
    expected = (x.double() @ weight.double().T).to(dtype) + bias + residual
    torch.testing.assert_close(LinearOp.reference(x, weight, bias, residual), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantised_linear_rounds_once(dtype: torch.dtype):
    x, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 3, 10), (5,), (2, 3, 5)))
    weight = random_weight(5, 10)
    expected = x.double() @ dequantize(weight).double().T + bias.double() + residual.double()
    close(LinearOp.reference(x, weight, bias, residual), expected)


def test_grouped_linears_give_each_row_the_matrix_of_its_group():
    x, weight = torch.randn(6, 10), random_weight(15, 10)
    matrices = dequantize(weight).double().unflatten(0, (3, 5))
    expected = torch.zeros(6, 5, dtype=torch.float64)
    expected[:2], expected[2:5] = x[:2].double() @ matrices[0].T, x[2:5].double() @ matrices[2].T
    close(GroupedLinearOp.reference(x, weight, torch.tensor([2, 2, 5])), expected)


def test_split_takes_columns():
    x = torch.randn(2, 9)
    assert torch.equal(SplitOp.reference(x, start=3, size=4), x[:, 3:7])


def test_a_linear_costs_two_operations_a_weight_and_one_for_what_is_added():
    fields = {"x": tensor(3, 64), "weight": tensor(8, 64), "out": tensor(3, 8)}
    assert cost(written("linear", **fields)) == Amount(4 * 8 * 64, 4 * 3 * 64, 4 * 3 * 8, 2 * 3 * 64 * 8)
    more = cost(written("linear", **fields, bias=tensor(8), residual=tensor(3, 8)))
    assert more == Amount(4 * 8 * 65, 4 * 3 * (64 + 8), 4 * 3 * 8, 3 * 8 * (2 * 64 + 2))


@pytest.mark.parametrize("rows", [1, 9])
def test_experts_cost_no_more_matrices_than_there_are_rows(rows: int):
    amount = cost(written("grouped_linear", **ROWS | {"x": tensor(rows, 64), "out": tensor(rows, 8)}))
    matrix = 8 * 64 // 2 + 8 * 2 * 2
    assert amount == Amount(min(rows, 4) * matrix, rows * 64 * 4 + 4 * 4, rows * 8 * 4, 2 * rows * 8 * 64)


def test_a_split_costs_nothing():
    assert cost(written("split", x=tensor(3, 64), start=16, out=tensor(3, 48))) == Amount()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_a_low_bit_linear_costs_the_bytes_that_were_packed(bits: int, scheme: str):
    step = {"bits": bits, "group_size": 64, "scheme": scheme, "select": {"operators": "linear"}}
    recipe = {"lutra": 1, "name": "x", "passes": [{"quantize-weights": step}]}
    graph = compiled(nn.Linear(128, 192, bias=False), torch.randn(3, 128), recipe=recipe)
    (cost,) = [c for c in graph_costs(graph) if c.name == LinearOp.OPERATION_NAME]
    scales = 192 * 2 * 2 * (2 if scheme == "asymmetric" else 1)
    assert cost.amount == Amount(192 * 128 * bits // 8 + scales, 3 * 128 * 4, 3 * 192 * 4, 2 * 3 * 192 * 128)
    assert cost.weight is not None and cost.rows == 3
    assert cost.amount.weights == graph.store.packed_bytes(cost.weight)


def test_packed_experts_cost_the_bytes_of_the_matrices_that_are_read():
    recipe = {"lutra": 1, "name": "x", "passes": [{"quantize-weights": {"bits": 4, "group_size": 64}}]}
    graph = compiled(Experts(), torch.randn(1, 128), torch.tensor([0, 1, 1, 1]), recipe=recipe)
    (amount,) = [c.amount for c in graph_costs(graph) if c.name == GroupedLinearOp.OPERATION_NAME]
    assert amount.weights == 96 * 128 // 2 + 96 * 2 * 2
