"""Round-to-nearest quantisation of a weight matrix, with optional search of each group's range.

Scales are rounded to float16, their stored form, before codes are computed, so that codes are nearest to what kernels
use. Work goes row block by row block: memory stays bounded and the block in cache.
"""

import torch

from ..ir.quantization import QuantizedWeight, WeightFormat

_BLOCK_ELEMENTS = 1 << 18
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
"""Candidate ranges, as a share of the group's largest magnitude (or of its min-max range)."""


def round_to_nearest(weight: torch.Tensor, format_: WeightFormat, range_search: bool = False) -> QuantizedWeight:
    """Quantise `weight [N, K]` (floating point).

    `range_search`: per group, the range of `_SHRINK` with the least squared error.
    Raises `QuantizationError` when the groups do not divide K."""
    n, k = weight.shape
    groups = format_.groups(k)
    codes = torch.empty(n, k, dtype=torch.uint8)
    scales = torch.empty(n, groups, dtype=torch.float16)
    zeros = torch.empty(n, groups, dtype=torch.float16) if format_.has_zero_points else None
    rows = max(1, _BLOCK_ELEMENTS // k)
    for start in range(0, n, rows):
        block = weight[start : start + rows].detach().float().reshape(-1, groups, k // groups)
        q, s, z = _quantize(block, format_, range_search)
        codes[start : start + rows] = q.reshape(-1, k)
        scales[start : start + rows] = s.squeeze(-1)
        if zeros is not None and z is not None:
            zeros[start : start + rows] = z.squeeze(-1)
    return QuantizedWeight(codes, scales, zeros, format_)


def _quantize(
    block: torch.Tensor, format_: WeightFormat, search: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes uint8, scales float16, zero points float16 or None for `block [rows, groups, columns]`."""
    if format_.scheme == "asymmetric":
        low, high = block.amin(-1, keepdim=True), block.amax(-1, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
    else:
        high = block.abs().amax(-1, keepdim=True)
        low = -high
    if not search:
        return _encode(block, *_scale(block, low, high, _default_shrink(format_), format_), format_)
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None
    least: torch.Tensor | None = None
    for shrink in (*_SHRINK, _default_shrink(format_)):
        q, s, z = _encode(block, *_scale(block, low, high, shrink, format_), format_)
        zero = z.float() if z is not None else format_.implicit_zero_point
        error = (q.float().sub_(zero).mul_(s.float()).sub_(block)).square_().sum(-1, keepdim=True)
        if best is None or least is None:
            best, least = (q, s, z), error
            continue
        better = error < least
        least = torch.where(better, error, least)
        z_best = torch.where(better, z, best[2]) if z is not None and best[2] is not None else None
        best = (torch.where(better, q, best[0]), torch.where(better, s, best[1]), z_best)
    assert best is not None
    return best


def _default_shrink(format_: WeightFormat) -> float | None:
    """None: a scale from the mean magnitude, which 1-bit (+-mean) and ternary (BitNet b1.58's absmean) take."""
    return None if format_.scheme == "ternary" or (format_.bits == 1 and format_.scheme == "symmetric") else 1.0


def _scale(
    block: torch.Tensor, low: torch.Tensor, high: torch.Tensor, shrink: float | None, format_: WeightFormat
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float16 scale and zero point of each group."""
    if shrink is None:
        mean = block.abs().mean(-1, keepdim=True)
        scale = mean if format_.scheme == "ternary" else 2 * mean
    elif format_.scheme == "ternary":
        scale = high * shrink
    else:
        scale = (high - low) * shrink / (2**format_.bits - 1)
    # Not below float16's least normal number: an all-zero group needs some scale, and codes are relative to it.
    scale = scale.clamp(min=6.104e-05, max=65504.0).half()
    if format_.scheme != "asymmetric":
        return scale, None
    return scale, (-low * (shrink or 1.0) / scale.float()).half()


def _encode(
    block: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, format_: WeightFormat
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    shift = zero.float() if zero is not None else format_.implicit_zero_point
    levels = 2 if format_.scheme == "ternary" else 2**format_.bits - 1
    codes = block.div(scale.float()).add_(shift).round_().clamp_(0, levels).to(torch.uint8)
    return codes, scale, zero
