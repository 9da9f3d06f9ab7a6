"""Integer products of many rows against float64: exact for the activations that they read, from either packed form."""

import pytest
import torch
from lutra.codegen.kernels.cpu.lowbit_gemm import low_bit_gemm
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat

CASES = [
    (WeightFormat(1, 32), 80, 96, 1),
    (WeightFormat(1, 128, "asymmetric"), 64, 256, 33),
    (WeightFormat(2, 64, "ternary"), 80, 192, 17),
    (WeightFormat(2, PER_CHANNEL, "ternary"), 130, 100, 9),
    (WeightFormat(2, 256, "asymmetric"), 16, 512, 8),
    (WeightFormat(3, 32, "asymmetric"), 70, 96, 4),
    (WeightFormat(3, PER_CHANNEL), 80, 160, 21),
    (WeightFormat(3, 256), 80, 256, 5),
    (WeightFormat(4, 128), 7, 384, 50),
    (WeightFormat(4, PER_CHANNEL, "asymmetric"), 80, 300, 3),
    (WeightFormat(8, 256), 64, 256, 12),
    (WeightFormat(8, 64, "asymmetric"), 80, 192, 0),
    (WeightFormat(4, 64), 70, 128, 300),  # more rows than one task takes
]


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize(
    ("format", "n", "k", "m"), CASES, ids=[f"{format.describe()}-{n}x{k}-m{m}" for format, n, k, m in CASES]
)
def test_products_are_those_of_the_activations_as_quantised(
    random_weight, multiply, emulate, isa, family, format, n, k, m
):
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    layout = PackedLayout.create(family, format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, gemm=True)
    expected = emulate(layout, weight, *activations, family="dot")
    assert (out.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("group", "n", "k", "m"), [(128, 80, 384, 17), (256, 64, 512, 3), (PER_CHANNEL, 130, 256, 40)])
def test_triples_are_unpacked_where_they_lie_in_row_order(random_weight, multiply, emulate, isa, group, n, k, m):
    format = WeightFormat(2, group, "ternary")
    if isa.order("triples", format) != "row":
        pytest.skip(f"{isa.name} looks them up for any number of rows")
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    out, activations = multiply(PackedLayout.create("triples", format, n, k, isa), isa, weight, x, gemm=True)
    layout = PackedLayout.create("dot", format, n, k, isa)
    expected = emulate(layout, weight, *activations, family="dot")
    assert (out.double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_extreme_sums_do_not_overflow(random_weight, multiply, emulate, isa, bits):
    k, n = 256, 32
    weight = random_weight(WeightFormat(bits, 256, "asymmetric"), n, k)
    weight.codes[:16] = 2**bits - 1
    x = torch.randn(6, k)
    x[0], x[1], x[2], x[3] = 5.0, -5.0, 0.0, 1e-4
    x[3, 77] = 1e4
    x[4] = torch.nn.functional.one_hot(torch.tensor(200), k)
    layout = PackedLayout.create("dot", weight.format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, gemm=True)
    expected = emulate(layout, weight, *activations)
    assert (out[2] == 0).all()
    # Float32 rounds s * (q x) and s * (z x), which may be far larger than their difference.
    terms = weight.scales.double() * (weight.codes.double() + weight.zero_points.double())
    scale = (x.double().abs() @ terms.T).clamp(min=1e-30)
    assert ((out.double() - expected).abs() / scale).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bias_and_residual_are_added_with_one_rounding_each(random_weight, multiply, emulate, isa, dtype):
    n, k, m = 72, 128, 11
    weight, x = random_weight(WeightFormat(4, 64), n, k), torch.randn(m, k).to(dtype)
    bias, residual = torch.randn(n), (torch.randn(m, n) * 10).to(dtype)
    layout = PackedLayout.create("dot", weight.format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, bias=bias, residual=residual, gemm=True)
    expected = (emulate(layout, weight, *activations).float() + bias).to(dtype) + residual
    step = torch.finfo(dtype).eps * expected.abs().double().clamp(min=1.0) + 1e-5
    assert ((out.double() - expected.double()).abs() <= 1.01 * step).all()


def test_weights_in_triples_are_refused():
    isa = ISAS["portable"]
    layout = PackedLayout.create("triples", WeightFormat(2, 128, "ternary"), 64, 128, isa)
    with pytest.raises(QuantizationError, match="looked up for any number of rows"):
        low_bit_gemm(layout, isa, "float32")
