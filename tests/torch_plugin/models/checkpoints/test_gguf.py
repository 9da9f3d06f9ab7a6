"""Blocks that `gguf` quantised come back code by code, and stand for what `gguf` computes from them."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.torch_plugin.models.checkpoints.gguf import KINDS, from_gguf

FORMATS = {
    "Q4_0": WeightFormat(4, 32, "asymmetric"),
    "Q8_0": WeightFormat(8, 32, "asymmetric"),
    "TQ2_0": WeightFormat(2, 256, "ternary"),
}


def weights(rows: int = 12, columns: int = 512) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_that_gguf_computes(kind: str):
    type_ = GGMLQuantizationType[kind]
    blocks = quantize(weights(), type_)
    weight = from_gguf(torch.from_numpy(blocks), kind)
    assert weight.format == FORMATS[kind]
    assert weight.codes.dtype == torch.uint8 and weight.codes.is_contiguous() and weight.scales.is_contiguous()
    assert weight.scales.dtype == torch.float16 and weight.scales.shape == (12, 512 // weight.format.group_size)
    assert torch.equal(dequantize(weight), torch.from_numpy(gguf.quants.dequantize(blocks, type_)))


def test_every_code_of_every_position():
    """Codes written byte by byte as ggml-common.h says."""
    codes = np.random.default_rng(1).integers(0, 16, (3, 64))
    blocks = np.zeros((3, 2, 18), np.uint8)
    for row in range(3):
        for block in range(2):
            blocks[row, block, :2] = np.array([-0.5], np.float16).view(np.uint8)
            for i in range(16):
                first = codes[row, 32 * block + i]
                blocks[row, block, 2 + i] = first | codes[row, 32 * block + 16 + i] << 4
    weight = from_gguf(torch.from_numpy(blocks.reshape(3, -1)), "Q4_0")
    assert torch.equal(weight.codes, torch.from_numpy(codes).byte())
    assert weight.zero_points is not None and (weight.zero_points == 8).all() and (weight.scales == -0.5).all()


def test_what_is_not_ternary_is_refused():
    blocks = quantize(weights(), GGMLQuantizationType.TQ2_0)
    blocks[0, 5] = 0b11
    with pytest.raises(QuantizationError, match="a TQ2_0 block holds the code 3"):
        from_gguf(torch.from_numpy(blocks), "TQ2_0")


def test_other_types_are_refused():
    with pytest.raises(QuantizationError, match="type Q6_K cannot be read without quantising again: Q4_0, Q8_0, TQ2_0"):
        from_gguf(torch.zeros(1, 210, dtype=torch.uint8), "Q6_K")
