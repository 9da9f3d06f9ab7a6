"""What passes put into the store of parameters: named objects that can be compared, whatever the derived weight."""

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import pytest
import torch
from lutra.ir.operator_call import operation_name
from torch import nn


class Kinds(nn.Module):
    """Linears that merge, a transposed weight, a norm's weight that is computed, a ternary layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 32)
        self.turned, self.scale = nn.Parameter(torch.randn(64, 32)), nn.Parameter(torch.randn(64))
        self.ternary = nn.Parameter(torch.randint(-1, 2, (32, 64)).float() * 0.7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.scale)
        step = 127 / x.abs().amax(dim=-1, keepdim=True)
        whole = (x * step).round().clamp(-128, 127) / step
        return torch.cat([self.q(x), self.k(x), x @ self.turned, nn.functional.linear(whole, self.ternary)], -1)


def symbols(backend: Any) -> Iterator[str]:
    """Of the graph's parameters, and of what they are made from."""
    left = [op.sym.value for op in backend.graph.operations if operation_name(op) == "lutra.param"]
    while left:
        yield (name := left.pop())
        derived = backend.store.derivation(name)
        left += () if derived is None else derived.sources


@pytest.mark.parametrize("quantise", [[], [{"quantize-weights": {"bits": 4, "group_size": 32, "method": "hqq"}}]])
def test_every_derived_weight_is_a_frozen_object(quantise: list[Any], interpreted: Callable[..., Any]):
    model, x, backend = Kinds(), torch.randn(3, 64), interpreted({"fuse": {}}, *quantise)
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(x)
    found = [derived.derivation for name in symbols(backend) if (derived := backend.store.derivation(name)) is not None]
    kinds = {type(derivation).__name__ for derivation in found}
    assert {"Concat", "Transpose", "ParameterExpression", "_Ternary", "_Constant"} <= kinds
    assert ("HalfQuadratic" in kinds) == bool(quantise)
    assert all(is_dataclass(derivation) and isinstance(hash(derivation), int) for derivation in found)


def test_the_rows_of_a_merged_weight_are_its_quantised_parts(interpreted: Callable[..., Any]):
    model, x = Kinds(), torch.randn(3, 64)
    backend = interpreted({"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 32}})
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(x)
    merged = next(name for name in symbols(backend) if name.startswith("{q,k}.weight@"))
    parts = backend.store.parts(merged)
    assert parts and all(part.endswith("@s4g32") for part in parts)
    codes = torch.cat([backend.store.quantized(part).codes for part in parts])
    assert torch.equal(backend.store.quantized(merged).codes, codes)
