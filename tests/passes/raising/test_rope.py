"""Rotary embeddings as models write them become `lutra.rope` and round as eager does; others stay as they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

Tensor = torch.Tensor
DTYPES = (torch.float32, torch.bfloat16)


def halves(x: Tensor) -> Tensor:
    return torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)


def flipped(x: Tensor) -> Tensor:
    return torch.cat((x[..., x.shape[-1] // 2 :], -x[..., : x.shape[-1] // 2]), -1)


def adjacent(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def by(turn: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, cos, sin: x * cos.unsqueeze(1) + turn(x) * sin.unsqueeze(1)


def cohere(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return by(adjacent)(x.float(), cos, sin).to(x.dtype)


def ernie(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (t.unsqueeze(1)[..., :4].repeat_interleave(2, -1) for t in (cos, sin))
    return ((x.float() * cos) + (adjacent(x).float() * sin)).to(x.dtype)


def glm(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (t.unsqueeze(1)[..., :2].repeat_interleave(2, -1) for t in (cos, sin))
    turned, rest = x[..., :4], x[..., 4:]
    return torch.cat((turned * cos + adjacent(turned) * sin, rest), -1)


def gpt_oss(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (t[..., :4].unsqueeze(1) for t in (cos, sin))
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def deepseek(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (t[..., :4].unsqueeze(1) for t in (cos, sin))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def swapped(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return sin.unsqueeze(1) * halves(x) + cos.unsqueeze(1) * x


ROPES = {
    "halves": by(halves),
    "halves the other way round": swapped,
    "halves with the other sign": by(flipped),
    "adjacent": by(adjacent),
    "adjacent, in float32": cohere,
    "adjacent, widened after turning": ernie,
    "adjacent columns of a part": glm,
    "halves in a chunk": gpt_oss,
    "adjacent to halves": deepseek,
}
OTHERS = {
    "no turn at all": by(lambda x: x),
    "a turn of something else": lambda x, cos, sin: x * cos.unsqueeze(1) + halves(x + 1) * sin.unsqueeze(1),
    "no sign": by(lambda x: torch.cat((x[..., 4:], x[..., :4]), -1)),
    "halves with a step": by(lambda x: torch.cat((-x[..., 4:], x[..., :8:2]), -1)),
    "overlapping halves": by(lambda x: torch.cat((-x[..., 3:7], x[..., :4]), -1)),
    "halves of positions": by(lambda x: torch.cat((-x[:, :, 4:], x[:, :, :4]), 2)),
    "halves of positions beside each other": by(
        lambda x: torch.cat((-x[:, :, 4:].transpose(2, 3), x[:, :, :4].transpose(2, 3)), -1)
    ),
    "one angle for all positions": lambda x, cos, sin: by(halves)(x, cos[:, :1], sin[:, :1]),
    "one angle for all columns": lambda x, cos, sin: by(halves)(x, cos[..., :1], sin[..., :1]),
    "an angle a head": lambda x, cos, sin: x * cos[:, :4].unsqueeze(2) + halves(x) * sin[:, :4].unsqueeze(2),
    "an odd number of columns": lambda x, cos, sin: by(halves)(x[..., :7], cos[..., :7], sin[..., :7]),
    "a difference": lambda x, cos, sin: x * cos.unsqueeze(1) - halves(x) * sin.unsqueeze(1),
    "a factor": lambda x, cos, sin: torch.add(x * cos.unsqueeze(1), halves(x) * sin.unsqueeze(1), alpha=2),
    "angles of a half swapped": lambda x, cos, sin: torch.cat(
        (x[..., :4] * cos[:, None, :, :4] - x[..., 4:] * sin[:, None, :, :4],
         x[..., 4:] * sin[:, None, :, :4] + x[..., :4] * cos[:, None, :, :4]), -1
    ),
}  # fmt: skip


def arguments(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x [2, 4, 8, 8], as many positions as columns, and tables over the angles of no model."""
    return torch.randn(2, 4, 8, 8).to(dtype), torch.randn(1, 8, 8).to(dtype), torch.randn(1, 8, 8).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_form_becomes_one_operation_and_rounds_as_eager_does(dtype: torch.dtype, interpreted: Callable[..., Any]):
    def model(xs: list[Tensor], *tables: Tensor) -> tuple[Tensor, ...]:
        return tuple(rope(x, *tables) for x, rope in zip(xs, ROPES.values(), strict=True))

    backend, (_, *tables) = interpreted({"fuse": {}}), arguments(dtype)
    given = [arguments(dtype)[0] for _ in ROPES], *tables
    for name, got, expected in zip(ROPES, torch.compile(model, backend=backend)(*given), model(*given), strict=True):
        assert torch.equal(got, expected), name
    counts = backend.counts()
    assert counts["rope"] == len(ROPES)
    assert counts["aten.stack"] == counts["aten.mul.Tensor"] == 0


def test_tables_that_a_form_needs_are_made_once_for_all_layers(interpreted: Callable[..., Any]):
    def layer(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b, c, s = *x.chunk(2, -1), cos.unsqueeze(1), sin.unsqueeze(1)
        return torch.cat((a * c - b * s, b * c + a * s), -1)

    def model(xs: list[Tensor], cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        cos, sin = cos.exp(), sin.exp()
        half = cos[..., :4], sin[..., :4]
        return tuple([layer(x, *half) for x in xs] + [by(flipped)(x, cos, sin) for x in xs])

    backend, (x, *tables) = interpreted({"fuse": {}}), arguments(torch.float32)
    given = [x, x + 1, x + 2], *tables
    for got, expected in zip(torch.compile(model, backend=backend)(*given), model(*given), strict=True):
        assert torch.equal(got, expected)
    counts = backend.counts()
    assert (counts["rope"], counts["aten.cat"], counts["aten.neg"]) == (6, 2, 1)


def test_what_only_looks_like_one_stays(interpreted: Callable[..., Any]):
    def model(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(other(*given) for other in OTHERS.values())

    backend, given = interpreted({"fuse": {}}), arguments(torch.float32)
    for name, got, expected in zip(OTHERS, torch.compile(model, backend=backend)(*given), model(*given), strict=True):
        assert torch.equal(got, expected), name
    assert backend.counts()["rope"] == 0


def test_double_precision_and_wider_tables_stay(interpreted: Callable[..., Any]):
    def model(x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return by(halves)(x.double(), cos.double(), sin.double()), by(halves)(x.bfloat16(), cos, sin)

    backend, given = interpreted({"fuse": {}}), arguments(torch.float32)
    for got, expected in zip(torch.compile(model, backend=backend)(*given), model(*given), strict=True):
        assert torch.equal(got, expected)
    assert backend.counts()["rope"] == 0


def test_a_step_of_another_form_or_dtype_keeps_its_cache_updates(interpreted: Callable[..., Any]):
    def step(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Any:
        rope = cohere if cos.dtype != q.dtype else by(adjacent)
        query, key = (rope(x.transpose(1, 2), cos, sin) for x in (q, k))
        keys, values = keys.index_copy(2, at, key), values.index_copy(2, at, k.transpose(1, 2))
        return torch.nn.functional.scaled_dot_product_attention(query, keys, values), keys, values

    for wide in (False, True):
        dtype = torch.bfloat16 if wide else torch.float32
        caches = [torch.randn(2, 4, 16, 8).to(dtype) for _ in range(2)]
        q, k = (torch.randn(2, 3, 4, 8).to(dtype) for _ in range(2))
        given: Any = (q, k, torch.randn(1, 3, 8), torch.randn(1, 3, 8), *caches, torch.tensor([2, 5, 7]))
        backend = interpreted({"fuse": {}})
        for got, expected in zip(torch.compile(step, backend=backend)(*given), step(*given), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-2 if wide else 1e-5, atol=1e-2 if wide else 1e-5)
        assert backend.counts()["rope_kv_update"] == 0
        assert backend.counts()["rope"] == backend.counts()["kv_update"] == 2
