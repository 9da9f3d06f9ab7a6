"""Unpacking a weight into rows of a matrix."""

import pytest
import torch
from lutra.codegen.kernels.cpu.dequantize import dequantize_tile
from lutra.codegen.kernels.cpu.function import kernel
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat, dequantize
from tvm.script.ir_builder import tirx as T

CASES = [
    (WeightFormat(1, 32), 80, 96, torch.float32),
    (WeightFormat(2, 64, "ternary"), 64, 192, torch.bfloat16),
    (WeightFormat(2, 128, "asymmetric"), 70, 256, torch.float16),
    (WeightFormat(3, PER_CHANNEL), 80, 100, torch.bfloat16),
    (WeightFormat(4, 256, "asymmetric"), 80, 512, torch.bfloat16),
    (WeightFormat(8, 32), 64, 96, torch.float32),
]


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize(("format", "n", "k", "dtype"), CASES, ids=lambda v: getattr(v, "describe", lambda: str(v))())
def test_the_matrix_is_the_reference_rounded_once(random_weight, call, isa, family, format, n, k, dtype):
    weight = random_weight(format, n, k)
    layout = PackedLayout.create(family, format, n, k, isa)
    name, tiles = str(dtype).removeprefix("torch."), -(-n // 16)

    def body(*buffers) -> None:
        *packed, out = buffers
        with T.parallel(1, tiles) as tile:  # the first tile is left out
            dequantize_tile(layout, isa, name, packed, out, 1, tile - 1)

    function = kernel([*layout.buffers, ((16 * tiles, k), name)], body)
    out = call(function, isa, *layout.pack(weight), torch.full((16 * tiles, k), 7, dtype=dtype))
    assert (out[-16:] == 7).all()
    out = out[: n - 16]
    expected = dequantize(weight)[16:]
    # s * q - s * z in place of s * (q - z): the products' rounding is in units of s * q.
    levels = weight.scales[16:].float().repeat_interleave(format.group_columns(k), 1) * 2**format.bits
    slack = expected.abs() * torch.finfo(dtype).eps / 2 + levels * 2e-7
    assert ((out.float() - expected).abs() <= slack * 1.01).all()
