"""A compiled graph writes into no memory but what it was asked to update, and what it returns is the caller's alone."""

from collections.abc import Callable
from typing import Any

import lutra
import pytest
import torch

Tensor = torch.Tensor
CONSTANT = torch.arange(640.0).view(1, 2, 20, 16)


def updated(cache: Tensor, p: Tensor, n: Tensor) -> Tensor:
    return cache.index_copy(2, p, n)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda a: a,
    "view": lambda a: a.view(1, 2, 10, 16),
    "reshape": lambda a: a.reshape(1, 2, 10, 16),
    "unsqueeze": lambda a: a[0].unsqueeze(0),
    "flatten": lambda a: a.flatten(1).unflatten(1, (2, 10, 16)),
    "transpose of a size 1": lambda a: a.view(2, 1, 10, 16).transpose(0, 1),
    "permute of nothing": lambda a: a.permute(0, 1, 2, 3),
    "clone": lambda a: a.clone(),
    "contiguous": lambda a: a.contiguous(),
    "detach": lambda a: a.detach(),
    "cast to the same": lambda a: a.to(torch.float32),
    "expand of nothing": lambda a: a.expand(1, 2, 10, 16),
    "cat of one": lambda a: torch.cat([a]),
    "slice of all": lambda a: a[:, :, 0:10],
    "power of 1": lambda a: a**1,
    "clamp to nothing": lambda a: a.clamp(max=float("inf")),
    "split": lambda a: a.split(10, 2)[0],
    "unbind": lambda a: a.view(1, 1, 2, 10, 16).unbind(0)[0],
    "chunk": lambda a: a.chunk(1, 1)[0],
    "narrow": lambda a: a.narrow(2, 0, 10),
    "squeeze": lambda a: a.view(1, 1, 2, 10, 16).squeeze(0),
    "as_strided": lambda a: a.as_strided((1, 2, 10, 16), (320, 160, 16, 1)),
    "where": lambda a: torch.where(a == a, a, a),
    "movedim": lambda a: a.view(2, 1, 10, 16).movedim(0, 1),
    "twice": lambda a: a.view(320).clone().view(1, 2, 10, 16).detach(),
}


def test_updates_of_views_and_copies_leave_the_callers_tensor_as_it_was():
    def function(a: Tensor, p: Tensor, n: Tensor) -> list[Tensor]:
        return [updated(view(a), p, n) for view in VIEWS.values()]

    for names in ([name] for name in VIEWS):  # alone: a value that has other readers is copied anyway
        views = [VIEWS[name] for name in names]

        def one(a: Tensor, p: Tensor, n: Tensor, views: Any = views) -> list[Tensor]:
            return [updated(view(a), p, n) for view in views]

        agree(one, names[0])
    agree(function, "all")


def agree(function: Callable[..., Any], label: str, calls: int = 2) -> None:
    """Results and arguments are eager's at each of several calls, also when the results of each are written to."""
    torch._dynamo.reset()
    fast = torch.compile(function, backend="lutra")
    ours = torch.randn(1, 2, 10, 16)
    theirs = ours.clone()
    with torch.no_grad():
        for _ in range(calls):
            p, n = torch.randperm(10)[:2], torch.randn(1, 2, 2, 16)
            got, expected = fast(ours, p, n), function(theirs, p, n)
            message = f"{label}: {{}}".format
            torch.testing.assert_close(got, expected, msg=message)
            torch.testing.assert_close(ours, theirs, msg=message)
            if isinstance(got, tuple | list):
                for result, reference in zip(got, expected, strict=True):
                    result.fill_(7)
                    reference.fill_(7)
                    torch.testing.assert_close(got, expected, msg=message)
                    torch.testing.assert_close(ours, theirs, msg=message)


def in_place(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    a.index_copy_(2, p, n)
    return a * 2, n + 1


def in_place_of_a_view(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    a.view(1, 2, 10, 16).index_copy_(2, p, n)
    return (a * 2,)


def old_view_read_later(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    before = a.clone().view(2, 160)
    a.index_copy_(2, p, n)
    return before * 2, a.sum()


def old_read_earlier_and_used_later(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    before = torch.exp(a)
    a.index_copy_(2, p, n)
    return before + a, a.sum()


def new_entries_from_the_cache(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    a.index_copy_(2, p, a[:, :, :2].flip(2))
    return (a + n.sum(),)


def twice(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    a.index_copy_(2, p, n)
    middle = a.sum()
    a.index_copy_(2, p.flip(0), n * 2)
    return middle, a.sum()


def update_of_a_constant(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    fresh = torch.zeros(1, 2, 10, 16)
    return updated(fresh, p, n), updated(torch.ones(1, 2, 10, 16) * 3, p, n), a + 1


def update_of_a_parameter(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    return updated(CONSTANT, p, n), updated(CONSTANT.view(1, 2, 20, 16), p + 10, n), a + 1


def constants(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    return torch.zeros(3), torch.arange(4), torch.tensor([1.0, 2.0]), torch.full((2, 2), 5), torch.zeros(0), a + 1


def constants_like_the_input(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    new = torch.zeros_like(a), torch.ones_like(n) + 1, torch.full_like(p, 3), a.new_zeros(3), a.new_full((2,), 4.0)
    sizes = torch.arange(a.shape[2]), torch.tensor(a.shape), torch.ones(a.shape).view(-1)
    return *new, *sizes, torch.zeros_like(a)[0].to(torch.float64), a + 1


def update_of_a_constant_like_the_input(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    return updated(torch.zeros_like(a), p, n), updated(torch.full_like(a, 2).view(1, 2, 10, 16), p, n)


def copies(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    b = a + 1
    return b, b.clone(), b.to(torch.float32, copy=True), torch.cat([b]), b.contiguous().clone(), n.clone(), n.clone()


def copy_of_a_constant(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    return CONSTANT.clone(), CONSTANT.view(-1).clone(), CONSTANT.to(torch.float32, copy=True)


def the_input(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
    return a, a.view(-1), a.view(320, 1)[:, 0], n + 1


@pytest.mark.parametrize(
    "function",
    [
        in_place,
        in_place_of_a_view,
        old_view_read_later,
        old_read_earlier_and_used_later,
        new_entries_from_the_cache,
        twice,
        update_of_a_constant,
        update_of_a_parameter,
        constants,
        constants_like_the_input,
        update_of_a_constant_like_the_input,
        copies,
        copy_of_a_constant,
        the_input,
    ],
)
def test_updates_and_results_are_eagers(function: Callable[..., Any]):
    before = CONSTANT.clone()
    agree(function, function.__name__)
    assert torch.equal(CONSTANT, before)


def test_results_are_not_the_parameters():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4), requires_grad=False)
            self.register_buffer("cache", torch.randn(1, 2, 10, 16))

        def forward(self, p: Tensor, n: Tensor) -> tuple[Tensor, ...]:
            cache: Any = self.cache
            return self.weight.clone(), self.weight.t().clone(), updated(cache.view(1, 2, 10, 16), p, n)

    model: Any = Model()
    weight, cache = model.weight.clone(), model.cache.clone()
    fast: Any = torch.compile(model, backend="lutra")
    for _ in range(2):
        p, n = torch.randperm(10)[:2], torch.randn(1, 2, 2, 16)
        with torch.no_grad():
            got = fast(p, n)
            torch.testing.assert_close(got, model(p, n))
            for result in got:
                result.fill_(9)
        assert torch.equal(model.weight, weight) and torch.equal(model.cache, cache)


def test_inputs_in_all_kinds_of_memory_are_read_right():
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return x + y, x @ y.t(), torch.softmax(x, -1), x.sum(0), y

    fast = torch.compile(function, backend="lutra", dynamic=False)
    base = torch.randn(2, 130)
    same = torch.randn(8, 8)
    pairs = {
        "compact": (same.clone(), same.clone()),
        "the same twice": (same, same),
        "overlapping": (base.view(-1)[:64].view(8, 8), base.view(-1)[8:72].view(8, 8)),
        "misaligned": (base.view(-1)[1:65].view(8, 8), base.view(-1)[3:67].view(8, 8)),
        "strided": (base.view(-1)[:256].view(16, 16)[::2, ::2], same.t()),
        "expanded": (torch.randn(8, 1).expand(8, 8), torch.randn(8).expand(8, 8)),
        "scalar": (torch.tensor(3.0).expand(8, 8), same[:, :1].expand(8, 8)),
    }
    with torch.no_grad():
        for name, (x, y) in pairs.items():
            before = x.clone(), y.clone()
            torch.testing.assert_close(fast(x, y), function(x, y), msg=f"{name}: {{}}".format)
            assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_a_cache_at_any_place_is_updated():
    fast = torch.compile(in_place, backend="lutra")
    whole, reference = torch.zeros(2, 1, 2, 10, 33), torch.zeros(2, 1, 2, 10, 33)
    for view in (lambda t: t[0, ..., :16], lambda t: t[1, ..., 1:17], lambda t: t.view(-1)[1:321].view(1, 2, 10, 16)):
        p, n = torch.randperm(10)[:2], torch.randn(1, 2, 2, 16)
        with torch.no_grad():
            torch.testing.assert_close(fast(view(whole), p, n), in_place(view(reference), p, n))
        assert torch.equal(whole, reference)


def test_a_cache_is_updated_without_a_copy():
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cache", torch.zeros(1, 2, 10, 16))
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, p: Tensor, n: Tensor, viewed: bool) -> Tensor:
            cache: Any = self.cache
            (cache.view(1, 2, 10, 16) if viewed else cache).index_copy_(2, p, n * self.scale)
            return cache.sum()

    for viewed in (False, True):
        torch._dynamo.reset()
        model: Any = Model()
        fast: Any = torch.compile(model, backend="lutra")
        with torch.no_grad():
            fast(torch.tensor([3]), torch.ones(1, 2, 1, 16), viewed)
        assert model.cache[:, :, 3].eq(1).all() and model.cache.sum() == 32
        assert not [k for k in lutra.report(fast).graphs[-1].kernels if "copy" in k]
