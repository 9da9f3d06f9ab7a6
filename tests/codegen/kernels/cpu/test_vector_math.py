"""Vectorised elementary functions against torch in float64."""

import pytest
import torch
import torch.nn.functional as F
import tvm
from lutra.codegen.kernels.cpu import vector_math
from lutra.codegen.kernels.cpu.function import kernel
from tvm.script.ir_builder import tirx as T

LANES = 16


def run(function, x: torch.Tensor, isa) -> torch.Tensor:
    def body(source, out):
        with T.serial(0, len(x) // LANES) as i:
            at = T.ramp(i * LANES, 1, LANES)
            T.buffer_store(out, function(source[at], LANES), [at])

    out = torch.empty_like(x)
    shape = ((len(x),), "float32")
    tvm.compile(kernel([shape, shape], body), target=isa.tvm_target())["main"](x, out)
    return out


def test_exp_is_within_a_few_ulp(isa):
    x = torch.linspace(-87, 88, 4096)
    assert ((run(vector_math.exp, x, isa) / x.double().exp() - 1).abs() < 3e-7).all()


def test_exp_has_the_right_limits(isa):
    x = torch.tensor([-torch.inf, -1e30, -100.0, 0.0, -0.0, 100.0, 1e30, torch.inf] * 2)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, torch.inf, torch.inf, torch.inf] * 2)
    assert torch.equal(run(vector_math.exp, x, isa), expected)


@pytest.mark.parametrize(
    ("function", "reference"),
    [
        (vector_math.tanh, torch.tanh),
        (vector_math.erf, torch.erf),
        (vector_math.sigmoid, torch.sigmoid),
        (vector_math.silu, F.silu),
        (vector_math.gelu, F.gelu),
        (vector_math.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
        (vector_math.relu, F.relu),
    ],
    ids=lambda f: getattr(f, "__name__", "reference"),
)
def test_functions_match_float64(isa, function, reference):
    x = torch.linspace(-12, 12, 4096)
    expected = reference(x.double())
    assert ((run(function, x, isa) - expected).abs() <= 5e-7 * expected.abs().clamp(min=1.0)).all()
