"""HQQ: half-quadratic quantisation, data-free (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning
Models", 2023).

Scales or zero points that minimise `sum |W - s (q - z)|^p` with p < 1, which lets a few weights be far off where that
brings the many closer. Two steps alternate: the errors that a robust norm would rather keep are split off by
soft-thresholding, and the parameter of the group has a closed form for what is left.
"""

from dataclasses import dataclass

import torch

from ...ir.weights.formats import QuantizedWeight, WeightFormat
from ...ir.weights.rounding import LARGEST_SCALE, SMALLEST_SCALE, RoundToNearest, quantize_by_blocks


@dataclass(frozen=True)
class HalfQuadratic:
    """A weight `[N, K]` (floating point) -> `QuantizedWeight` in `format`.

    Asymmetric formats keep the scale of round-to-nearest and move the zero point, as in the paper; symmetric and
    ternary ones have no zero point to move, and their scale is fitted instead. A group keeps the best of all
    iterations, the first of which is round-to-nearest (with `range_search` its best range).
    p: the norm. beta, growth: strength of the quadratic term, and its factor an iteration, relative to the scale."""

    format: WeightFormat
    range_search: bool = False
    p: float = 0.7
    beta: float = 1.0
    growth: float = 1.05
    iterations: int = 20

    def __call__(self, weight: torch.Tensor) -> QuantizedWeight:
        """Quantise; raises `QuantizationError` when the groups do not divide K or a value is not finite."""
        return quantize_by_blocks(weight, self.format, self._quantize)

    def _quantize(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        start = RoundToNearest(self.format, self.range_search)
        codes, scale, zero = start.quantize_block(block)
        best = (codes, scale, zero)
        least = self._error(block, *best)
        beta = self.beta
        for _ in range(self.iterations):
            kept = self._shrink(block - self._values(codes, scale, zero), scale.float(), beta)
            scale, zero = self._fit(block - kept, codes, scale, zero)
            codes, scale, zero = start.encode(block, scale, zero)
            error = self._error(block, codes, scale, zero)
            better = error < least
            least = torch.where(better, error, least)
            zero_best = None if zero is None or best[2] is None else torch.where(better, zero, best[2])
            best = (torch.where(better, codes, best[0]), torch.where(better, scale, best[1]), zero_best)
            beta *= self.growth
        return best

    def _shift(self, zero: torch.Tensor | None) -> torch.Tensor | float:
        return self.format.implicit_zero_point if zero is None else zero.float()

    def _values(self, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        return (codes.float() - self._shift(zero)) * scale.float()

    def _shrink(self, error: torch.Tensor, scale: torch.Tensor, beta: float) -> torch.Tensor:
        """The part of `error` that the norm would rather keep: its proximal step, in units of the scale."""
        size = (error / scale).abs().clamp(min=1e-8)
        return error.sign() * scale * (size - size.pow(self.p - 1) / beta).clamp(min=0)

    def _fit(
        self, target: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The zero point, or without one the scale, that brings `s (q - z)` closest to `target` in least squares."""
        if zero is not None:
            highest = 2**self.format.bits - 1
            moved = (codes.float() - target / scale.float()).mean(-1, keepdim=True)
            return scale, moved.clamp(0, highest).half()
        levels = codes.float() - self._shift(None)
        square = levels.square().sum(-1, keepdim=True)
        fitted = (levels * target).sum(-1, keepdim=True) / square.clamp(min=1e-8)
        fitted = torch.where(square > 0, fitted, scale.float())
        return fitted.clamp(min=SMALLEST_SCALE, max=LARGEST_SCALE).half(), None

    def _error(
        self, block: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> torch.Tensor:
        return (self._values(codes, scale, zero) - block).abs().pow(self.p).sum(-1, keepdim=True)
