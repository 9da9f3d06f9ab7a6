"""What only looks like a pattern keeps its values, exactly where it is not fused; no pattern raises."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


def rms(x: Tensor, eps: float = 0.1) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class Norms(nn.Module):
    """Norms that deviate: other axes, weights, dtypes, places of eps and of rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b, self.square = (nn.Parameter(torch.randn(n)) for n in (8, 8, 8))
        self.wide = nn.Parameter(torch.randn(8).double())
        self.short = nn.Parameter(torch.randn(8).bfloat16())
        self.one = nn.Parameter(torch.randn(1))
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        half, double = x.bfloat16(), x.double()
        mean = x.pow(2).mean(-1, keepdim=True)
        return {
            "rounded before a wide weight": self.w * rms(x).bfloat16(),
            "rounded and widened before the weight": self.w * rms(x).bfloat16().float(),
            "of what was rounded": self.w * rms(x.bfloat16().float()),
            "of what was rounded, back to its dtype": (self.w * rms(x.bfloat16().float())).bfloat16(),
            "float64": self.wide * rms(double),
            "float64 in float32": self.wide * rms(double.float()).double(),
            "float64 composite": F.rms_norm(double, (8,), self.wide, 0.1),
            "float64 layer_norm": F.layer_norm(double, (8,), self.wide, self.wide, 0.1),
            "wide weight on a half": self.w * rms(half.float()).bfloat16(),
            "half weight, no rounding before it": self.short * rms(half.float()),
            "eps outside": self.w * (x * (torch.rsqrt(mean) + 0.1)),
            "eps times a factor": self.w * (x * torch.rsqrt(torch.add(mean, 0.1, alpha=3))),
            "eps computed": self.w * (x * torch.rsqrt(mean + self.one)),
            "negative eps": self.w * (x * torch.rsqrt(mean + -1e-9)),
            "negative eps in a layer_norm": F.layer_norm(x, (8,), self.w, self.b, -1e-9),
            "mean over another axis": self.w * (x * torch.rsqrt(x.pow(2).mean(-2, keepdim=True) + 0.1)),
            "mean over two axes": self.w * (x * torch.rsqrt(x.pow(2).mean((-1, -2), keepdim=True) + 0.1)),
            "mean in float64": self.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True, dtype=torch.double) + 0.1)),
            "cube": self.w * (x * torch.rsqrt(x.abs().pow(3).mean(-1, keepdim=True) + 0.1)),
            "offset of the weight": (1 + self.w) * rms(x),
            "a weight for all": self.one * rms(x),
            "a matrix of weights": self.matrix * rms(x),
            "a weight of the rows": self.w[:, None] * rms(x),
            "squares of another": self.w * (x * torch.rsqrt((x + 1).pow(2).mean(-1, keepdim=True) + 0.1)),
            "layer_norm of two axes": F.layer_norm(x, (8, 8), self.matrix, None, 0.1),
            "layer_norm without a weight": F.layer_norm(x, (8,), None, self.b, 0.1),
            "layer_norm of a half under wide weights": F.layer_norm(half, (8,), self.w, self.b, 0.1),
            "rms_norm without a weight": F.rms_norm(x, (8,), None, 0.1),
            "rms_norm without eps": F.rms_norm(x, (8,), self.w),
        }


class Gates(nn.Module):
    """Gates of other dtypes, shapes and functions."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        whole, half, scalar = (x * 3).to(torch.int32), x.bfloat16(), x[0, 0, 0]
        return {
            "float64": F.silu(x.double()) * x.double(),
            "integers": F.relu(whole) * whole,
            "no dimensions": F.silu(scalar) * scalar,
            "broadcast": F.silu(x[:, :1]) * x,
            "promotion": F.silu(half) * x,
            "a factor of the exponent": x * torch.sigmoid(1.702 * x) * x,
            "clamped": F.silu(x.clamp(max=0.5)) * x.clamp(-0.5, 0.5),
            "tanh": F.gelu(x, approximate="tanh") * x,
            "two activations": F.silu(x) * F.gelu(x),
            "square": F.relu(x) * F.relu(x),
            "leaky": F.leaky_relu(x) * x,
        }


class Identities(nn.Module):
    """Operations that change nothing, or only look so."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        whole, zeros = (x * 3).to(torch.int32), torch.zeros_like(x).neg()
        return {
            "rounding": (x.bfloat16().float() * 2, x.half().float() + 1, x.to(torch.float8_e4m3fn).float() * 2),
            "through integers": x.int().float() * 2,
            "through bool": x.bool().float() * 2,
            "float64 and back": x.double().float() * 2,
            "sign of zero": torch.signbit(zeros + 0),
            "sign of zero, floats": torch.signbit(zeros + 0.0),
            "sign of zero, subtracted": torch.signbit(zeros - 0),
            "sign of zero under a factor": torch.signbit(torch.add(zeros, 0, alpha=2)),
            "neutral": ((x * 1 - 0) / 1).exp(),
            "neutral integers": (whole * 1 + 0 - 0).abs(),
            "promotion of integers": (whole / 1, whole + 0.0, whole * 1.0),
            "promotion of bools": ((x > 0) * 1, (x > 0) + 0),
            "a bool as a factor": whole * True,
            "dropout that is on": F.dropout(torch.ones_like(x), 1.0, training=True),
            "dropout that is off": F.dropout(x, 0.9, training=False).exp(),
            "views that change places": x.reshape(8, 2, 8).exp(),
            "expanded": x[:1].expand(2, 8, 8).exp(),
        }  # type: ignore[dict-item]


class Attentions(nn.Module):
    """Attention over batches, heads, masks, factors and dtypes that broadcast or deviate."""

    def forward(self, q: Tensor) -> dict[str, Tensor]:
        sdpa, k = F.scaled_dot_product_attention, q * 0.7 + 0.1
        keep = torch.ones(6, 6, dtype=torch.bool).tril()
        repeated = k[:, :2].unsqueeze(2).expand(2, 2, 2, 6, 8).reshape(2, 4, 6, 8)
        batches = k[:1, :2].unsqueeze(2).expand(2, 2, 2, 6, 8).reshape(2, 4, 6, 8)
        columns = k[:, :2, :1].unsqueeze(2).expand(2, 2, 2, 6, 8).reshape(2, 4, 6, 8)
        heads = sdpa(q, k, k)
        return {
            "plain": heads,
            "float64": sdpa(q.double(), k.double(), k.double()),
            "one batch of keys": sdpa(q, k[:1], k[:1]),
            "one batch of queries": sdpa(q[:1], k, k),
            "one head of keys": sdpa(q, k[:, :1], k[:, :1]),
            "one head of queries": sdpa(q[:, :1], k, k),
            "rank 3": sdpa(q[0], k[0], k[0]),
            "rank 5": sdpa(q[None], k[None], k[None]),
            "repeated heads": sdpa(q, repeated, repeated),
            "repeated keys, own values": sdpa(q, repeated, k),
            "repeated batches too": sdpa(q, batches, batches),
            "repeated positions too": sdpa(q, columns, columns),
            "grouped": sdpa(q, k[:, :2], k[:, :2], enable_gqa=True),
            "whole scale": sdpa(q, k, k, scale=2),
            "bool mask": sdpa(q, k, k, keep),
            "mask a head": sdpa(q, k, k, torch.where(keep, 0.0, -1.0) * q[0, :, :, :1]),
            "mask of one row": sdpa(q, k, k, keep[2:3]),
            "nothing to attend": sdpa(q, k, k, torch.zeros_like(keep)),
            "causal from the top left": sdpa(q[:, :, 2:4], k, k, is_causal=True),
            "other values": sdpa(q, k, k[..., :3]),
            "merged": heads.transpose(1, 2).reshape(2, 6, 32),
            "merged to other batches": heads.transpose(1, 2).reshape(1, 12, 32),
            "merged to other positions": heads.transpose(1, 2).reshape(6, 2, 32),
            "merged otherwise": heads.transpose(-1, -2).reshape(2, 6, 32),
            "not exchanged": heads.reshape(2, 6, 32),
        }


class Linears(nn.Module):
    """Products whose biases, weights or residuals are not what a linear has."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.b = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8)), torch.randn(8)
        self.one, self.stack = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(2, 8, 8))
        self.whole = nn.Parameter(torch.randint(-9, 9, (8, 8)), requires_grad=False)
        self.row = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        flat = x[0]
        return {
            "bias for all": F.linear(x, self.w, self.one),
            "bias of an activation": F.linear(x, self.w, flat[0]),
            "bias a row": torch.addmm(flat, flat, self.w),
            "bias for all in addmm": torch.addmm(self.one, flat, self.w),
            "factors": torch.addmm(self.row, flat, self.w, beta=0.5, alpha=2),
            "one vector": F.linear(flat[0], self.w) + flat[0],
            "a row of weights": F.linear(x, self.row),
            "weights in a stack": x @ self.stack,
            "weights on the left": self.w @ x,
            "weights on both sides": self.w @ self.v,
            "weights times themselves": F.linear(self.w, self.w),
            "integers": F.linear((flat * 3).long(), self.whole),
            "twice the same": F.linear(x, self.w) * F.linear(x, self.w),
            "tied, once with a bias": F.linear(x, self.w, self.row) - F.linear(x, self.w),
            "tied, both ways": F.linear(x, self.v) + x @ self.v,
            "twice itself": (y := F.linear(x, self.w)) + y,
            "residual that is broadcast": F.linear(x, self.w) + flat[:1],
            "residual that broadcasts": F.linear(flat[:1], self.w) + x,
            "residual in another dtype": F.linear(x, self.w) + x.double(),
            "subtracted": x - F.linear(x, self.w),
        }


SUBJECTS = {
    "norms": (Norms, (2, 8, 8)),
    "gates": (Gates, (2, 8, 8)),
    "identities": (Identities, (2, 8, 8)),
    "attention": (Attentions, (2, 4, 6, 8)),
    "linears": (Linears, (2, 8, 8)),
}


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_values_dtypes_and_shapes_are_those_of_eager(subject: str, interpreted: Callable[..., Any]):
    module, shape = SUBJECTS[subject]
    model, x, backend = module(), torch.randn(shape), interpreted({"fuse": {}})
    with torch.no_grad():
        expected, found = model(x), torch.compile(model, backend=backend, fullgraph=True)(x)
    wrong = {}
    for name, value in expected.items():
        for got, want in zip(tensors(found[name]), tensors(value), strict=True):
            close = 3e-6 if want.dtype in (torch.bfloat16, torch.float32) else 1e-14
            try:
                torch.testing.assert_close(got, want, rtol=close, atol=close, equal_nan=True)
            except AssertionError as error:
                wrong[name] = str(error)
    assert not wrong
