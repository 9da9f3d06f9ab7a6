"""Round-to-nearest: codes in range, errors within half a step, range search never worse, extreme groups."""

from dataclasses import replace

import pytest
import torch
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest

FORMATS = [
    WeightFormat(bits, group, scheme)
    for group in (32, 64, 0)
    for bits, scheme in [
        *((b, s) for b in (1, 2, 3, 4, 8) for s in ("symmetric", "asymmetric")),
        (2, "ternary"),
    ]
]
every_format = pytest.mark.parametrize("format_", FORMATS, ids=lambda f: f.describe())


@every_format
@pytest.mark.parametrize("search", [False, True])
def test_shapes_dtypes_and_ranges(format_: WeightFormat, search: bool):
    weight = torch.randn(6, 128) * torch.logspace(-3, 3, 6)[:, None]
    result = RoundToNearest(format_, search)(weight)
    groups = format_.groups(128)
    assert result.codes.dtype == torch.uint8 and result.codes.shape == (6, 128)
    assert int(result.codes.max()) <= (2 if format_.scheme == "ternary" else 2**format_.bits - 1)
    assert result.scales.dtype == torch.float16 and result.scales.shape == (6, groups)
    assert torch.all(result.scales > 0) and torch.all(result.scales.isfinite())
    assert (result.zero_points is not None) == (format_.scheme == "asymmetric")
    if result.zero_points is not None:
        assert result.zero_points.dtype == torch.float16 and result.zero_points.shape == (6, groups)


FULL_RANGE = [f for f in FORMATS if f.scheme != "ternary" and (f.bits, f.scheme) != (1, "symmetric")]
"""Formats whose levels span the group's range; those of the others come from the mean magnitude."""


@pytest.mark.parametrize("format_", FULL_RANGE, ids=lambda f: f.describe())
def test_errors_are_at_most_half_a_step(format_: WeightFormat):
    weight = torch.randn(5, 128)
    result = RoundToNearest(format_)(weight)
    step = result.scales.float().repeat_interleave(128 // result.scales.shape[1], 1)
    # float16 scales reach 2^-11 relative less far, times up to 2^bits steps; zero points are rounded as well.
    slack = 2**format_.bits * 2**-10
    assert torch.all((dequantize(result) - weight).abs() <= step * (0.5 + slack))


@every_format
def test_codes_are_nearest_for_the_stored_scale(format_: WeightFormat):
    weight = torch.randn(4, 64)
    result = RoundToNearest(format_)(weight)
    error = (dequantize(result) - weight).abs()
    highest = 2 if format_.scheme == "ternary" else 2**format_.bits - 1
    for shift in (-1, 1):
        moved = (result.codes.int() + shift).clamp(0, highest).to(torch.uint8)
        other = dequantize(replace(result, codes=moved))
        assert torch.all((other - weight).abs() >= error - 1e-6)


@every_format
def test_range_search_is_never_worse_in_any_group(format_: WeightFormat):
    weight = torch.randn(8, 128)
    weight[:, ::17] *= 6  # outliers make it worth while
    groups = format_.groups(128)

    def errors(search: bool) -> torch.Tensor:
        difference = dequantize(RoundToNearest(format_, search)(weight)) - weight
        return difference.reshape(8, groups, -1).square().sum(-1)

    assert torch.all(errors(True) <= errors(False) * (1 + 1e-5))
    if format_.bits in (2, 3):
        assert errors(True).sum() < errors(False).sum()


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "ternary"])
def test_groups_of_zeros_stay_next_to_zero(scheme: str):
    weight = torch.zeros(3, 64)
    weight[1] = 1.0
    for search in (False, True):
        restored = dequantize(RoundToNearest(WeightFormat(2, 32, scheme), search)(weight))  # type: ignore[arg-type]
        assert restored[[0, 2]].abs().max() <= 1e-4
        assert restored.isfinite().all()


@every_format
def test_magnitudes_beyond_float16_scales_are_clipped_not_infinite(format_: WeightFormat):
    weight = torch.randn(2, 128) * 1e7
    restored = dequantize(RoundToNearest(format_, True)(weight))
    assert restored.isfinite().all()


def test_a_one_bit_weight_is_its_sign_times_the_mean_magnitude():
    weight = torch.randn(4, 64)
    restored = dequantize(RoundToNearest(WeightFormat(1, 64))(weight))
    expected = weight.sign() * weight.abs().mean(-1, keepdim=True)
    torch.testing.assert_close(restored, expected, rtol=1e-3, atol=0)


def test_ternary_is_absmean_of_bitnet():
    weight = torch.randn(4, 64)
    scale = weight.abs().mean(-1, keepdim=True).half().float()  # codes fit the scale that is stored
    restored = dequantize(RoundToNearest(WeightFormat(2, 64, "ternary"))(weight))
    torch.testing.assert_close(restored, (weight / scale).round().clamp(-1, 1) * scale, rtol=1e-3, atol=1e-6)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    from lutra.ir.weights import rounding

    weight, format_ = torch.randn(37, 96), WeightFormat(4, 32, "asymmetric")
    whole = RoundToNearest(format_, True)(weight)
    monkeypatch.setattr(rounding, "_BLOCK_ELEMENTS", 96 * 5)
    blocked = RoundToNearest(format_, True)(weight)
    assert torch.equal(whole.codes, blocked.codes) and torch.equal(whole.scales, blocked.scales)


def test_half_precision_weights_are_rounded_from_their_own_values():
    weight = torch.randn(4, 64, dtype=torch.bfloat16)
    a, b = (RoundToNearest(WeightFormat(4, 32))(w) for w in (weight, weight.float()))
    assert torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


def test_groups_that_do_not_divide_are_an_error_that_names_the_ones_that_do():
    with pytest.raises(
        QuantizationError, match=r"group_size = 128 does not divide .* 96 .* use one of 32 or 'channel'"
    ):
        RoundToNearest(WeightFormat(4, 128))(torch.randn(2, 96))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float):
    weight = torch.randn(4, 64)
    weight[2, 3] = value
    with pytest.raises(QuantizationError, match="1 of 256 values are NaN or infinite"):
        RoundToNearest(WeightFormat(4, 32))(weight)


@pytest.mark.parametrize("bits", [2, 4])
def test_zero_points_are_fitted_beyond_the_best_range(bits: int, monkeypatch: pytest.MonkeyPatch):
    weight = torch.randn(16, 128) + 0.1
    rule = RoundToNearest(WeightFormat(bits, 64, "asymmetric"), True)
    fitted = (dequantize(rule(weight)) - weight).reshape(16, 2, -1).square().sum(-1)
    monkeypatch.setattr(RoundToNearest, "fits", 0)
    searched = (dequantize(rule(weight)) - weight).reshape(16, 2, -1).square().sum(-1)
    assert torch.all(fitted <= searched) and fitted.sum() < 0.98 * searched.sum()
