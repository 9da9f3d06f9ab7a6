"""Derivations: what they compute, and that equal ones are equal objects."""

import pytest
import torch
from lutra.ir.errors import ParameterError
from lutra.ir.weights.derivations import Concat, Derivation, Encode, Given, StackedRows, Transpose, Unavailable
from lutra.ir.weights.formats import WeightFormat
from lutra.ir.weights.rounding import RoundToNearest


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_rows_of_quantised_parts_are_what_the_whole_would_be(scheme):
    parts, rule = [torch.randn(n, 64) for n in (5, 2, 16)], RoundToNearest(WeightFormat(4, 32, scheme), True)
    got, expected = Concat()(*map(rule, parts)), rule(Concat()(*parts))
    assert torch.equal(got.codes, expected.codes) and torch.equal(got.scales, expected.scales)
    assert got.format == expected.format
    assert scheme == "symmetric" or torch.equal(got.zero_points, expected.zero_points)


def test_tensors_are_turned_flattened_and_encoded():
    matrix, stack = torch.randn(3, 5), torch.randn(2, 3, 5)
    assert torch.equal(Transpose()(matrix), matrix.T) and Transpose()(matrix).is_contiguous()
    assert torch.equal(StackedRows()(stack), torch.cat([stack[0], stack[1]]))
    assert torch.equal(StackedRows(transposed=True)(stack), torch.cat([stack[0].T, stack[1].T]))
    assert torch.equal(Encode()(torch.complex(matrix, matrix)), torch.stack([matrix, matrix], -1))


def test_what_has_no_values_says_why():
    with pytest.raises(ParameterError, match="its values are gone"):
        Unavailable("its values are gone")()


def test_equal_derivations_are_one():
    def pairs() -> list[Derivation]:
        simple = [Concat(), Transpose(), StackedRows(), StackedRows(True), Encode(), Unavailable("gone")]
        return [*simple, Given("w", lambda: quantized), RoundToNearest(WeightFormat(4), True)]

    quantized = RoundToNearest(WeightFormat(4, 32))(torch.randn(2, 32))
    assert pairs() == pairs() and len({*pairs(), *pairs()}) == len(pairs())
