"""What a quantised weight *is*: one description (`WeightFormat`) and its reference semantics in torch.

A weight `W [N, K]` is split along K into groups of `group_size` columns and approximated as `W ~ s * (q - z)` with
unsigned codes `q < 2**bits` (docs/techniques.md, 1). The three schemes differ in the zero point `z` alone:

============  =====================  ====================================================================
scheme        z                      levels
============  =====================  ====================================================================
symmetric     (2**bits - 1) / 2      odd multiples of s/2: after symmetrisation z' = 0, no zero-point term
asymmetric    stored, one per group  any range [min, max] of the group
ternary       1 (codes 0, 1, 2)      {-s, 0, +s}; always two bits of code
============  =====================  ====================================================================

Symmetrisation re-reads the same codes, exactly, as sums of +-1 bit planes: `q' = 2q - (2**bits - 1)`, `s' = s / 2`,
`z' = 2z + 1 - 2**bits`. Ternary uses two planes of equal weight instead: `q - 1 = ((2*h - 1) + (2*l - 1)) / 2`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..errors import QuantizationError

Scheme = Literal["symmetric", "asymmetric", "ternary"]
BITS = (1, 2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128, 256)
PER_CHANNEL = 0
"""`group_size` that stands for one group over the whole input dimension."""


@dataclass(frozen=True)
class WeightFormat:
    """Quantisation format of one weight: `bits` a code, `group_size` columns a scale (0: per channel), `scheme`."""

    bits: int
    group_size: int = 128
    scheme: Scheme = "symmetric"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise QuantizationError(f"bits = {self.bits} is not supported: use one of {', '.join(map(str, BITS))}")
        if self.group_size not in (*GROUP_SIZES, PER_CHANNEL):
            raise QuantizationError(
                f"group_size = {self.group_size} is not supported: use one of {', '.join(map(str, GROUP_SIZES))}, "
                "or 'channel' for one scale per output channel"
            )
        if self.scheme not in ("symmetric", "asymmetric", "ternary"):
            raise QuantizationError(f"scheme = {self.scheme!r} is not one of symmetric, asymmetric, ternary")
        if self.scheme == "ternary" and self.bits != 2:
            raise QuantizationError(f"ternary codes take 2 bits, not {self.bits}")

    def groups(self, in_features: int) -> int:
        """Number of scale groups for K = `in_features`; raises `QuantizationError` when the groups do not divide K."""
        if self.group_size == PER_CHANNEL:
            return 1
        if in_features % self.group_size:
            raise QuantizationError(
                f"group_size = {self.group_size} does not divide the weight's {in_features} input features: "
                f"use one of {', '.join(str(g) for g in GROUP_SIZES if in_features % g == 0) or 'none'} or 'channel'"
            )
        return in_features // self.group_size

    def fitting(self, in_features: int) -> "WeightFormat":
        """This format with the largest groups, up to its own, that divide K = `in_features`; one scale per channel
        where none do."""
        sizes = (size for size in sorted(GROUP_SIZES, reverse=True) if size <= self.group_size)
        return replace(self, group_size=next((size for size in sizes if in_features % size == 0), PER_CHANNEL))

    def group_columns(self, in_features: int) -> int:
        """Columns that share one scale for K = `in_features`."""
        return in_features // self.groups(in_features)

    @property
    def has_zero_points(self) -> bool:
        """True when a zero point is stored per group (asymmetric)."""
        return self.scheme == "asymmetric"

    @property
    def implicit_zero_point(self) -> float:
        """The zero point of a scheme that stores none."""
        return 1.0 if self.scheme == "ternary" else (2**self.bits - 1) / 2

    @property
    def plane_weights(self) -> tuple[int, ...]:
        """Weight of each +-1 bit plane, lowest bit first, in units of `plane_scale * s`."""
        return (1, 1) if self.scheme == "ternary" else tuple(2**i for i in range(self.bits))

    def describe(self) -> str:
        """A short name that is unique per format, for kernels and caches: `s4g128`, `a2g64`, `t2gc`."""
        group = "c" if self.group_size == PER_CHANNEL else str(self.group_size)
        return f"{self.scheme[0]}{self.bits}g{group}"


@dataclass
class QuantizedWeight:
    """Codes uint8 `[N, K]`, scales float16 `[N, K / group]`, zero points like scales (asymmetric) or None."""

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    format: WeightFormat

    @classmethod
    def empty(cls, n: int, k: int, format: WeightFormat) -> "QuantizedWeight":
        """Room for a weight `[n, k]`; raises `QuantizationError` when the groups do not divide k."""
        groups = format.groups(k)
        scales, zeros = (torch.empty(n, groups, dtype=torch.float16) for _ in range(2))
        return cls(torch.empty(n, k, dtype=torch.uint8), scales, zeros if format.has_zero_points else None, format)

    def rows(self, first: int, count: int) -> "QuantizedWeight":
        """`count` rows from `first` on, in the memory of this weight."""
        chosen = slice(first, first + count)
        zeros = None if self.zero_points is None else self.zero_points[chosen]
        return QuantizedWeight(self.codes[chosen], self.scales[chosen], zeros, self.format)

    def copy_(self, other: "QuantizedWeight") -> None:
        """Take over the values of `other`, of the same shape and format."""
        self.codes.copy_(other.codes)
        self.scales.copy_(other.scales)
        if self.zero_points is not None and other.zero_points is not None:
            self.zero_points.copy_(other.zero_points)


def dequantize(weight: QuantizedWeight) -> torch.Tensor:
    """`s * (q - z)` in float32 `[N, K]`: what every kernel for `weight` must compute with."""
    n, k = weight.codes.shape
    columns = weight.format.group_columns(k)
    codes = weight.codes.reshape(n, -1, columns).float()
    zero = weight.format.implicit_zero_point if weight.zero_points is None else weight.zero_points.float().unsqueeze(-1)
    return ((codes - zero) * weight.scales.float().unsqueeze(-1)).reshape(n, k)


def bit_planes(weight: QuantizedWeight) -> torch.Tensor:
    """The +-1 planes `[planes, N, K]` (int8) of the symmetrised re-interpretation, lowest plane first.

    Ternary codes 0, 1, 2 become the planes (-1, -1), (+1, -1), (+1, +1)."""
    codes = weight.codes
    if weight.format.scheme == "ternary":
        planes = torch.stack([codes >= 1, codes >= 2])
    else:
        planes = torch.stack([(codes >> i) & 1 for i in range(weight.format.bits)])
    return planes.to(torch.int8) * 2 - 1


def symmetrized_zero_points(weight: QuantizedWeight) -> torch.Tensor | None:
    """`z' = 2z + 1 - 2**bits` in float32 `[N, groups]`, or None where it is identically zero."""
    if weight.zero_points is None:
        return None
    return 2 * weight.zero_points.float() + 1 - 2**weight.format.bits
