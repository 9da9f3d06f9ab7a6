"""Inputs that a graph updates: written by the executable where that is safe, and always with torch's values."""

from collections.abc import Callable
from typing import Any

import lutra
import pytest
import torch


def advance(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    y = x * step
    step.add_(1)
    return y


def old_value(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    before = step.clone()
    step.add_(1)
    return before + x.sum().to(step.dtype) * 0


def view_of_old_value(x: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    before = step.clone().reshape(-1)
    step.copy_(x.sum().to(step.dtype))
    return before, x + 1


def new_value(x: torch.Tensor, step: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    after = step + 1
    step.copy_(after)
    return after, x + 1


def swap(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Each of two inputs becomes what the other was."""
    before = x.clone()
    x.copy_(step.expand_as(x))
    step.copy_(before.sum())
    return before + 1


@pytest.mark.parametrize("function", [advance, old_value, view_of_old_value, new_value, swap])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64], ids=str)
def test_updates_and_results_are_those_of_torch(function: Callable[..., Any], dtype: torch.dtype):
    fast = torch.compile(function, backend="lutra", fullgraph=True)
    own, theirs = torch.tensor(3, dtype=dtype), torch.tensor(3, dtype=dtype)
    for _ in range(3):
        x = torch.randint(-9, 9, (5,)).to(dtype)
        ours, reference = x.clone(), x.clone()
        with torch.no_grad():
            got, expected = fast(ours, own), function(reference, theirs)
        torch.testing.assert_close((got, ours, own), (expected, reference, theirs))
        results = got if isinstance(got, tuple) else (got,)
        assert not {t.data_ptr() for t in results} & {own.data_ptr(), ours.data_ptr()}


def test_two_inputs_exchange_their_values():
    def exchange(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        before = a.clone()
        a.copy_(b)
        b.copy_(before)
        return a * 2

    a, b = torch.randn(2, 6)
    expected = b.clone(), a.clone()
    with torch.no_grad():
        torch.compile(exchange, backend="lutra")(a, b)
    torch.testing.assert_close((a, b), expected)


@pytest.mark.parametrize(("size", "written"), [(1, True), (2000, False)])
def test_the_executable_writes_small_updates(size: int, written: bool):
    class Counter(torch.nn.Module):
        step: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(()))
            self.register_buffer("step", torch.zeros(size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return advance(x * self.factor, self.step)

    model = Counter()
    place = model.step.data_ptr()
    fast: Any = torch.compile(model, backend="lutra")
    for number in range(3):
        with torch.no_grad():
            assert (fast(torch.ones(size)) == number).all()
    assert model.step.data_ptr() == place and (model.step == 3).all()
    assert [report.kernels.get("overwrite", 0) for report in lutra.report(model).graphs] == [int(written)]


def test_an_input_in_the_middle_of_a_tensor_is_updated():
    fast = torch.compile(advance, backend="lutra")
    steps = torch.zeros(5)
    with torch.no_grad():
        fast(torch.ones(4), steps[3])
    assert steps.tolist() == [0, 0, 0, 1, 0]
