"""AWQ layers, packed as AutoAWQ's GEMM version is described, come back code by code."""

import numpy as np
import pytest
import torch
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.torch_plugin.models.checkpoints.awq import from_awq

N, K = 48, 256
FEATURE_OF_FIELD = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(fields: np.ndarray) -> torch.Tensor:
    """int32 `[rows, N / 8]` of `[rows, N]`."""
    words = np.zeros((len(fields), fields.shape[1] // 8), np.uint32)
    for row in range(len(fields)):
        for word in range(words.shape[1]):
            for field in range(8):
                words[row, word] |= np.uint32(fields[row, 8 * word + FEATURE_OF_FIELD[field]]) << np.uint32(4 * field)
    return torch.from_numpy(words.view(np.int32))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_zero_points_and_scales_are_those_stored(group: int):
    rng = np.random.default_rng(group)
    codes, zeros = rng.integers(0, 16, (K, N)), rng.integers(0, 16, (K // group, N))
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, (K // group, N))).half()
    weight = from_awq(packed(codes), packed(zeros), scales)
    assert weight.format == WeightFormat(4, group, "asymmetric")
    assert weight.codes.dtype == torch.uint8 and weight.codes.is_contiguous()
    assert torch.equal(weight.codes, torch.from_numpy(codes.T).byte())
    assert weight.zero_points is not None
    assert torch.equal(weight.zero_points, torch.from_numpy(zeros.T).half())
    assert torch.equal(weight.scales, scales.t())
    order = np.arange(K) // group
    published = scales.float()[order] * torch.from_numpy(codes - zeros[order])
    assert torch.equal(dequantize(weight), published.t().float())


def test_other_versions_are_refused():
    words, scales = torch.zeros(K, N // 8, dtype=torch.int32), torch.ones(K // 32, N).half()
    with pytest.raises(QuantizationError, match=r"version = 'gemv_fast' .* save the model with version = 'gemm'"):
        from_awq(words, words[: K // 32], scales, "gemv_fast")
    with pytest.raises(QuantizationError, match=r"qweight \[48, 32\] .* not \[K, N / 8\]"):  # GEMV's [N, K / 8]
        from_awq(torch.zeros(N, K // 8, dtype=torch.int32), words[: K // 32], scales)
    with pytest.raises(QuantizationError, match=r"qzeros is torch.int32 \[4, 6\]: torch.int32 \[8, 6\] would fit"):
        from_awq(words, words[:4], scales)
