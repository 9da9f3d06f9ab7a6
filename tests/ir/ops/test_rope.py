"""Rotary embedding: what the verifier refuses, the reference as a product of complex numbers, its cost by hand."""

from typing import Any

import pytest
import torch
from lutra.ir.analysis.amounts import Amount
from lutra.ir.ops import RopeOp
from lutra.ir.ops.rope import ROPE_PAIRS
from lutra.tests.support.operations import close, cost, read_back, refusal, tensor, written

Q, ANGLES, ODD = tensor(2, 4, "?", 8), tensor(1, "?", 8), tensor(1, 1, 1, 7)
ROPE = {"x": Q, "cos": ANGLES, "sin": ANGLES, "pairs": "halves", "out": Q}


@pytest.mark.parametrize("pairs", ROPE_PAIRS)
def test_valid_operations_are_read_back_as_they_were(pairs: str):
    read_back(written("rope", **ROPE | {"pairs": pairs}))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"cos": Q, "sin": Q}, "got ranks 4 and 4"),
        ({"cos": tensor(1, "?", 4), "sin": tensor(1, "?", 4)}, "does not fit x"),
        ({"sin": tensor(1, "?", 4)}, "does not fit x"),
        ({"x": ODD, "cos": tensor(1, 1, 7), "sin": tensor(1, 1, 7), "out": ODD}, "head size must be even"),
        ({"pairs": "odd"}, "pairs 'odd' is not one of halves"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], complaint: str):
    text = refusal(written("rope", **ROPE | fields))
    assert "lutra.rope: " in text and complaint in text


def test_pairs_must_be_said():
    fields = {name: value for name, value in ROPE.items() if name != "pairs"}
    assert "attribute" in refusal(written("rope", **fields))


def test_rope_rotates_pairs_of_columns():
    x, angle = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 4)
    cos, sin = (torch.cat([f(angle), f(angle)], -1) for f in (torch.cos, torch.sin))
    pairs = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pairs * torch.polar(torch.ones_like(angle).double(), angle.double()).unsqueeze(1)
    expected = torch.cat([turned.real, turned.imag], -1)
    close(RopeOp.reference(x, cos, sin), expected)
    adjacent = x.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)  # columns i and i + 4 stand at 2i and 2i + 1
    close(RopeOp.reference(adjacent, cos, sin, pairs="adjacent_to_halves"), expected)
    beside = [table[..., :4].repeat_interleave(2, -1) for table in (cos, sin)]
    expected = torch.stack([turned.real, turned.imag], -1).flatten(-2)
    close(RopeOp.reference(adjacent, *beside, pairs="adjacent"), expected)


def test_it_costs_three_operations_an_element():
    q, angles = tensor(2, 4, 3, 8), tensor(1, 3, 8)
    amount = cost(written("rope", x=q, cos=angles, sin=angles, pairs="halves", out=q))
    assert amount == Amount(0, (192 + 2 * 24) * 4, 192 * 4, 3 * 192)
