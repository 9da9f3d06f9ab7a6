"""Lookup tables and linears over them: what the verifiers refuse, the references in float64, costs by hand."""

from typing import Any

import pytest
import torch
from lutra.ir.analysis.amounts import Amount
from lutra.ir.ops import LinearOp, TableLinearOp, TableOp
from lutra.ir.weights.formats import PER_CHANNEL, dequantize
from lutra.tests.support.operations import close, cost, quantized, random_weight, read_back, refusal, tensor, written


@pytest.mark.parametrize(
    "text",
    [
        written("table", x=tensor(3, 10), half=1, out=tensor(3, 3, 8)),
        written("table_linear", table=tensor(2, 16, 16), weight=quantized(8, 64), out=tensor(2, 8)),
    ],
)
def test_valid_operations_are_read_back_as_they_were(text: str):
    read_back(text)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"half": 0, "out": tensor(3, 3, 8)}, "result must end in 16 entries, got 8"),
        ({"half": 1, "out": tensor(3, 2, 8)}, "10 columns make 3 tables, got 2"),
        ({"half": 1, "out": tensor(8)}, "result must be [..., tables, entries], got [8]"),
        ({"out": tensor(3, 3, 16)}, "attribute"),
    ],
)
def test_a_table_that_does_not_fit_its_columns_is_refused(fields: dict[str, Any], complaint: str):
    text = refusal(written("table", x=tensor(3, 10), **fields))
    assert "lutra.table: " in text and complaint in text


@pytest.mark.parametrize(
    ("table", "weight", "complaint"),
    [
        (tensor(2, 16, 16), tensor(8, 64), "weight must be !lutra.quantized"),
        (tensor(2, 15, 8), quantized(8, 64), "weight takes 64 columns but there are 15 tables of 4"),
        (tensor(8), quantized(8, 64), "table must be [..., tables, entries], got [8]"),
    ],
)
def test_a_weight_that_does_not_fit_the_tables_is_refused(table: str, weight: str, complaint: str):
    text = refusal(written("table_linear", table=table, weight=weight, out=tensor(2, 8)))
    assert f"lutra.table_linear: {complaint}" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_table_linear_rounds_once(dtype: torch.dtype):
    x, bias, residual = (torch.randn(s).to(dtype) for s in ((2, 3, 10), (5,), (2, 3, 5)))
    weight = random_weight(5, 10)
    expected = x.double() @ dequantize(weight).double().T + bias.double() + residual.double()
    close(TableLinearOp.reference(TableOp.reference(x, half=True), weight, bias, residual, dtype=dtype), expected)


def test_references_look_at_no_values():
    x, weight = torch.empty(2, 3, 10, device="meta"), random_weight(5, 10, "meta")
    for half in (False, True):
        entries = TableOp.reference(x, half=half)
        assert TableLinearOp.reference(entries, weight, dtype=torch.bfloat16).shape == (2, 3, 5)
    assert LinearOp.reference(x, weight).shape == (2, 3, 5)
    assert weight.format.group_size == PER_CHANNEL


def test_costs_are_one_operation_an_entry_and_those_of_the_linear_behind():
    assert cost(written("table", x=tensor(3, 10), half=1, out=tensor(3, 3, 8))) == Amount(0, 3 * 10 * 4, 72 * 4, 72)
    amount = cost(written("table_linear", table=tensor(2, 16, 16), weight=quantized(8, 64), out=tensor(2, 8)))
    assert amount == Amount(8 * 64 // 2 + 8 * 2 * 2, 2 * 256 * 4, 2 * 8 * 4, 2 * 2 * 8 * 64)
