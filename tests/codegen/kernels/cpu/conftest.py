"""Random quantised weights, and low-bit kernels compiled and called."""

import pytest
import torch
import torch.nn.functional as F
import tvm
from lutra.codegen.kernels.cpu.activations import precompute, precompute_outputs
from lutra.codegen.kernels.cpu.lowbit_gemm import low_bit_gemm
from lutra.codegen.kernels.cpu.lowbit_linear import low_bit_linear
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.kernels.cpu.tile_gemm import tile_gemm
from lutra.codegen.targets.cpu.isa import VectorIsa
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.ir.weights.formats import QuantizedWeight, WeightFormat, bit_planes, dequantize, symmetrized_zero_points


def pytest_generate_tests(metafunc):
    """A test that takes `isa` runs on every isa that this machine executes; those of AMX differ from AVX-512's
    in matrix products alone."""
    if "isa" in metafunc.fixturenames:
        products = metafunc.module.__name__.endswith("gemm")
        here = [t for t in ISAS.values() if t.available() and (products or not t.multiplies_tiles)]
        metafunc.parametrize("isa", here, ids=lambda isa: isa.name)


@pytest.fixture
def random_weight():
    def make(format: WeightFormat, n: int, k: int) -> QuantizedWeight:
        levels = 3 if format.scheme == "ternary" else 2**format.bits
        groups = format.groups(k)
        codes = torch.randint(levels, (n, k), dtype=torch.uint8)
        scales = (torch.rand(n, groups) + 0.1).half() / levels
        zeros = (torch.rand(n, groups) * (levels - 1)).half() if format.has_zero_points else None
        return QuantizedWeight(codes, scales, zeros, format)

    return make


@pytest.fixture
def call():
    """`call(function, isa, *buffers)`: compile, run, return the last buffer."""

    def run(function, isa: VectorIsa, *buffers: torch.Tensor) -> torch.Tensor:
        tvm.compile(function, target=isa.tvm_target())["main"](*buffers)
        return buffers[-1]

    return run


@pytest.fixture
def activations(call):
    """`activations(family, group, isa, k, *inputs)`: the three results of `precompute` for `inputs`, x first."""

    def run(family, group, isa, k, *inputs, prologue=None, m=None):
        dtype = str(inputs[0].dtype).removeprefix("torch.")
        outputs = precompute_outputs(family, k, group, len(inputs[0]))
        tensors = [torch.full(shape, 99, dtype=getattr(torch, dtype)) for shape, dtype in outputs]
        call(precompute(family, k, group, m, dtype, prologue), isa, *inputs, *tensors)
        return tensors

    return run


@pytest.fixture
def multiply(activations, call):
    """`multiply(layout, isa, weight, x)`: the product by `low_bit_linear`, or with `gemm` by `low_bit_gemm`, and the
    precomputed activations (of `form`, if not of the layout's family) that it was made from."""

    def run(layout: PackedLayout, isa, weight, x, m=None, bias=None, residual=None, gemm=False, form=None):
        dtype = str(x.dtype).removeprefix("torch.")
        read = form or ("dot" if gemm else layout.family)
        a = activations(read, layout.activation_group, isa, layout.k, x, m=m)
        bias_type = None if bias is None else str(bias.dtype).removeprefix("torch.")
        if gemm:
            product = tile_gemm if isa.multiplies_tiles else low_bit_gemm
            function = product(layout, isa, dtype, bias_type, residual is not None)
        else:
            product = None if form == "integers" else form  # whole numbers are int8 as well
            function = low_bit_linear(layout, isa, m, dtype, bias_type, residual is not None, product)
        extra = [t for t in (bias, residual) if t is not None]
        guarded = torch.full((len(x) * layout.n + 64,), 7, dtype=x.dtype)
        out = guarded[: len(x) * layout.n].view(len(x), layout.n)
        call(function, isa, *a, *layout.pack(weight), *extra, out)
        assert (guarded[len(x) * layout.n :] == 7).all(), "written past N"
        return out, a

    return run


@pytest.fixture
def emulate():
    """`emulate(layout, weight, *activations)`: the product in float64, from the activations as they were quantised;
    `family`: theirs, when it is not the layout's."""

    def run(layout: PackedLayout, weight: QuantizedWeight, *activations, family=None) -> torch.Tensor:
        return _emulate(family or layout.family, layout, weight, *activations)

    return run


def _emulate(family, layout: PackedLayout, weight: QuantizedWeight, q, scale, total) -> torch.Tensor:
    group, kp = layout.activation_group, layout.units * 32
    if family == "dot":
        x = q.double() * scale.double().repeat_interleave(group, 1)[:, :kp]
        return x[:, : layout.k] @ dequantize(weight).double().T
    if family == "triples":
        return _emulate_triples(layout, weight, q, scale)
    columns = torch.arange(0, kp, 4)
    entries = q.view(len(q), -1, 16).double() * scale.double()[:, columns // group, None]
    bits = (F.pad(bit_planes(weight), (0, kp - layout.k), value=-1) + 1) // 2
    index = (bits.view(len(bits), layout.n, -1, 4).long() * torch.tensor([1, 2, 4, 8])).sum(-1)  # [plane, row, table]
    weights = torch.tensor(weight.format.plane_weights, dtype=torch.float64)
    found = torch.stack([row[torch.arange(kp // 4), index] for row in entries])  # [M, plane, row, table]
    scales = weight.scales.double()
    scale_of = (lambda c: torch.zeros_like(c)) if layout.per_channel else (lambda c: c // group)
    out = torch.einsum("mpnt,p,nt->mn", found, weights, scales[:, scale_of(columns)] / 2)
    zeros = symmetrized_zero_points(weight)
    if zeros is not None:
        groups = scale_of(torch.arange(0, kp, group))
        out -= total.double() @ (scales[:, groups] / 2 * zeros.double()[:, groups]).T
    return out


def _emulate_triples(layout: PackedLayout, weight: QuantizedWeight, q, scale) -> torch.Tensor:
    spans = torch.arange(layout.k // 128)
    digits = F.pad(weight.codes.view(layout.n, -1, 128).int() - 1, (0, 1)).view(layout.n, -1, 43, 3)
    number = (digits * torch.tensor([9, 3, 1])).sum(-1)  # [n, span, triple]
    scales = weight.scales.double()[:, spans * layout.groups // len(spans)]
    rows = []
    for tables, scale_of in zip(q.double(), scale.double()[:, spans * 128 // layout.activation_group], strict=True):
        entries = tables.expand(layout.n, -1, -1, -1).gather(-1, number.abs()[..., None])[..., 0] * number.sign()
        rows.append((entries.sum(-1) * scale_of * scales).sum(-1))
    return torch.stack(rows)
