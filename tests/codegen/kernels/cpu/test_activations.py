"""Quantised activations and lookup tables, against torch on the same input."""

import pytest
import torch
import torch.nn.functional as F
from lutra.codegen.kernels.cpu.packing import UNIT
from lutra.codegen.prologues import GatedMlpPrologue, RmsNormPrologue

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
CASES = [(1, 256, 64, 1), (3, 192, 32, None), (5, 100, 128, None), (2, 256, 256, 2), (1, 300, 128, 1)]


def padded(x: torch.Tensor, group: int) -> torch.Tensor:
    """float64 `[M, groups, group]`, zero-padded."""
    m, k = x.shape
    return F.pad(x.double(), (0, -k % group)).view(m, -1, group)


def columns(q: torch.Tensor, scale: torch.Tensor, group: int, k: int) -> torch.Tensor:
    """x as its int8 form (`dot`) says."""
    return (q.double() * scale.double().repeat_interleave(group, 1)[:, : q.shape[1]])[:, :k]


def tables(x: torch.Tensor) -> torch.Tensor:
    """Exact tables `[M, Kp / 4, 16]`."""
    signs = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1) * 2.0 - 1
    return F.pad(x.double(), (0, -x.shape[1] % UNIT)).view(len(x), -1, 4) @ signs.double().T


@pytest.mark.parametrize(("m", "k", "group", "static"), CASES)
def test_int8_activations_are_rounded_to_the_scale_of_their_group(activations, isa, m, k, group, static):
    x = torch.randn(m, k)
    q, scale, total = activations("dot", group, isa, k, x, m=static)
    groups = padded(x, group)
    assert torch.allclose(scale.double(), groups.abs().amax(-1) / 127, rtol=1e-6)
    step = scale.double().repeat_interleave(group, 1)[:, :k]
    assert ((columns(q, scale, group, k) - x).abs() <= 0.5001 * step).all()
    assert (q[:, k:] == 0).all()
    assert torch.equal(total.long(), padded(q, group).sum(-1).long())


@pytest.mark.parametrize(("m", "k", "group", "static"), CASES)
def test_tables_hold_all_signed_sums_and_are_exactly_odd(activations, isa, m, k, group, static):
    x = torch.randn(m, k)
    q, scale, total = activations("lookup", group, isa, k, x, m=static)
    got, exact = q.view(m, -1, 16), tables(x)
    assert torch.equal(got, -got.flip(-1))
    step = scale.double().repeat_interleave(group // 4, 1)[:, : exact.shape[1], None]
    assert ((got * step - exact).abs() <= 0.5001 * step).all()
    assert got.abs().max() == 127
    assert torch.allclose(total.double(), padded(x, group).sum(-1), atol=1e-4)


@pytest.mark.parametrize("family", ["lookup", "dot"])
def test_zeros_one_hot_and_outliers_stay_what_they_are(activations, isa, family):
    x = torch.zeros(4, 64)
    x[1, 5] = -3.0
    x[2] = torch.randn(64) * 1e-3
    x[2, 40] = 1e6
    x[3] = 1e-38
    q, scale, total = activations(family, 32, isa, 64, x)
    assert (q[0] == 0).all() and (scale[0] == 0).all() and (total[0] == 0).all()
    assert torch.isclose(scale[1, 0], torch.tensor(3 / 127)) and q[1].abs().max() == 127
    assert torch.isclose(scale[2, 1], torch.tensor(1e6 / 127))
    assert (q[3] == 0).all()
    if family == "dot":
        assert q[1, 5] == -127 and q[1].count_nonzero() == 1 and q[2, 32:].count_nonzero() == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("before", "k"), [(True, 192), (False, 100)])
def test_a_fused_norm_is_the_norm_then_the_quantisation(activations, isa, dtype, before, k):
    x, weight = (torch.randn(3, k) * 4).to(dtype), (torch.rand(k) + 0.5).to(dtype)
    name = str(dtype).removeprefix("torch.")
    q, scale, _ = activations("dot", 32, isa, k, x, weight, prologue=RmsNormPrologue(1e-5, before, name))
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    expected = (normed.to(dtype) * weight) if before else (normed * weight.float()).to(dtype)
    step = scale.double().repeat_interleave(32, 1)[:, :k]
    # A value next to a rounding boundary of dtype may fall on the other side of it.
    slack = expected.double().abs() * torch.finfo(dtype).eps * 1.01 + 1e-6
    assert ((columns(q, scale, 32, k) - expected.double()).abs() <= 0.5001 * step + slack).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fused_gate_is_the_gate_then_the_quantisation(activations, isa, dtype, activation):
    k = 96
    merged = (torch.randn(2, 2 * k) * 3).to(dtype)
    q, scale, total = activations("lookup", 32, isa, k, merged, prologue=GatedMlpPrologue(activation))
    gate, up = merged.split(k, 1)
    expected = ACTIVATIONS[activation](gate) * up
    exact = tables(expected)
    step = scale.double().repeat_interleave(8, 1)[:, :, None]
    slack = tables(expected.abs())[..., -1:] * torch.finfo(dtype).eps * 1.01 + 1e-5
    assert ((q.view(2, -1, 16) * step - exact).abs() <= 0.5001 * step + slack).all()
    assert torch.allclose(total.double(), padded(expected, 32).sum(-1), atol=32 * slack.max().item())
