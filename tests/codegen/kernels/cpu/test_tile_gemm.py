"""Products by tiles leave the tile unit as they found it: torch's library uses it on the same threads."""

import pytest
import torch
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.ir.weights.formats import WeightFormat, dequantize

AMX = ISAS["amx"]


@pytest.mark.skipif(not AMX.available(), reason="AMX is not present")
def test_products_take_turns_with_torchs(random_weight, multiply):
    torch.manual_seed(0)
    weight = random_weight(WeightFormat(4, 128), 128, 256)
    layout = PackedLayout.create("dot", weight.format, 128, 256, AMX)
    a, b = torch.randn(64, 512).bfloat16(), torch.randn(512, 64).bfloat16()
    expected = (a.double() @ b.double()).float()
    for rows in (5, 33):
        x = torch.randn(rows, 256)
        torch.testing.assert_close((a @ b).float(), expected, rtol=2e-2, atol=0.3)
        out, _ = multiply(layout, AMX, weight, x, gemm=True)
        product = x.double() @ dequantize(weight).double().T
        assert (out.double() - product).norm() <= 0.02 * product.norm()  # activations are rounded to int8


@pytest.mark.skipif(not AMX.available(), reason="AMX is not present")
@pytest.mark.parametrize("m", [1, 15, 16, 17, 31, 255, 256, 257, 272])
def test_rows_that_chunks_share_are_counted_once(random_weight, multiply, emulate, m):
    weight = random_weight(WeightFormat(2, 64, "asymmetric"), 64, 128)
    layout = PackedLayout.create("lookup", weight.format, 64, 128, AMX)
    out, activations = multiply(layout, AMX, weight, torch.randn(m, 128), gemm=True)
    expected = emulate(layout, weight, *activations, family="dot")
    assert (out.double() - expected).norm() <= 1e-5 * expected.norm()
