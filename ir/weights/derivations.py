"""How derived parameters are computed from others: named, hashable objects, applied to the values of their sources.

Those that round weights stand with their rules: `RoundToNearest` (`rounding.py`), the methods of
`passes/quantize_weights/`, `ParameterExpression` (`expressions.py`), what a model computes from its parameters.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..errors import ParameterError
from ..importing.foreign import encode
from .formats import QuantizedWeight

Value = torch.Tensor | QuantizedWeight


class Derivation(Hashable, Protocol):
    """A frozen dataclass whose call computes a value from those of its sources; equal ones compute the same."""

    def __call__(self, *values: Any, **none: Any) -> Value:  # typed so, it may take any number of values
        """The derived value."""
        ...


@dataclass(frozen=True)
class Concat:
    """The rows of all sources one after the other. Quantised ones have one format: each row has its own scales."""

    def __call__(self, *parts: Value) -> Value:
        quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
        if not quantized:
            return torch.cat([part for part in parts if isinstance(part, torch.Tensor)])
        n, k = sum(len(part.codes) for part in quantized), quantized[0].codes.shape[1]
        whole, first = QuantizedWeight.empty(n, k, quantized[0].format), 0
        for part in quantized:
            whole.rows(first, len(part.codes)).copy_(part)
            first += len(part.codes)
        return whole


@dataclass(frozen=True)
class Transpose:
    """A matrix `[K, N]` as `[N, K]`, contiguous."""

    def __call__(self, matrix: torch.Tensor) -> torch.Tensor:
        return matrix.t().contiguous()


@dataclass(frozen=True)
class StackedRows:
    """A stack of matrices `[E, N, K]`, or `[E, K, N]` when `transposed`, as one matrix `[E N, K]`."""

    transposed: bool = False

    def __call__(self, stack: torch.Tensor) -> torch.Tensor:
        return (stack.transpose(1, 2) if self.transposed else stack).flatten(0, 1)


@dataclass(frozen=True)
class Encode:
    """A tensor of a dtype that graphs lack, as they read it (`importing/foreign.py`)."""

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return encode(tensor)


@dataclass(frozen=True)
class Given:
    """The codes that tensor `name` came with, read when they are asked for; it has no sources."""

    name: str
    read: Callable[[], QuantizedWeight] = field(repr=False, compare=False)

    def __call__(self) -> QuantizedWeight:
        return self.read()


@dataclass(frozen=True)
class Unavailable:
    """A value that only its packed form has: `why` nobody can compute it again."""

    why: str

    def __call__(self, *values: Value) -> Value:
        raise ParameterError(self.why)
