"""Operators that read or write at given positions: eager's answer inside, its error outside, and nothing touched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend="lutra", **options)


def ids(*numbers: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype)


OPERATORS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "gather": (lambda x, i: x.gather(1, i.expand(2, -1)), 0, 5),
    "gather of rank 1": (lambda x, i: x[0].gather(0, i), 0, 5),
    "index_select": (lambda x, i: x.index_select(1, i), 0, 5),
    "take": (lambda x, i: x.take(i), -15, 15),
    "index": (lambda x, i: x[i], -3, 3),
    "index of two": (lambda x, i: x[i[:, None] % 3, i], -5, 5),
    "index behind a slice": (lambda x, i: x[:, i], -5, 5),
    "embedding": (lambda x, i: F.embedding(i, x), 0, 3),
    "one_hot": (lambda x, i: F.one_hot(i, 4) + x[:1, :1].long(), 0, 4),
    "scatter": (lambda x, i: x.scatter(1, i[None], 7.0), 0, 5),
    "scatter_add": (lambda x, i: x.scatter_add(1, i[None], x[:1, : i.shape[0]]), 0, 5),
    "index_put": (lambda x, i: x.index_put((i,), x[:1].clone()), -3, 3),
    "index_add": (lambda x, i: x.index_add(1, i, x[:, : i.shape[0]]), 0, 5),
    "index_copy": (lambda x, i: x.index_copy(1, i, x[:, : i.shape[0]]), 0, 5),
    "index_fill": (lambda x, i: x.index_fill(1, i, 2.0), -5, 5),
    "nll_loss": (lambda x, i: F.nll_loss(x[:2], i[:2]), 0, 5),
}
"""Name -> function of x `[3, 5]` and positions `[3]`, the least position and the one above the greatest."""


@pytest.mark.parametrize("name", OPERATORS)
def test_positions_inside_give_eagers_answer_and_outside_its_error(name: str):
    function, low, high = OPERATORS[name]
    fast = compiled(function)
    x = torch.randn(3, 5)
    with torch.no_grad():
        for positions in (ids(low, high - 1, 0), ids(0, 0, high - 1), ids(high - 2, low, 1)):
            torch.testing.assert_close(fast(x, positions), function(x, positions))
        before = x.clone()
        for bad in (high, low - 1, 10**12, -(10**12)):
            positions = ids(0, bad, 1)
            with pytest.raises((IndexError, RuntimeError)):
                function(x, positions)
            with pytest.raises((IndexError, RuntimeError)):
                fast(x, positions)
        assert torch.equal(x, before)
        torch.testing.assert_close(fast(x, ids(0, 1, 2)), function(x, ids(0, 1, 2)))  # it is usable afterwards


def test_gathers_of_all_shapes_and_types_agree_with_eager():
    def gathers(x: Tensor, y: Tensor, h: Tensor, i: Tensor, j: Tensor, k: Tensor) -> Any:
        return (
            x.gather(0, j[:2, :3, :1]),
            x.gather(-1, j),
            x.gather(1, j[:1]),
            y.gather(0, i),
            h.gather(1, i[None].expand(4, -1)),
            (h > 0).gather(1, i[None].expand(4, -1)[:2]),
            x[i],
            x[i[:, None], i[None]],
            x[i[:1].view(())],
            x[i[None], j[0, :2, :1]],
            x[k],
            y[j],
            (x > 0)[i],
            h[i[:, None], i],
            x.long()[i, i, i],
            y[i[:0]],
            x[i[:0], i[:0]],
            x.gather(2, j[..., :0]),
            torch.take_along_dim(x, j[..., :1], 1),
        )

    for dynamic in (False, True):
        fast = compiled(gathers, dynamic=dynamic)
        for n in (4, 7):
            x, y, h = torch.randn(4, 4, 5), torch.randn(n), torch.randn(4, 4, dtype=torch.bfloat16)
            i, j = torch.randint(0, 4, (n,)), torch.randint(0, 4, (4, 4, 3))
            with torch.no_grad():
                arguments = x, y, h, i, j, i.int()
                torch.testing.assert_close(fast(*arguments), gathers(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_embeddings_agree_with_eager(dtype: torch.dtype):
    def embeddings(table: Tensor, i: Tensor, wide: Tensor) -> Any:
        return (
            F.embedding(i, table),
            F.embedding(i, table, padding_idx=0),
            F.embedding(i[0, 0], table),
            F.embedding(i[:, :0], table),
            F.embedding(i.int(), wide.t()),
            F.embedding(i, wide.t()[:, 1:3]),
        )

    fast = compiled(embeddings)
    arguments = torch.randn(6, 3).to(dtype), torch.randint(0, 6, (2, 4)), torch.randn(5, 6).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(fast(*arguments), embeddings(*arguments), rtol=0, atol=0)
