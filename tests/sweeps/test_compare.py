"""Differences that count, and those that do not."""

import pytest
import torch
from lutra.tests.sweeps.compare import difference

NAN = float("nan")


@pytest.mark.parametrize(
    ("expected", "actual", "said"),
    [
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "torch.float64 instead of torch.float32"),
        (torch.ones(2), torch.ones(2, 1), "shape (2, 1) instead of (2,)"),
        (torch.ones(2), torch.tensor([1.0, 1.01]), "1 of 2 values differ, at (1,)"),
        (torch.tensor([NAN]), torch.tensor([0.0]), "1 of 1 values differ"),
        (torch.tensor([float("inf")]), torch.tensor([3e38]), "1 of 1 values differ"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "3 instead of 2"),
        ((torch.ones(1), [torch.ones(1)]), (torch.ones(1), [torch.zeros(1)]), "result 1:"),
        ((torch.ones(1),), (torch.ones(1), torch.ones(1)), "2 results instead of 1"),
        (torch.ones(()), 1.0, "float instead of Tensor"),
        (3, 4, "4 instead of 3"),
    ],
)
def test_differences_are_said(expected: object, actual: object, said: str):
    assert said in str(difference(expected, actual))


def test_rounding_and_nan_are_no_differences():
    a = torch.tensor([NAN, float("-inf"), 1.0])
    assert difference(a, a + torch.tensor([0, 0, 1e-6])) is None
    sums = torch.tensor([1000.0, 0.0])  # the second cancelled terms as large as the first
    assert difference(sums, sums + torch.tensor([0, 1e-4])) is None
    assert difference([torch.empty(0), NAN, 2], [torch.empty(0), NAN, 2]) is None
    assert difference(torch.zeros(2), torch.ones(2), values=False) is None
