"""GPTQ: smaller errors of the product than round-to-nearest, and the same codes where inputs do not depend on each
other."""

import pytest
import torch
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from lutra.passes.quantize_weights.gptq import Gptq, _factor, output_error

FORMATS = [
    WeightFormat(4, 64),
    WeightFormat(3, 256),
    WeightFormat(2, 32, "asymmetric"),
    WeightFormat(2, 128, "ternary"),
    WeightFormat(4, PER_CHANNEL, "asymmetric"),
]


def correlated_inputs(rows: int, k: int) -> torch.Tensor:
    return torch.randn(rows, k) @ (torch.eye(k) + 0.1 * torch.randn(k, k))


@pytest.mark.parametrize("format_", FORMATS, ids=WeightFormat.describe)
def test_the_product_on_the_calibration_inputs_is_closer(format_: WeightFormat):
    weight, x = torch.randn(48, 256), correlated_inputs(600, 256)
    gram = x.T @ x
    plain, compensated = (dequantize(rule(weight)) for rule in (RoundToNearest(format_), Gptq(format_, gram)))
    before, after = ((x @ (rounded - weight).T).norm() for rounded in (plain, compensated))
    assert after < 0.85 * before
    assert torch.allclose(output_error(weight, compensated, gram).sum().sqrt(), after, rtol=1e-3)


def test_independent_inputs_leave_nothing_to_compensate():
    weight = torch.randn(8, 256)
    for format_ in (WeightFormat(4, 64), WeightFormat(2, 128, "asymmetric")):
        assert torch.equal(Gptq(format_, torch.eye(256) * 3)(weight).codes, RoundToNearest(format_)(weight).codes)


def test_groups_that_reach_over_a_block_see_the_corrections_of_its_columns():
    """Scales are those of the weights as corrected so far, wherever the blocks of 128 columns end."""
    weight, x = torch.randn(4, 512), correlated_inputs(900, 512)
    rule = Gptq(WeightFormat(4, 256), x.T @ x)
    factor = _factor(rule.gram, rule.damping)[0]
    left, result = weight.clone(), rule(weight)
    for j in range(256):
        value = (result.codes[:, j].float() - 7.5) * result.scales[:, 0].float()
        left[:, j:] -= ((left[:, j] - value) / factor[j, j])[:, None] * factor[j, j:]
    expected = (left[:, 256:].abs().amax(1) * 2 / 15).half()
    assert torch.allclose(result.scales[:, 1].float(), expected.float(), rtol=2e-3)


def test_inputs_that_are_always_zero_and_bad_weights():
    x = correlated_inputs(300, 64)
    x[:, 7] = 0
    weight = torch.randn(8, 64)
    result = dequantize(Gptq(WeightFormat(4, 32), x.T @ x)(weight))
    assert result.isfinite().all() and ((x @ (result - weight).T).norm() / (x @ weight.T).norm()) < 0.1
    weight[0, 0] = torch.nan
    with pytest.raises(QuantizationError, match="NaN"):
        Gptq(WeightFormat(4, 32), x.T @ x)(weight)
    with pytest.raises(QuantizationError, match="does not divide"):
        Gptq(WeightFormat(4, 256), x.T @ x)(torch.randn(8, 64))
