"""Reductions, scans and softmax agree with torch: NaN, infinities, half precision, float64, many terms."""

import math

import pytest
import torch
from torch import nn

NAN, INF = math.nan, math.inf

EXPRESSIONS = {
    "sum": lambda x: x.sum(-1),
    "sum kept": lambda x: x.sum((0, 2), keepdim=True),
    "sum in float64": lambda x: x.sum(1, dtype=torch.float64),
    "mean": lambda x: x.mean(1),
    "mean of all": lambda x: x.mean((0, 1, 2)),
    "max": lambda x: x.max(1).values,
    "max kept": lambda x: x.max(-1, keepdim=True).values,
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin((0, 1)),
    "softmax": lambda x: torch.softmax(x, -1),
    "softmax of rows": lambda x: torch.softmax(x, 0),
    "log_softmax": lambda x: torch.log_softmax(x, 1),
    "var": lambda x: x.var(-1),
}


def rows(dtype: torch.dtype) -> torch.Tensor:
    """Rows with one special value each, of nothing but -inf, and ordinary ones."""
    x = torch.randn(3, 7, 33)
    x[0, 0, 5], x[0, 1, 6], x[0, 2, 7], x[0, 3] = NAN, INF, -INF, -INF
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_reductions_agree_with_torch(agree, dtype: torch.dtype):
    agree(EXPRESSIONS, rows(dtype) if dtype is not torch.float64 else rows(torch.float32).double(), ulps=64)
    ordinary = torch.randn(3, 7, 33).to(dtype).abs()
    agree({name: EXPRESSIONS[name] for name in ("sum", "mean", "softmax", "sum kept", "max")}, ordinary, ulps=8)


def test_many_terms_are_summed_exactly(agree):
    ones, tenths, half = torch.ones(1, 2**25), torch.full((1, 10**7), 0.1), torch.ones(2, 1000)
    expressions = {
        "sum": lambda a, b, c: a.sum(1),
        "mean": lambda a, b, c: b.mean(1),
        "cumsum": lambda a, b, c: b[:, : 10**6].cumsum(1),
        "softmax": lambda a, b, c: torch.softmax(a, 1)[:, :10],
        "cumsum of bfloat16": lambda a, b, c: c.bfloat16().cumsum(1),
        "cumsum of float16": lambda a, b, c: c.half().cumsum(-1),
        "cumsum of rows": lambda a, b, c: c.cumsum(0),
        "cumsum of bools": lambda a, b, c: (c > 0).cumsum(1),
        "sum of bools": lambda a, b, c: (c > 0).sum(1),
        "sum of uint8": lambda a, b, c: c.to(torch.uint8).sum(1),
    }
    agree(expressions, ones, tenths, half, ulps=16)  # torch's own mean is 4 off, ours exact


class Norms(nn.Module):
    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.layer, self.rms = nn.LayerNorm(48, dtype=dtype), nn.RMSNorm(48, dtype=dtype)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer(x), self.rms(x)


def test_norms_of_float64_are_computed_in_float64(agree):
    model = Norms(torch.float64)
    agree({"layer": lambda x: model(x)[0], "rms": lambda x: model(x)[1]}, torch.randn(5, 48).double(), ulps=64)
