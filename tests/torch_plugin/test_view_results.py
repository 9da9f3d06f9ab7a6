"""Results that are views of arguments: they are, and lie in them as in eager."""

from collections.abc import Callable
from typing import Any

import lutra
import pytest
import torch

Tensor = torch.Tensor


def views(x: Tensor) -> tuple[Tensor, ...]:
    half = x.shape[0] // 2
    return (
        *torch.vsplit(x, [1, 2]),
        *torch.tensor_split(x, 3, 1),
        *x.chunk(2, -1),
        *x.split([1, x.shape[0] - 1]),
        *x.unbind(1),
        x[-10::2],
        x[half:],
        x[:, x.shape[1] - 2 :],
        x[-1],
        x.transpose(0, 1),
        x.permute(2, 0, 1),
        x[None, ..., None],
        x[:1].expand(3, -1, -1),
        x.diagonal(0, 1, 2),
        x.unfold(0, 2, 1),
        x.view(torch.int32),
        x.narrow(0, -2, 2),
        x,
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("with_work", [False, True])
def test_views_of_arguments_are_eagers_views(dynamic: bool, with_work: bool):
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return (*views(x), x * 2) if with_work else views(x)

    torch._dynamo.reset()
    fast = torch.compile(function, backend="lutra", dynamic=dynamic)
    for shape in ((5, 4, 6), (7, 4, 6))[: 1 + dynamic]:
        base = torch.randn(2, *shape)
        for x in (base[1].contiguous(), base[1], base[1].transpose(0, 1).contiguous().transpose(0, 1)):
            with torch.no_grad():
                got, expected = fast(x), function(x)
            torch.testing.assert_close(got, expected, rtol=0, atol=0)
            for result, reference in zip(got[: len(got) - with_work], expected, strict=False):
                assert result.data_ptr() == reference.data_ptr()
                assert result.stride() == reference.stride()


def in_place(a: Tensor) -> tuple[Tensor, ...]:
    a.add_(1)
    return a[1:, 1:], a.t()[1:], a


def separate(a: Tensor) -> tuple[Tensor, ...]:
    b = a + 1
    a.copy_(b)
    return b[1:, 1:], b.t(), b


@pytest.mark.parametrize("function", [in_place, separate])
@pytest.mark.parametrize("dynamic", [False, True])
def test_views_of_what_an_argument_becomes_are_eagers(function: Callable[..., Any], dynamic: bool):
    torch._dynamo.reset()
    fast = torch.compile(function, backend="lutra", dynamic=dynamic)
    whole, reference = torch.zeros(8, 9), torch.zeros(8, 9)
    for view in (lambda t: t, lambda t: t[1:, 2:]):
        with torch.no_grad():
            got, expected = fast(view(whole)), function(view(reference))
        torch.testing.assert_close((got, whole), (expected, reference))
        got[0].fill_(5)
        expected[0].fill_(5)
        torch.testing.assert_close((got[0], whole), (expected[0], reference))


def test_a_parameter_may_be_a_result():
    model = torch.nn.Linear(4, 3)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner.weight.t(), self.inner(x)

    fast: Any = torch.compile(Model(), backend="lutra")
    with torch.no_grad():
        got, _ = fast(torch.randn(2, 4))
    assert got.data_ptr() == model.weight.data_ptr() and torch.equal(got, model.weight.t())
    assert lutra.report(fast).graphs
