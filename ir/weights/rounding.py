"""Round-to-nearest quantisation of a weight matrix, with optional search of each group's scale and zero point.

Scales are rounded to float16, their stored form, before codes are computed, so that codes are nearest to what kernels
use. This is the reference; `codegen/kernels/cpu/rounding.py` computes the same, fast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import QuantizationError
from .formats import QuantizedWeight, WeightFormat

_BLOCK_ELEMENTS = 1 << 18
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
_FITS = 2
SMALLEST_SCALE, LARGEST_SCALE = 6.104e-05, 65504.0
"""float16's normal numbers: an all-zero group needs some scale, because codes are relative to it."""
SMALLEST_SPREAD = 0.1
"""Of the codes of a group that a scale can be fitted to, as a sum of squares about their mean: two different ones have
0.5."""

Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes uint8, scales float16, zero points float16 or None."""


@dataclass(frozen=True)
class RoundToNearest:
    """A weight `[N, K]` (floating point) -> `QuantizedWeight` in `format`.

    range_search: per group, the least squared error of the candidates of `shrinks` and, with zero points, of `fits`
    steps from the best of them: each takes the scale and zero point that bring the codes before it closest to the
    weights. (Without zero points such steps change perplexity either way by under 1 %.)"""

    format: WeightFormat
    range_search: bool = False

    @property
    def shrinks(self) -> tuple[float | None, ...]:
        """Candidate ranges, in the order in which they are tried, as a share of the group's largest magnitude (or of
        its min-max range). None: a scale from the mean magnitude, the default of 1 bit (+-mean) and of ternary
        (BitNet b1.58's absmean)."""
        of_mean = self.format.scheme == "ternary" or (self.format.bits == 1 and self.format.scheme == "symmetric")
        if not self.range_search:
            return (None,) if of_mean else (1.0,)
        return (*_SHRINK, None) if of_mean else _SHRINK

    @property
    def fits(self) -> int:
        """Steps of least squares that follow the candidates."""
        return _FITS if self.range_search and self.format.has_zero_points else 0

    @property
    def levels(self) -> int:
        """The highest code."""
        return 2 if self.format.scheme == "ternary" else 2**self.format.bits - 1

    def __call__(self, weight: torch.Tensor) -> QuantizedWeight:
        """Quantise; raises `QuantizationError` when the groups do not divide K or a value is not finite."""
        return quantize_by_blocks(weight, self.format, self.quantize_block)

    def quantize_block(self, block: torch.Tensor) -> Encoded:
        """What stands for `block [rows, groups, columns]`."""
        if self.format.scheme == "asymmetric":
            low, high = block.amin(-1, keepdim=True).clamp(max=0), block.amax(-1, keepdim=True).clamp(min=0)
        else:
            high = block.abs().amax(-1, keepdim=True)
            low = -high
        first, *others = self.shrinks
        best = self.encode(block, *self._scale(block, low, high, first))
        least = self._error(block, *best) if others else None
        for shrink in others:
            assert least is not None
            candidate = self.encode(block, *self._scale(block, low, high, shrink))
            best, least = self._better(block, candidate, best, least)
        fitted = best
        for _ in range(self.fits):
            assert least is not None
            fitted = self.encode(block, *self._fit(block, *fitted))
            best, least = self._better(block, fitted, best, least)
        return best

    def _better(
        self, block: torch.Tensor, candidate: Encoded, best: Encoded, least: torch.Tensor
    ) -> tuple[Encoded, torch.Tensor]:
        """Of each group the encoding with less error, and that error; `least` is what `best` has."""
        error = self._error(block, *candidate)
        better = error < least
        (q, s, z), (q_best, s_best, z_best) = candidate, best
        zero = None if z is None or z_best is None else torch.where(better, z, z_best)
        return (torch.where(better, q, q_best), torch.where(better, s, s_best), zero), torch.where(better, error, least)

    def _scale(
        self, block: torch.Tensor, low: torch.Tensor, high: torch.Tensor, shrink: float | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float16 scale and zero point of each group."""
        if shrink is None:
            mean = block.abs().mean(-1, keepdim=True)
            scale = mean if self.format.scheme == "ternary" else 2 * mean
        elif self.format.scheme == "ternary":
            scale = high * shrink
        else:
            scale = (high - low) * shrink / self.levels
        scale = scale.clamp(min=SMALLEST_SCALE, max=LARGEST_SCALE).half()
        if self.format.scheme != "asymmetric":
            return scale, None
        return scale, (-low * (shrink or 1.0) / scale.float()).clamp(max=self.levels).half()

    def _fit(
        self, block: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float16 scale and zero point that bring `codes` closest to `block`; `scale` where all codes are the same."""
        assert zero is not None
        centre, columns = self.format.implicit_zero_point, block.shape[-1]
        q = codes.float().sub_(centre)
        mean, mean_q = block.mean(-1, keepdim=True), q.mean(-1, keepdim=True)
        together = (q * block).sum(-1, keepdim=True) - columns * mean * mean_q
        spread = q.square().sum(-1, keepdim=True) - columns * mean_q.square()
        fitted = (together / spread).clamp(min=SMALLEST_SCALE, max=LARGEST_SCALE).half()
        scale = torch.where(spread > SMALLEST_SPREAD, fitted, scale)
        return scale, (centre + mean_q - mean / scale.float()).clamp(0, self.levels).half()

    def encode(self, block: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> Encoded:
        """The nearest codes to `block` for `scale` and `zero`, with these."""
        shift = self.format.implicit_zero_point if zero is None else zero.float()
        codes = block.div(scale.float()).add_(shift).round_().clamp_(0, self.levels).to(torch.uint8)
        return codes, scale, zero

    def _error(
        self, block: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> torch.Tensor:
        """Sum of squares over each group."""
        shift = self.format.implicit_zero_point if zero is None else zero.float()
        return codes.float().sub_(shift).mul_(scale.float()).sub_(block).square_().sum(-1, keepdim=True)


def quantize_by_blocks(
    weight: torch.Tensor,
    format: WeightFormat,
    quantize: Callable[[torch.Tensor], Encoded],
) -> QuantizedWeight:
    """`weight [N, K]` by blocks of rows, each `[rows, groups, columns]` in float32: memory stays bounded, and the block
    in cache. `quantize` returns codes, and scales and zero points (or None) `[rows, groups, 1]`."""
    n, k = weight.shape
    groups, whole = format.groups(k), QuantizedWeight.empty(n, k, format)
    require_finite(weight)
    rows = max(1, _BLOCK_ELEMENTS // k)
    for start in range(0, n, rows):
        block = weight[start : start + rows].detach().float().reshape(-1, groups, k // groups)
        q, s, z = quantize(block)
        zeros = None if z is None else z.squeeze(-1)
        whole.rows(start, len(q)).copy_(QuantizedWeight(q.reshape(-1, k), s.squeeze(-1), zeros, format))
    return whole


def require_finite(weight: torch.Tensor) -> None:
    """Raise `QuantizationError` for NaN or infinity: one such value would spoil its whole group."""
    weight = weight.detach()
    if weight.numel() and not all(bool(bound.isfinite()) for bound in torch.aminmax(weight)):
        bad = int((~weight.isfinite()).sum())
        raise QuantizationError(f"{bad} of {weight.numel()} values are NaN or infinite and cannot be quantised")
