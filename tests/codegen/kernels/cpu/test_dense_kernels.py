"""Kernels without low-bit weights, against torch in float32 on random inputs."""

import pytest
import torch
import torch.nn.functional as F
import tvm
from lutra.codegen.kernels.cpu.dense_linear import dense_linear
from lutra.codegen.kernels.cpu.norms import norm
from lutra.codegen.kernels.cpu.pointwise import gated_mlp
from lutra.codegen.targets.cpu.host import host

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(function, *buffers: torch.Tensor) -> torch.Tensor:
    """Compile and call; the last buffer is the output."""
    compiled = tvm.compile(function, target=host())["main"]
    compiled(*(b.view(torch.uint16) if getattr(b, "as_bits", False) else b for b in buffers))
    return buffers[-1]


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    error = (got.double() - expected.double()).norm() / expected.double().norm()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize(
    ("m", "n", "k", "bias", "residual"), [(1, 64, 64, False, False), (3, 35, 96, True, True), (9, 20, 32, True, True)]
)
def test_dense_linear_is_the_product_with_its_epilogue(dtype, m, n, k, bias, residual):
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    b, r = torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)
    function = dense_linear(m, n, k, name(dtype), name(dtype), name(dtype) if bias else None, residual)
    assert function is not None
    weight = w.view(torch.uint16) if dtype is torch.bfloat16 else w
    extra = ([b] if bias else []) + ([r] if residual else [])
    got = run(function, x, weight, *extra, torch.empty(m, n, dtype=dtype))
    expected = x.double() @ w.double().T + (b.double() if bias else 0) + (r.double() if residual else 0)
    assert_close(got, expected, dtype)


def test_dense_linear_reads_a_stack_from_its_parts():
    sizes, x, bias = (8, 3, 21), torch.randn(2, 64), torch.randn(32)
    parts = [torch.randn(n, 64) for n in sizes]
    function = dense_linear(2, 32, 64, "float32", "float32", "float32", False, sizes)
    got = run(function, x, *parts, bias, torch.empty(2, 32))
    assert_close(got, x.double() @ torch.cat(parts).double().T + bias, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("k", [64, 70, 7])
def test_norms_agree_with_torch(dtype, k):
    x, w, b = torch.randn(5, k).to(dtype), torch.randn(k).to(dtype), torch.randn(k).to(dtype)
    layer = run(norm(k, name(dtype), name(dtype), 1e-5, "layer", True, False), x, w, b, torch.empty_like(x))
    assert_close(layer, F.layer_norm(x.double(), (k,), w.double(), b.double(), 1e-5), dtype)
    rms = run(norm(k, name(dtype), name(dtype), 1e-6, "rms", False, True), x, w, torch.empty_like(x))
    assert_close(rms, F.rms_norm(x.double(), (k,), w.double(), 1e-6), dtype)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize(("features", "merged", "dtype"), [(48, True, torch.float32), (37, False, torch.bfloat16)])
def test_gates_agree_with_torch(activation, features, merged, dtype):
    both = torch.randn(5, 2 * features).to(dtype) * 3
    gate, up = both[:, :features].contiguous(), both[:, features:].contiguous()
    functions = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"), "relu": F.relu}
    function = gated_mlp(features, activation, name(dtype), merged)
    got = run(function, *([both] if merged else [gate, up]), torch.empty(5, features, dtype=dtype))
    assert_close(got, functions[activation](gate) * up, dtype)
