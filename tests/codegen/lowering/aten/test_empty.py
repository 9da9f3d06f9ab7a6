"""Tensors without elements, of sizes known when compiling and not: eager's shapes, and the next call is right."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


class Block(nn.Module):
    """What a transformer's layer is made of, on `[..., 64]`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer_norm = nn.RMSNorm(64), nn.LayerNorm(64)
        self.gate, self.up = nn.Linear(64, 128, bias=False), nn.Linear(64, 128, bias=False)
        self.down = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.norm(x)
        h = self.down(F.silu(self.gate(h)) * self.up(h)) + x
        q = h.unflatten(-1, (4, 16)).transpose(-3, -2)
        q = q if q.dim() == 4 else q[None]
        attended = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        return h, self.layer_norm(h), attended, h.softmax(-1), h.cumsum(-1), h.sum(-1), h[..., :0], h[..., :0].sum(-1)


@pytest.mark.parametrize("recipe", ["none", "w8", "w2-lut"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_block_without_rows_has_eagers_shapes(recipe: str, dynamic: bool):
    torch._dynamo.reset()
    model = Block().eval()
    fast: Any = torch.compile(model, backend="lutra", dynamic=dynamic, options={"recipe": recipe})
    with torch.no_grad():
        for shape in ((0, 64), (2, 0, 64), (3, 64), (0, 4, 64), (2, 4, 64)):
            x = torch.randn(shape)
            got, expected = fast(x), model(x)
            assert [(t.shape, t.dtype) for t in got] == [(t.shape, t.dtype) for t in expected]
            if recipe == "none":
                torch.testing.assert_close(got, expected)
            elif x.numel():
                assert (got[0] - expected[0]).norm() < 0.5 * expected[0].norm()


@pytest.mark.parametrize("dynamic", [False, True])
def test_operators_on_empty_tensors_agree_with_eager(dynamic: bool):
    def function(x: Tensor, table: Tensor, i: Tensor) -> tuple[Tensor, ...]:
        return (
            x.reshape(-1, 2) * 2,
            x.reshape(x.shape[0], 2, 2) + 1,
            torch.cat([x, x[:0]]),
            torch.stack([x, x + 1]),
            F.embedding(i, table),
            table[i],
            table.gather(0, i[:, None]),
            table.index_copy(0, i, table[: i.shape[0]]),
            x @ table.t(),
            x.cos(),
            x.sum(0),
            x.mean(1),
            (x > 0).float(),
            torch.zeros(0, 3) + 1,
            x.new_zeros(0),
            F.one_hot(i, 6),
            x.flatten().roll(1),
            x.t().contiguous(),
        )

    torch._dynamo.reset()
    fast = torch.compile(function, backend="lutra", dynamic=dynamic)
    table = torch.randn(6, 4)
    with torch.no_grad():
        for n in (0, 3):
            arguments = torch.randn(n, 4), table, torch.randperm(6)[:n]
            torch.testing.assert_close(fast(*arguments), function(*arguments))
