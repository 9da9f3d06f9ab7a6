"""HQQ: never worse in its own norm than round-to-nearest, codes nearest to its parameters, outliers given up."""

import pytest
import torch
from lutra.ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from lutra.passes.quantize_weights.half_quadratic import HalfQuadratic

FORMATS = [
    WeightFormat(4, 64),
    WeightFormat(3, 32, "asymmetric"),
    WeightFormat(2, 64, "asymmetric"),
    WeightFormat(2, 128, "ternary"),
    WeightFormat(1, PER_CHANNEL),
]


def norm(weight: torch.Tensor, result: QuantizedWeight) -> float:
    return (dequantize(result) - weight).abs().pow(0.7).sum().item()


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("format_", FORMATS, ids=WeightFormat.describe)
def test_it_is_no_worse_in_its_norm_than_where_it_starts(format_: WeightFormat, search: bool):
    weight = torch.distributions.StudentT(3.0).sample((24, 128)) * 0.02
    result, start = HalfQuadratic(format_, search)(weight), RoundToNearest(format_, search)(weight)
    assert result.codes.shape == start.codes.shape and result.scales.shape == start.scales.shape
    assert (result.zero_points is None) == (format_.scheme != "asymmetric")
    assert norm(weight, result) <= norm(weight, start)
    assert format_.bits > 2 or format_.scheme == "ternary" or norm(weight, result) < 0.999 * norm(weight, start)


def test_codes_are_nearest_for_what_is_stored():
    weight = torch.randn(8, 128)
    result = HalfQuadratic(WeightFormat(3, 64, "asymmetric"))(weight)
    assert result.zero_points is not None
    shift, scale = (part.float().repeat_interleave(64, 1) for part in (result.zero_points, result.scales))
    assert torch.equal(result.codes, (weight / scale + shift).round().clamp(0, 7).to(torch.uint8))


def test_an_outlier_does_not_set_the_scale_of_its_group():
    weight = torch.randn(4, 64) * 0.01
    weight[:, 5] = 1.0
    near = (dequantize(HalfQuadratic(WeightFormat(2, 64))(weight)) - weight).abs()
    far = (dequantize(RoundToNearest(WeightFormat(2, 64))(weight)) - weight).abs()
    others = torch.arange(64) != 5
    assert near[:, others].mean() < 0.5 * far[:, others].mean()
