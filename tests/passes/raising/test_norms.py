"""Norms as models write them become `lutra.rms_norm` and round as eager does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

Tensor = torch.Tensor


def normalised(x: Tensor, inverse_root: Callable[[Tensor], Tensor] = torch.rsqrt) -> Tensor:
    wide = x.float()
    return wide * inverse_root(wide.pow(2).mean(-1, keepdim=True) + 1e-3)


class Norms(nn.Module):
    """Llama's, gpt-oss's and Gemma's, with the composite one; two weights are computed from the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v, self.u = (nn.Parameter(torch.randn(8)) for _ in range(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {
            "rounded before the weight": self.w * normalised(x).to(x.dtype),
            "rounded after the weight": (self.w * normalised(x)).to(x.dtype),
            "an offset of the weight": (normalised(x) * (1.0 + self.w.float())).type_as(x),
            "a weight of two": (normalised(x) * (self.w.float() * self.v.float())).type_as(x),
            "another weight of two": (normalised(x) * (self.w.float() * self.u.float())).type_as(x),
            "a power": self.u * normalised(x, lambda mean: torch.pow(mean, -0.5)).to(x.dtype),
            "composite": F.rms_norm(x, (8,), self.v, 1e-3),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_becomes_one_operation_and_rounds_as_eager_does(dtype: torch.dtype, interpreted: Callable[..., Any]):
    model, x, backend = Norms().to(dtype), torch.randn(2, 3, 8).to(dtype), interpreted({"fuse": {}})
    with torch.no_grad():
        expected, found = model(x), torch.compile(model, backend=backend)(x)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
        # In float32 the first two are one.
        assert backend.counts() == {"rms_norm": len(expected) - (dtype == torch.float32)}
        for parameter in model.parameters():
            parameter.add_(1)  # what is computed from parameters follows them
        expected, found = model(x), torch.compile(model, backend=backend)(x)
        assert all(torch.equal(found[name], value) for name, value in expected.items())
