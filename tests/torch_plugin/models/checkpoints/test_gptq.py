"""GPTQ layers, packed bit by bit as the layout is described, come back code by code."""

from typing import Any

import numpy as np
import pytest
import torch
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.torch_plugin.models.checkpoints.gptq import from_gptq

N, K = 32, 128


def packed_down(fields: np.ndarray, bits: int) -> torch.Tensor:
    """int32 `[rows * bits / 32, columns]`: the fields of a column as one number, cut into words from its low end."""
    words = np.zeros((len(fields) * bits // 32, fields.shape[1]), np.uint32)
    for column in range(fields.shape[1]):
        number = 0
        for row in range(len(fields)):
            number |= int(fields[row, column]) << (bits * row)
        for word in range(len(words)):
            words[word, column] = number >> (32 * word) & 0xFFFFFFFF
    return torch.from_numpy(words.view(np.int32))


def made(bits: int, group: int, lowest_zero: int = 1) -> dict[str, Any]:
    """Codes `[K, N]`, zero points and scales `[K / group, N]`."""
    rng = np.random.default_rng(bits)
    return {
        "codes": rng.integers(0, 2**bits, (K, N)),
        "zeros": rng.integers(lowest_zero, 2**bits, (K // group, N)),
        "scales": torch.from_numpy(rng.uniform(0.01, 0.1, (K // group, N))).half(),
    }


def stored(layer: dict[str, Any], bits: int, checkpoint_format: str = "gptq") -> tuple[torch.Tensor, ...]:
    zeros = layer["zeros"] - (checkpoint_format == "gptq")
    return packed_down(layer["codes"], bits), packed_down(zeros.T, bits).t().contiguous(), layer["scales"]


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_zero_points_and_scales_are_those_stored(bits: int, group: int, checkpoint_format: str):
    layer = made(bits, group)
    order = torch.arange(K, dtype=torch.int32) // group
    weight = from_gptq(*stored(layer, bits, checkpoint_format), order, checkpoint_format)
    assert weight.format == WeightFormat(bits, group, "asymmetric")
    assert weight.codes.dtype == torch.uint8 and weight.codes.is_contiguous()
    assert torch.equal(weight.codes, torch.from_numpy(layer["codes"].T).byte())
    assert weight.zero_points is not None and weight.zero_points.dtype == torch.float16
    assert torch.equal(weight.zero_points, torch.from_numpy(layer["zeros"].T).half())
    assert torch.equal(weight.scales, layer["scales"].t())
    published = layer["scales"].float()[order] * torch.from_numpy(layer["codes"] - layer["zeros"][order])
    assert torch.equal(dequantize(weight), published.t().float())


def test_three_bits_run_over_the_ends_of_words():
    """The fields that AutoGPTQ writes one by one: number 10 in words 0 and 1, number 21 in words 1 and 2."""
    layer = made(3, 32)
    codes = layer["codes"][:32].astype(np.uint32)
    words = np.zeros((3, N), np.uint32)
    for j in range(10):
        words[0] |= codes[j] << 3 * j
    words[0] |= (codes[10] & 3) << 30
    words[1] |= codes[10] >> 2 & 1
    for j in range(10):
        words[1] |= codes[11 + j] << 3 * j + 1
    words[1] |= (codes[21] & 1) << 31
    words[2] |= codes[21] >> 1 & 3
    for j in range(10):
        words[2] |= codes[22 + j] << 3 * j + 2
    assert torch.equal(packed_down(codes, 3), torch.from_numpy(words.view(np.int32)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_v1_zero_points_of_zero_are_restored_where_words_were_subtracted(bits: int):
    layer = made(bits, 32, lowest_zero=0)
    layer["zeros"][:, ::3] = 0
    qweight, qzeros, scales = stored(layer, bits, "gptq_v2")
    ones = packed_down(np.ones((N, len(layer["zeros"])), int), bits).t()
    weight = from_gptq(qweight, qzeros - ones, scales)
    assert weight.zero_points is not None
    assert torch.equal(weight.zero_points, torch.from_numpy(layer["zeros"].T).half())


def test_v1_zero_points_of_zero_with_three_bits_wrap_field_by_field():
    layer = made(3, 32, lowest_zero=0)
    qweight, _, scales = stored(layer, 3, "gptq_v2")
    weight = from_gptq(qweight, packed_down((layer["zeros"].T - 1) % 8, 3).t(), scales)
    assert weight.zero_points is not None
    assert torch.equal(weight.zero_points, torch.from_numpy(layer["zeros"].T).half())


def test_one_group_over_all_input_features():
    layer = made(4, 128)
    layer["codes"] = np.concatenate([layer["codes"], layer["codes"], layer["codes"]])
    weight = from_gptq(*stored(layer, 4))
    assert weight.format == WeightFormat(4, 0, "asymmetric") and weight.scales.shape == (N, 1)


def test_bfloat16_scales_are_exact_and_float32_ones_rounded():
    qweight, qzeros, scales = stored(made(4, 32), 4)
    assert torch.equal(from_gptq(qweight, qzeros, scales.bfloat16()).scales.float(), scales.bfloat16().t().float())
    odd = scales.float() * 1.0001
    read = from_gptq(qweight, qzeros, odd).scales.t().float()
    assert ((read - odd).abs() <= 2.0**-11 * odd).all()


def test_permuted_groups_are_refused():
    order = torch.arange(K, dtype=torch.int32).flip(0) // 32
    with pytest.raises(QuantizationError, match=r"desc_act = true does: .* quantise with desc_act = false"):
        from_gptq(*stored(made(4, 32), 4), order)


def test_symmetric_zero_points_tell_a_wrong_format():
    layer = made(4, 32)
    layer["zeros"][:] = 8
    assert from_gptq(*stored(layer, 4), symmetric=True).zero_points is not None
    with pytest.raises(QuantizationError, match=r"zero points of 8, but read as 'gptq' they are 9"):
        from_gptq(*stored(layer, 4, "gptq_v2"), symmetric=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checkpoint_format": "marlin"}, "checkpoint_format = 'marlin' is a layout for one kernel"),
        ({"qweight": torch.zeros(16, 31, dtype=torch.int32)}, r"qweight is torch.int32 \[16, 31\]: .*\[16, 32\] would"),
        ({"qzeros": torch.zeros(4, 5, dtype=torch.int32)}, "make 5 bits a weight: 2, 3, 4, 8 can be read"),
        ({"scales": torch.full((4, N), 1e6)}, "a scale of 1e[+]06 does not fit float16"),
        ({"scales": torch.ones(8, N).half(), "qzeros": torch.zeros(8, 4, dtype=torch.int32)}, "group_size = 16"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str):
    layer = dict(zip(("qweight", "qzeros", "scales"), stored(made(4, 32), 4), strict=True))
    with pytest.raises(QuantizationError, match=message):
        from_gptq(**{**layer, **change})
