"""Low-bit products against float64: close to the weight they stand for, and exact for the activations that they
read."""

import pytest
import torch
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat, dequantize
from lutra.passes.raising.ternary import MOST_COLUMNS

# Every bits x scheme, every group size, every way to treat M, edges of N and K: pairwise rather than all products.
CASES = [
    (WeightFormat(1, 32), 80, 96, 1, 1),
    (WeightFormat(1, 128, "asymmetric"), 64, 256, 4, 4),
    (WeightFormat(2, 64, "ternary"), 80, 192, 3, 3),
    (WeightFormat(2, PER_CHANNEL, "ternary"), 130, 100, 6, None),
    (WeightFormat(2, 256, "asymmetric"), 80, 512, 8, 8),
    (WeightFormat(2, 128), 96, 256, 1, None),
    (WeightFormat(3, 32, "asymmetric"), 70, 96, 4, None),
    (WeightFormat(3, PER_CHANNEL), 80, 160, 1, 1),
    (WeightFormat(4, 128), 80, 384, 5, 5),
    (WeightFormat(4, PER_CHANNEL, "asymmetric"), 80, 300, 3, 3),
    (WeightFormat(8, 256), 64, 256, 1, 1),
    (WeightFormat(8, 64, "asymmetric"), 80, 192, 9, None),
    (WeightFormat(1, 64, "asymmetric"), 330, 128, 7, None),  # six blocks of rows: two tasks, one of them not full
    (WeightFormat(4, 64), 330, 128, 5, None),
]
IDS = [f"{format.describe()}-{n}x{k}-m{static or 'any'}" for format, n, k, _, static in CASES]


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize(("format", "n", "k", "m", "static"), CASES, ids=IDS)
def test_products_are_those_of_the_dequantised_weight(
    random_weight, multiply, emulate, isa, family, format, n, k, m, static
):
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    layout = PackedLayout.create(family, format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, m=static)
    assert relative(out, emulate(layout, weight, *activations)) < 1e-5
    # Zero points away from the middle of the codes can make the exact sum small beside its terms.
    terms = x.double().norm(dim=1, keepdim=True) * dequantize(weight).double().norm(dim=1)
    exact = x.double() @ dequantize(weight).double().T
    assert (out - exact).norm() / terms.norm() < 0.012


@pytest.mark.parametrize(
    ("group", "n", "k", "m", "static"),
    [(128, 80, 256, 1, 1), (256, 130, 512, 4, 4), (PER_CHANNEL, 64, 384, 6, 6), (128, 330, 128, 5, None)],
)
def test_triples_are_the_ternary_weight(random_weight, multiply, emulate, isa, group, n, k, m, static):
    weight, x = random_weight(WeightFormat(2, group, "ternary"), n, k), torch.randn(m, k)
    layout = PackedLayout.create("triples", weight.format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, m=static)
    assert relative(out, emulate(layout, weight, *activations)) < 1e-6
    assert relative(out, x.double() @ dequantize(weight).double().T) < 0.012


def test_extreme_sums_of_triples_do_not_overflow(random_weight, multiply, emulate, isa):
    weight = random_weight(WeightFormat(2, 256, "ternary"), 64, 512)
    weight.codes[:16], weight.codes[16:32] = 2, 0
    x = torch.stack([torch.full((512,), 5.0), torch.full((512,), -5.0), torch.zeros(512), torch.full((512,), 1e-4)])
    x[3, 127] = 1e4  # in the short triple of a span
    layout = PackedLayout.create("triples", weight.format, 64, 512, isa)
    out, activations = multiply(layout, isa, weight, x, m=4)
    assert (out[2] == 0).all()
    assert (out - emulate(layout, weight, *activations)).abs().max() < 1e-5 * out.abs().max()
    assert relative(out[:2], x[:2].double() @ dequantize(weight).double().T) < 0.005


@pytest.mark.parametrize(("format", "n", "k", "m", "static"), CASES, ids=IDS)
def test_floating_point_activations_are_read_as_they_are(random_weight, multiply, isa, format, n, k, m, static):
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    x[:, 3] *= 1e4  # an outlier, which int8 would drown the others in
    layout = PackedLayout.create("dot", format, n, k, isa)
    out, _ = multiply(layout, isa, weight, x, m=static, form="float")
    assert relative(out, x.double() @ dequantize(weight).double().T) < 1e-5


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize("format", [WeightFormat(b, 256, s) for b, s in
                                    ((1, "symmetric"), (2, "ternary"), (4, "asymmetric"), (8, "symmetric"))],
                         ids=WeightFormat.describe)  # fmt: skip
def test_extreme_sums_do_not_overflow(random_weight, multiply, emulate, isa, family, format):
    k, n = 256, 64
    weight = random_weight(format, n, k)
    weight.codes[:32] = weight.codes.max()
    weight.codes[32:48] = 0
    x = torch.randn(4, k)
    x[0] = 5.0  # every int8 is 127, every table's last entry is 127
    x[1] = -5.0
    x[2] = 0.0
    x[3] = 1e-4
    x[3, 77] = 1e4
    layout = PackedLayout.create(family, format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, m=4)
    expected = emulate(layout, weight, *activations)
    assert (out[2] == 0).all()
    for row in (0, 1, 3):
        assert relative(out[row], expected[row]) < 1e-5
    assert relative(out[:2], (x[:2].double() @ dequantize(weight).double().T)) < 0.005


@pytest.mark.parametrize("family", ["lookup", "dot"])
def test_a_one_hot_input_reads_a_column(random_weight, multiply, isa, family):
    weight = random_weight(WeightFormat(4, 32, "asymmetric"), 80, 96)
    x = torch.zeros(3, 96)
    x[[0, 1, 2], [0, 50, 95]] = 1.0
    layout = PackedLayout.create(family, weight.format, 80, 96, isa)
    out, _ = multiply(layout, isa, weight, x)
    columns = dequantize(weight)[:, [0, 50, 95]].T
    assert torch.allclose(out, columns, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("with_bias", "with_residual", "static"), [(True, True, 2), (True, False, None)])
def test_bias_and_residual_are_added_with_one_rounding_each(
    random_weight, multiply, emulate, isa, dtype, with_bias, with_residual, static
):
    n, k = 80, 128
    weight, x = random_weight(WeightFormat(4, 64), n, k), torch.randn(2, k).to(dtype)
    bias = torch.randn(n) if with_bias else None
    residual = (torch.randn(2, n) * 10).to(dtype) if with_residual else None
    layout = PackedLayout.create("dot", weight.format, n, k, isa)
    out, activations = multiply(layout, isa, weight, x, m=static, bias=bias, residual=residual)
    expected = emulate(layout, weight, *activations).float()
    expected = (expected + bias).to(dtype) if bias is not None else expected.to(dtype)
    expected = expected + residual if residual is not None else expected
    # A sum next to a rounding boundary may fall on its other side: never more than one step, and rarely.
    step = torch.finfo(dtype).eps * expected.abs().double().clamp(min=1.0) + 1e-5
    assert ((out.double() - expected.double()).abs() <= 1.01 * step).all()
    assert dtype == torch.float32 or (out == expected).float().mean() > 0.97


@pytest.mark.parametrize("gemm", [False, True], ids=["packed", "gemm"])
@pytest.mark.parametrize(("n", "k", "m"), [(80, 100, 3), (64, 256, 1), (16, MOST_COLUMNS, 2)])
def test_sums_of_whole_numbers_are_exact(random_weight, multiply, isa, n, k, m, gemm):
    """Of ternary weights with scales of 1, up to the most columns that a linear may have."""
    weight = random_weight(WeightFormat(2, PER_CHANNEL, "ternary"), n, k)
    weight.scales.fill_(1)
    weight.codes[0], weight.codes[1] = 2, 0
    x = torch.randint(-128, 128, (m, k)).float()
    x[0] = -128  # with the first two rows the largest sums there are
    layout = PackedLayout.create("dot", weight.format, n, k, isa)
    out, (q, scale, total) = multiply(layout, isa, weight, x, m=None if gemm else m, form="integers", gemm=gemm)
    assert torch.equal(q[:, :k].float(), x) and (scale == 1).all() and torch.equal(total.sum(1), x.long().sum(1))
    assert torch.equal(out.double(), x.double() @ dequantize(weight).double().T)
    assert out[0, 0] == -128 * k
