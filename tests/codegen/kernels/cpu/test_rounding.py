"""The quantising kernel computes what its reference defines."""

import pytest
import torch
from lutra.codegen.kernels.cpu import rounding
from lutra.codegen.kernels.cpu.rounding import round_to_nearest
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest

FORMATS = [
    WeightFormat(bits, group, scheme)
    for group in (32, 128, PER_CHANNEL)
    for bits, scheme in [
        *((b, s) for b in (1, 2, 3, 4, 8) for s in ("symmetric", "asymmetric")),
        (2, "ternary"),
    ]
]
every_format = pytest.mark.parametrize("format", FORMATS, ids=WeightFormat.describe)


@pytest.fixture(autouse=True)
def no_reference(monkeypatch):
    """The kernel must do it by itself."""
    monkeypatch.setattr(RoundToNearest, "quantize_block", None)
    yield
    monkeypatch.undo()


def reference(weight, rule):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundToNearest, "quantize_block", ORIGINAL)
        return rule(weight)


ORIGINAL = RoundToNearest.quantize_block


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("search", [False, True])
def test_scales_and_codes_are_the_references(format, dtype, search):
    rule = RoundToNearest(format, search)
    weight = (torch.randn(37, 256) * torch.logspace(-3, 2, 37)[:, None]).to(dtype)
    weight[3] = 0
    weight[5, 200] = 100
    got, expected = round_to_nearest(weight, rule), reference(weight, rule)
    # Means are summed in another order, and so are errors: now and then the next scale, or the next range, is taken.
    same = (got.scales == expected.scales).float().mean()
    assert same > 0.97
    torch.testing.assert_close(
        got.scales.float(), expected.scales.float(), rtol=2**-10 if not search else 0.6, atol=1e-7
    )
    if same == 1:
        assert torch.equal(got.codes, expected.codes)
    errors = [(dequantize(q) - weight.float()).square().sum() for q in (got, expected)]
    torch.testing.assert_close(*errors, rtol=1e-3, atol=0)


@pytest.mark.parametrize("columns", [16, 48, 100])
def test_groups_of_other_sizes(columns, monkeypatch):
    monkeypatch.setattr(RoundToNearest, "quantize_block", ORIGINAL)
    rule = RoundToNearest(WeightFormat(4, PER_CHANNEL), True)
    weight = torch.randn(5, columns)
    got, expected = round_to_nearest(weight, rule), rule(weight)
    assert torch.equal(got.codes, expected.codes) and torch.equal(got.scales, expected.scales)


def test_weights_that_are_not_contiguous_are_read_as_they_are():
    rule = RoundToNearest(WeightFormat(4, 32))
    weight = torch.randn(64, 40).t()
    assert torch.equal(round_to_nearest(weight, rule).codes, reference(weight, rule).codes)


def test_extreme_magnitudes_stay_finite():
    for magnitude in (1e-30, 1e30):
        weight = torch.randn(3, 64) * magnitude
        result = round_to_nearest(weight, RoundToNearest(WeightFormat(4, 32, "asymmetric"), True))
        assert dequantize(result).isfinite().all()


def test_errors_are_the_references():
    with pytest.raises(QuantizationError, match="does not divide"):
        round_to_nearest(torch.randn(2, 96), RoundToNearest(WeightFormat(4, 128)))
    spoilt = torch.ones(3, 64)
    spoilt[2, 3] = torch.nan
    with pytest.raises(QuantizationError, match="1 of 192 values"):
        round_to_nearest(spoilt, RoundToNearest(WeightFormat(4, 32)))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_parts_are_quantised_into_rows_of_one_weight(scheme):
    rule = RoundToNearest(WeightFormat(4, 32, scheme), True)
    parts = [torch.randn(n, 96) for n in (3, 1, 70)]
    got, expected, first = QuantizedWeight.empty(74, 96, rule.format), round_to_nearest(torch.cat(parts), rule), 0
    for part in parts:
        round_to_nearest(part, rule, got.rows(first, len(part)))
        first += len(part)
    assert torch.equal(got.codes, expected.codes) and torch.equal(got.scales, expected.scales)
    assert scheme == "symmetric" or torch.equal(got.zero_points, expected.zero_points)


def test_one_kernel_serves_all_shapes_of_a_format():
    rounding._compiled.cache_clear()
    for n, k in ((3, 64), (50, 640)):
        round_to_nearest(torch.randn(n, k), RoundToNearest(WeightFormat(2, 32)))
    assert rounding._compiled.cache_info().misses == 1
