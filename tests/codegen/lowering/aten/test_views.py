"""Views, slices, joins and ranges inside of graphs, all in few graphs, with sizes known and unknown."""

from collections.abc import Callable

import pytest
import torch

Tensor = torch.Tensor


def slices(x: Tensor) -> list[Tensor]:
    n, m = x.shape[0], x.shape[1]
    return [
        *(
            x[-10::2],
            x[-10:-2],
            x[2:100],
            x[4:2],
            x[9:],
            x[1:5:3],
            x[-1:],
            x[:, -3:-1],
            x[::7],
            x[:-9],
            x[1:, 2:, :-1:2],
        ),
        *(x[:, m - 2 :], x[n // 2 :], x[-m:], x[: m * 3], x[m * 3 :], x[: n // 2, 1:]),
        *(x.narrow(1, 1, 2), x.narrow(0, -2, 2), x.select(0, -1), x[:, 2], x[-1, 0], x[0, 0, 0], x[-n]),
        *torch.vsplit(x, [1, 2]),
        *torch.tensor_split(x, 3),
        *torch.tensor_split(x, [1, -1], 1),
        *torch.tensor_split(x, (0, 2, 9)),
        *torch.hsplit(x, [1]),
        *torch.dsplit(x, [1]),
        *(x.split(2)[1], x.split([1, n - 1])[1], x.split([1, 3], -1)[1], x.chunk(3)[-1], *x.chunk(2, -1)),
        *(x.unbind(-1)[2], *x.unbind(1), torch.unsafe_split(x, 2)[1], torch.unsafe_chunk(x, 2, -1)[1]),
    ]


def layouts(x: Tensor) -> list[Tensor]:
    return [
        *(x.permute(-1, 0, 1), x.permute(0, 1, 2), x.movedim(0, -1), x.swapaxes(0, -1), x[0].t(), x.mT, x.mH),
        *(
            x.flatten(),
            x.flatten(1),
            x.unflatten(2, (2, 2)),
            x.view(-1, x.shape[-1]),
            x.ravel(),
            x.reshape(x.shape[0], -1),
        ),
        *(
            x[None],
            x[..., None],
            x.unsqueeze(-2),
            x[:1].squeeze(0),
            x.squeeze(0),
            x[:1, :1].squeeze((0, 1)),
            x[:1].squeeze(),
        ),
        *(x[:1].expand(3, -1, -1), x.expand(2, -1, -1, -1), x[0].expand_as(x), x[:, :1].broadcast_to(x.shape)),
        *(x.view(torch.int32), x.view(torch.float16), x.unfold(0, 2, 1), x.unfold(1, 2, 2)),
        *(
            x.diagonal(),
            x.diagonal(1, 1, 2),
            torch.diag(x[:, 0, 0]),
            x.tril(),
            x.triu(1),
            x.tril(-1),
            x.tril(99),
            (x > 0).tril(),
        ),
        *(x.roll(1, 0), x.roll((1, -1), (0, 1)), x.roll(2), x.flip(0, -1), x.fliplr(), x.rot90()),
        *(x.sum().view(1), x.sum().expand(3), x.sum().reshape(1, 1), x.sum().unsqueeze(0), x.flatten()[0] * x),
    ]


def joins(x: Tensor) -> list[Tensor]:
    return [
        *(torch.cat([torch.zeros(0), x]), torch.cat([x, x.long(), x.half()]), torch.cat([x[:0], x, x[:0]])),
        *(torch.cat([x, x * 2], -1), torch.cat([x > 0, x > 1], 1), torch.cat([x > 0, x.long()], 1), torch.cat([x])),
        *(torch.stack([x, x * 2], 1), torch.stack([x, x * 2], -1), torch.hstack([x, x]), torch.dstack([x, x])),
        *(x.repeat(2, 1, 3), x.repeat(2, 1, 1, 1), x.repeat(0, 1, 1), x.tile(2), x.repeat_interleave(2, 1)),
        *(torch.stack([x.sum(), x.mean()]), torch.nn.functional.pad(x, (1, 2)), torch.nn.functional.pad(x, (-1, 0))),
        *(torch.slice_scatter(x, x[:2] * 0, 0, 1, 3), x.select_scatter(x[0] * 0, 0, 1)),
    ]


def ranges(x: Tensor) -> list[Tensor]:
    n = x.shape[0]
    return [
        *(
            torch.arange(5, 0, -1),
            torch.arange(10, -3, -4),
            torch.arange(1, 10, 3),
            torch.arange(3, 3),
            torch.arange(1, 5.5),
        ),
        *(torch.arange(0.5, 3, 0.25), torch.arange(4, dtype=torch.float32), torch.arange(0, 7, 2, dtype=torch.int32)),
        *(torch.arange(n) * 2, torch.arange(n, 0, -1), torch.arange(0, n, 2), torch.arange(5, dtype=torch.bfloat16)),
        *(
            torch.linspace(0, 1, 5),
            torch.linspace(-3, 3, 1),
            torch.zeros_like(x),
            torch.full((n, 2), 1.5),
            torch.eye(3, 4),
        ),
        *(torch.ones(3, dtype=torch.bool), x.new_full((2,), 3), torch.full((2,), 7), torch.empty(0, 3) + 1),
    ]


@pytest.mark.parametrize("function", [slices, layouts, joins, ranges])
@pytest.mark.parametrize("dynamic", [False, True])
def test_values_are_eagers(function: Callable[[Tensor], list[Tensor]], dynamic: bool):
    torch._dynamo.reset()
    # Copies: views of arguments are left to torch.
    fast = torch.compile(lambda x: [value.clone() for value in function(x)], backend="lutra", dynamic=dynamic)
    for shape in ((5, 4, 4), (7, 6, 4))[: 1 + dynamic]:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), [value.clone() for value in function(x)], equal_nan=True)


def test_a_size_has_one_form_in_all_that_is_fused():
    """TVM writes what it infers as `s + 5` and refused to fuse it with ours, `5 + s`."""

    def joined(x: Tensor) -> tuple[Tensor, ...]:
        more = torch.ones(2, 5, dtype=torch.int64)
        return torch.cat((more, x), 1).bool(), torch.cat((x, more, x), 1) * 2, torch.cat((x, x.T.reshape(2, -1)), 1) + 1

    options: dict[str, bool] = {"strict": True}
    fast = torch.compile(joined, backend="lutra", dynamic=True, options=options)  # type: ignore[arg-type]
    with torch.no_grad():
        for size in (7, 4):
            x = torch.randint(0, 2, (2, size))
            torch.testing.assert_close(fast(x), joined(x))
