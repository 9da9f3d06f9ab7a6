"""Which linears count as ternary weights over whole numbers, and that they keep their values."""

from typing import Any

import pytest
import torch
from torch import nn


def whole(x: torch.Tensor, most: int = 127, axis: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    scale = most / x.abs().amax(dim=axis, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-most - 1, most), scale


class Layer(nn.Module):
    """A linear in the manner of BitNet, or one that differs from it in `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.randint(-1, 2, (48, 64)).float())
        if kind == "two magnitudes":
            self.weight.data[3] *= 2
        self.bias = nn.Parameter(torch.randn(48))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if self.kind == "rounded at every call":
            weight = (weight * 0.3).round().clamp(-1, 1) * 0.7
        if self.kind == "scaled":
            weight = weight * 0.7
        if self.kind == "depends on the input":
            weight = weight * x.sign().mean()
        if self.kind == "not rounded":
            return nn.functional.linear(x.clamp(-128, 127), weight, self.bias)
        if self.kind == "whole numbers alone":
            return nn.functional.linear(whole(x)[0], weight) / whole(x)[1]
        q, scale = whole(x, 255 if self.kind == "nine bits" else 127, 0 if self.kind == "scales of columns" else -1)
        x = (q / scale).to(torch.int8).float() if self.kind == "truncated" else q / scale
        return nn.functional.linear(x, weight, self.bias)


@pytest.mark.parametrize("kind", ["stored", "scaled", "rounded at every call", "whole numbers alone"])
def test_ternary_weights_over_whole_numbers_are_recognised(interpreted: Any, kind: str):
    torch.manual_seed(0)
    model, x = Layer(kind), torch.randn(2, 3, 64)
    if kind == "rounded at every call":
        model.weight.data = torch.randn(48, 64) * 3
    backend = interpreted({"fuse": {}})
    with torch.no_grad():
        got, expected = torch.compile(model, backend=backend, dynamic=False)(x), model(x)
    assert backend.raised.changed["ternary_linear"] == 1
    assert 'lutra.activations = "integers"' in str(backend.graph.module)
    assert (got - expected).abs().max() <= 1e-6 * expected.abs().max()
    counts = backend.counts()
    backend.rewrite({"fuse": {}})
    assert backend.counts() == counts


@pytest.mark.parametrize(
    "kind", ["two magnitudes", "depends on the input", "not rounded", "nine bits", "scales of columns", "truncated"]
)
def test_what_deviates_is_left_alone(interpreted: Any, kind: str):
    torch.manual_seed(0)
    model, x = Layer(kind), torch.randn(5, 64)
    backend = interpreted({"fuse": {}})
    with torch.no_grad():
        got, expected = torch.compile(model, backend=backend, dynamic=False)(x), model(x)
    assert "ternary_linear" not in backend.raised.changed
    assert (got - expected).norm() <= 1e-6 * expected.norm()


def test_one_parameter_under_different_scales_is_two_weights(interpreted: Any):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randint(-1, 2, (48, 64)).float())
            self.small, self.large = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, scale = whole(x)
            parts = [nn.functional.linear(q / scale, self.weight * factor) for factor in (self.small, self.large)]
            return torch.cat(parts, -1)

    model, x, backend = Scaled(), torch.randn(5, 64), interpreted({"fuse": {}})
    with torch.no_grad():
        got, expected = torch.compile(model, backend=backend, dynamic=False)(x), model(x)
    assert backend.raised.changed["ternary_linear"] == 2
    assert (got - expected).norm() <= 1e-6 * expected.norm()
