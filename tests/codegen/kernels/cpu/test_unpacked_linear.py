"""Products of many rows with a packed weight, through torch's library."""

import pytest
import torch
import tvm
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.kernels.cpu.scratch_product import register
from lutra.codegen.kernels.cpu.unpacked_linear import UnpackedKnobs, unpacked_linear
from lutra.codegen.runtime.callbacks import scratch_rows
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat, dequantize

FORMATS = [
    WeightFormat(1, 32),
    WeightFormat(2, 64, "ternary"),
    WeightFormat(3, PER_CHANNEL),
    WeightFormat(4, 128, "asymmetric"),
]


SMALL = UnpackedKnobs(scratch_bytes=1 << 16)
"""A few chunks for small weights too."""


@pytest.fixture(autouse=True)
def registered():
    register()


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize("format", FORMATS, ids=WeightFormat.describe)
@pytest.mark.parametrize(("n", "m"), [(300, 5), (64, 1), (7, 33), (128, 0)])
def test_float32_products_are_those_of_the_dequantised_weight(random_weight, isa, family, format, n, m):
    k = 256
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    layout = PackedLayout.create(family, format, n, k, isa)
    function = tvm.compile(
        unpacked_linear(layout, isa, "float32", "float32", None, False, SMALL), target=isa.tvm_target()
    )
    out = torch.full((m, n), 7.0)
    function["main"](x, *layout.pack(weight), out)
    expected = x.double() @ dequantize(weight).double().T
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("residual", [False, True])
def test_bias_and_residual_are_added_with_one_rounding_each(random_weight, isa, compute, bias, residual):
    n, k, m = 200, 192, 20
    format = WeightFormat(4, 64)
    weight, x = random_weight(format, n, k), torch.randn(m, k).bfloat16()
    layout = PackedLayout.create("dot", format, n, k, isa)
    extra = [torch.randn(n).to(getattr(torch, bias))] if bias else []
    extra += [torch.randn(m, n).bfloat16()] if residual else []
    function = tvm.compile(
        unpacked_linear(layout, isa, "bfloat16", compute, bias, residual, SMALL), target=isa.tvm_target()
    )
    out = torch.full((m, n), 7.0, dtype=torch.bfloat16)
    function["main"](x.to(getattr(torch, compute)), *layout.pack(weight), *extra, out)
    matrix = dequantize(weight).to(getattr(torch, compute)).double()
    product = x.double() @ matrix.T + (extra[0].double() if bias else 0)
    expected = product.bfloat16() + (extra[-1] if residual else 0)
    terms = [product, expected.double(), *(extra[0].double().expand(m, n) for _ in range(bias is not None))]
    difference = (out.double() - expected.double()).abs()
    summing = k * 2.0**-24 * (x.double().abs() @ matrix.T.abs())  # of float32, what is left where a sum cancels
    assert (difference <= torch.stack(terms).abs().amax(0) * 2.0**-6 + summing).all()
    if compute == "float32":  # a sum next to a rounding boundary may fall on its other side
        assert (difference == 0).float().mean() > 0.98


def test_scratch_is_whole_blocks_and_bounded_where_it_can_be():
    assert scratch_rows(2048, 4) == 1024
    assert scratch_rows(8192, 4) == 256
    assert scratch_rows(1 << 20, 4) == 64
