"""`release_weights`: originals go, and packed forms serve every further graph."""

from pathlib import Path
from typing import Any

import torch
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from torch import nn


class Pair(nn.Module):
    """Two linears over one input: one merged linear when they have the same format."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(x)


def compile_(model: nn.Module, folder: Path, *passes: Any) -> Any:
    torch._dynamo.reset()
    options = {
        "cache_dir": folder,
        "release_weights": True,
        "recipe": {"lutra": 1, "name": "r", "passes": [{"fuse": {}}, *passes]},
    }
    return torch.compile(model, backend="lutra", options=options, dynamic=False)


def test_graphs_compiled_after_the_release_use_the_packed_weights(tmp_path: Path):
    model = Pair()
    rounded = [
        dequantize(RoundToNearest(WeightFormat(bits, 32))(w)) for w, bits in ((model.a.weight, 4), (model.b.weight, 2))
    ]
    biases = [model.a.bias.detach().clone(), model.b.bias.detach().clone()]
    compiled = compile_(
        model,
        tmp_path,
        {"quantize-weights": {"bits": 4, "group_size": 32, "select": {"modules": "a"}}},
        {"quantize-weights": {"bits": 2, "group_size": 32}},
    )
    for rows in (1, 2):
        x = torch.randn(rows, 64)
        with torch.no_grad():
            outputs = compiled(x)
        with torch.no_grad():  # eager use shows at once
            assert all(layer(x).isnan().any() for layer in (model.a, model.b))
        for got, weight, bias in zip(outputs, rounded, biases, strict=True):
            expected = x @ weight.T + bias
            # Kernels quantise activations to 8 bits.
            assert (got - expected).norm() / expected.norm() < 0.02
