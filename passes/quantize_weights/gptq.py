"""GPTQ: each column's rounding error is made up for by the columns that are not rounded yet (Frantar, Ashkboos, Hoefler
and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023).

What is minimised is the error of the product on calibration inputs X, `tr((W - Q) H (W - Q)^T)` with `H = X^T X`. With
U the upper Cholesky factor of the inverse of H, rounding column j with error `e = (w_j - q_j) / U_jj` changes the
columns behind it by `-e U_j,`.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ...ir.weights.formats import QuantizedWeight, WeightFormat
from ...ir.weights.rounding import RoundToNearest, require_finite

_BLOCK_COLUMNS = 128
"""Columns whose corrections are applied at once to all columns behind them."""


@dataclass(frozen=True)
class Gptq:
    """A weight `[N, K]` (floating point) -> `QuantizedWeight` in `format`.

    gram: `X^T X` of its calibration inputs, float32 `[K, K]`; inputs: a name for these. damping: share of the mean
    diagonal that is added to all of it. Scales and zero points of a group are those of round-to-nearest (with
    `range_search` its best range) for the weights as they are when the first column of the group is reached."""

    format: WeightFormat
    gram: torch.Tensor = field(repr=False, compare=False)
    range_search: bool = False
    damping: float = 0.01
    inputs: str = ""

    def __call__(self, weight: torch.Tensor) -> QuantizedWeight:
        """Quantise; raises `QuantizationError` when the groups do not divide K or a value is not finite."""
        n, k = weight.shape
        groups = self.format.groups(k)
        require_finite(weight)
        rule, columns = RoundToNearest(self.format, self.range_search), k // groups
        left = weight.detach().float().clone()
        factor, unused = _factor(self.gram, self.damping)
        left[:, unused] = 0  # inputs that are always zero: nothing is lost, and other weights share their group's range
        codes = torch.empty(n, k, dtype=torch.uint8)
        scales = torch.empty(n, groups, dtype=torch.float16)
        zeros = torch.empty(n, groups, dtype=torch.float16) if self.format.has_zero_points else None
        scale = zero = None
        for first in range(0, k, _BLOCK_COLUMNS):
            last = min(first + _BLOCK_COLUMNS, k)
            block, errors = left[:, first:last], torch.empty(n, last - first)
            for j in range(first, last):
                if j % columns == 0:
                    g = j // columns
                    # Corrections from this block have reached only its own columns so far.
                    group = torch.cat([block[:, j - first :], left[:, last:]], 1)[:, :columns].contiguous()
                    if columns > last - j:
                        group[:, last - j :] -= errors[:, : j - first] @ factor[first:j, last : j + columns]
                    _, scale, zero = rule.quantize_block(group[:, None])
                    scales[:, g] = scale[:, 0, 0]
                    if zeros is not None and zero is not None:
                        zeros[:, g] = zero[:, 0, 0]
                assert scale is not None
                column = block[:, j - first].clone()
                q, s, z = rule.encode(column[:, None, None], scale, zero)
                codes[:, j] = q[:, 0, 0]
                shift = self.format.implicit_zero_point if z is None else z.float()
                value = ((q.float() - shift) * s.float())[:, 0, 0]
                error = errors[:, j - first] = (column - value) / factor[j, j]
                block[:, j - first :] -= error[:, None] * factor[j, j:last][None]
            left[:, last:] -= errors @ factor[first:last, last:]
        return QuantizedWeight(codes, scales, zeros, self.format)


@lru_cache(maxsize=1)  # layers that read the same input follow each other
def _factor(gram: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """U float32 `[K, K]`, and which inputs were never other than zero (bool `[K]`)."""
    h = gram.double()
    unused = h.diagonal() == 0
    mean = h.diagonal().mean().clamp(min=1e-12)
    h = h + torch.diag(torch.where(unused, mean, damping * mean))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True).float(), unused


def output_error(weight: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """Per row, float32 `[N]`: the squared error of the product, `diag((W - Q) H (W - Q)^T)`."""
    difference = weight.float() - rounded
    return ((difference @ gram) * difference).sum(1)
