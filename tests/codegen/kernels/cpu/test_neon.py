"""NEON's kernels in qemu's emulation of a Neoverse N1, against the same references as those of this machine's targets.

Skipped without qemu's user mode and a compiler for aarch64 (Debian: qemu-user, gcc-aarch64-linux-gnu and
libc6-dev-arm64-cross). Each kernel becomes a program with `neon_harness.c`, which puts every tensor before a page
without access: a kernel that reads or writes past its tensors fails too."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import tvm
import tvm_ffi.libinfo
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.prologues import GatedMlpPrologue, RmsNormPrologue
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat, dequantize

NEON = ISAS["neon"]
QEMU, COMPILER = "qemu-aarch64", "aarch64-linux-gnu-gcc"
TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bfloat": 4}
"""Of DLPack."""


def _missing() -> str | None:
    for tool in (QEMU, COMPILER):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    models = subprocess.run([QEMU, "-cpu", "help"], capture_output=True, text=True).stdout.split()
    return None if NEON.cross["mcpu"] in models else f"{QEMU} is too old to know {NEON.cross['mcpu']}"


_reason = _missing()
pytestmark = pytest.mark.skipif(_reason is not None, reason=str(_reason))


@pytest.fixture(scope="module")
def harness(tmp_path_factory) -> Path:
    """The object file of what every program is linked with."""
    path = tmp_path_factory.mktemp("neon") / "harness.o"
    source, include = Path(__file__).with_name("neon_harness.c"), tvm_ffi.libinfo.find_include_path()
    subprocess.run([COMPILER, "-O1", "-Wall", "-c", f"-I{include}", str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture
def call(harness):
    """As the fixture of the same name that runs kernels on this machine."""

    def run(function, isa, *buffers: torch.Tensor) -> torch.Tensor:
        kernel, program = str(harness.with_name("kernel.o")), str(harness.with_name("kernel"))
        tvm.compile(function, target=isa.tvm_target(cross=True)).mod.write_to_file(kernel, "o")
        subprocess.run([COMPILER, "-static", str(harness), kernel, "-o", program], check=True)
        command = [QEMU, "-cpu", isa.cross["mcpu"], program]
        done = subprocess.run(command, input=b"".join(map(_as_input, buffers)), capture_output=True, timeout=60)
        assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr.decode()}"
        results = torch.frombuffer(bytearray(done.stdout), dtype=torch.uint8).split([b.nbytes for b in buffers])
        for buffer, result in zip(buffers, results, strict=True):
            buffer.copy_(result.clone().view(buffer.dtype).view(buffer.shape))
        return buffers[-1]

    return run


def _as_input(tensor: torch.Tensor) -> bytes:
    name = str(tensor.dtype).removeprefix("torch.").rstrip("0123456789")
    header = struct.pack(f"=3i{tensor.ndim}q", TYPE_CODES[name], 8 * tensor.itemsize, tensor.ndim, *tensor.shape)
    return header + tensor.contiguous().view(torch.uint8).numpy().tobytes()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


CASES = [
    (WeightFormat(1, 32), 80, 96, 1, 1),
    (WeightFormat(1, 64, "asymmetric"), 330, 128, 5, None),  # six blocks of rows: two tasks, one of them not full
    (WeightFormat(2, 64, "ternary"), 70, 192, 3, 3),
    (WeightFormat(2, PER_CHANNEL, "ternary"), 130, 100, 2, None),
    (WeightFormat(2, 256, "asymmetric"), 80, 512, 4, 4),
    (WeightFormat(3, 32, "asymmetric"), 70, 96, 4, None),
    (WeightFormat(3, PER_CHANNEL), 80, 160, 1, 1),
    (WeightFormat(4, 128), 80, 384, 5, 5),
    (WeightFormat(4, PER_CHANNEL, "asymmetric"), 80, 300, 2, 2),
    (WeightFormat(8, 256), 64, 256, 1, 1),
    (WeightFormat(8, 64, "asymmetric"), 7, 192, 3, None),
]
IDS = [f"{format.describe()}-{n}x{k}-m{static or 'any'}" for format, n, k, _, static in CASES]


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize(("format", "n", "k", "m", "static"), CASES, ids=IDS)
def test_products_are_those_of_the_dequantised_weight(
    random_weight, multiply, emulate, family, format, n, k, m, static
):
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    layout = PackedLayout.create(family, format, n, k, NEON)
    out, activations = multiply(layout, NEON, weight, x, m=static)
    assert relative(out, emulate(layout, weight, *activations)) < 1e-5
    terms = x.double().norm(dim=1, keepdim=True) * dequantize(weight).double().norm(dim=1)
    assert (out - x.double() @ dequantize(weight).double().T).norm() / terms.norm() < 0.012


@pytest.mark.parametrize(
    ("group", "n", "k", "m", "static"),
    [(128, 80, 256, 1, 1), (256, 130, 512, 4, 4), (PER_CHANNEL, 64, 384, 3, 3), (128, 330, 128, 5, None)],
)
def test_triples_are_the_ternary_weight(random_weight, multiply, emulate, group, n, k, m, static):
    weight, x = random_weight(WeightFormat(2, group, "ternary"), n, k), torch.randn(m, k)
    layout = PackedLayout.create("triples", weight.format, n, k, NEON)
    out, activations = multiply(layout, NEON, weight, x, m=static)
    assert relative(out, emulate(layout, weight, *activations)) < 1e-6
    assert relative(out, x.double() @ dequantize(weight).double().T) < 0.012


@pytest.mark.parametrize(
    ("format", "k", "m"),
    [
        (WeightFormat(1, 128, "asymmetric"), 256, 1),
        (WeightFormat(3, PER_CHANNEL), 100, 3),
        (WeightFormat(8, 64), 192, None),
    ],
    ids=lambda v: getattr(v, "describe", lambda: str(v))(),
)
def test_floating_point_activations_are_read_as_they_are(random_weight, multiply, format, k, m):
    weight, x = random_weight(format, 80, k), torch.randn(m or 5, k)
    x[:, 3] *= 1e4  # an outlier, which int8 would drown the others in
    layout = PackedLayout.create("dot", format, 80, k, NEON)
    out, _ = multiply(layout, NEON, weight, x, m=m, form="float")
    assert relative(out, x.double() @ dequantize(weight).double().T) < 1e-5


@pytest.mark.parametrize("gemm", [False, True], ids=["packed", "gemm"])
def test_sums_of_whole_numbers_are_exact(random_weight, multiply, gemm):
    weight = random_weight(WeightFormat(2, PER_CHANNEL, "ternary"), 80, 300)
    weight.scales.fill_(1)
    weight.codes[0], weight.codes[1] = 2, 0
    x = torch.randint(-128, 128, (3, 300)).float()
    x[0] = -128
    layout = PackedLayout.create("dot", weight.format, 80, 300, NEON)
    out, (q, scale, _) = multiply(layout, NEON, weight, x, m=None if gemm else 3, form="integers", gemm=gemm)
    assert torch.equal(q[:, :300].float(), x) and (scale == 1).all()
    assert torch.equal(out.double(), x.double() @ dequantize(weight).double().T)


EXTREMES = [
    ("lookup", WeightFormat(1, 256)),
    ("lookup", WeightFormat(2, 256, "ternary")),
    ("lookup", WeightFormat(4, 256, "asymmetric")),
    ("dot", WeightFormat(2, 256, "asymmetric")),
    ("dot", WeightFormat(8, 256)),
    ("triples", WeightFormat(2, 256, "ternary")),
]


@pytest.mark.parametrize(("family", "format"), EXTREMES, ids=[f"{a}-{b.describe()}" for a, b in EXTREMES])
def test_extreme_sums_do_not_overflow(random_weight, multiply, emulate, family, format):
    k, n = 256, 64
    weight = random_weight(format, n, k)
    weight.codes[:32] = weight.codes.max()
    weight.codes[32:48] = 0
    x = torch.zeros(5, k)
    x[0], x[1], x[3] = 5.0, -5.0, 1e-4  # every int8 is 127 at first, and every table's last entry
    x[3, 127] = 1e4  # in the short triple of a span
    x[4, 200] = 1.0
    layout = PackedLayout.create(family, format, n, k, NEON)
    out, activations = multiply(layout, NEON, weight, x, m=5)
    expected = emulate(layout, weight, *activations)
    assert (out[2] == 0).all()
    for row in (0, 1, 3):
        assert relative(out[row], expected[row]) < 1e-5
    assert relative(out[:2], x[:2].double() @ dequantize(weight).double().T) < 0.005
    assert torch.allclose(out[4], dequantize(weight)[:, 200], atol=1e-5)


GEMM_CASES = [
    (WeightFormat(1, 128, "asymmetric"), 64, 256, 13),
    (WeightFormat(2, 64, "ternary"), 80, 192, 9),
    (WeightFormat(3, PER_CHANNEL), 7, 100, 4),
    (WeightFormat(4, 32, "asymmetric"), 70, 96, 3),
    (WeightFormat(8, 256, "asymmetric"), 80, 512, 6),
]


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize(
    ("format", "n", "k", "m"), GEMM_CASES, ids=[f"{format.describe()}-{n}x{k}-m{m}" for format, n, k, m in GEMM_CASES]
)
def test_matrix_products_are_those_of_the_activations_as_quantised(
    random_weight, multiply, emulate, family, format, n, k, m
):
    weight, x = random_weight(format, n, k), torch.randn(m, k)
    x[:2] = 0
    x[1, 5], x[2, 7] = 1.0, 1e6
    layout = PackedLayout.create(family, format, n, k, NEON)
    out, activations = multiply(layout, NEON, weight, x, gemm=True)
    expected = emulate(layout, weight, *activations, family="dot")
    assert ((out - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gemm", [False, True], ids=["packed", "gemm"])
def test_bias_and_residual_are_added_with_one_rounding_each(random_weight, multiply, emulate, dtype, gemm):
    n, k, m = 72, 128, 3
    weight, x = random_weight(WeightFormat(4, 64), n, k), torch.randn(m, k).to(dtype)
    bias, residual = torch.randn(n), (torch.randn(m, n) * 10).to(dtype)
    layout = PackedLayout.create("dot", weight.format, n, k, NEON)
    out, activations = multiply(layout, NEON, weight, x, bias=bias, residual=residual, gemm=gemm)
    expected = (emulate(layout, weight, *activations).float() + bias).to(dtype) + residual
    step = torch.finfo(dtype).eps * expected.abs().double().clamp(min=1.0) + 1e-5
    assert ((out.double() - expected.double()).abs() <= 1.01 * step).all()
    assert dtype == torch.float32 or (out == expected).float().mean() > 0.97


def as_read(q: torch.Tensor, scale: torch.Tensor, group: int, k: int) -> torch.Tensor:
    """x as its int8 form says."""
    return (q.double() * scale.double().repeat_interleave(group, 1)[:, : q.shape[1]])[:, :k]


def tables(x: torch.Tensor) -> torch.Tensor:
    """Exact tables `[M, Kp / 4, 16]`."""
    signs = ((torch.arange(16)[:, None] >> torch.arange(4)) & 1) * 2.0 - 1
    return F.pad(x.double(), (0, -x.shape[1] % 32)).view(len(x), -1, 4) @ signs.double().T


@pytest.mark.parametrize("family", ["lookup", "dot"])
@pytest.mark.parametrize(("k", "group", "static"), [(256, 64, 5), (100, 128, None)])
def test_activations_are_rounded_to_the_scale_of_their_group(activations, family, k, group, static):
    x = torch.randn(5, k)
    x[1], x[2], x[3], x[4] = 0.0, 0.0, 1e-38, x[4] * 1e-3
    x[2, 5], x[4, 40] = -3.0, 1e6
    q, scale, total = activations(family, group, NEON, k, x, m=static)
    exact, got, width = (x, q[:, :k], group) if family == "dot" else (tables(x), q.view(5, -1, 16), group // 4)
    step = scale.double().repeat_interleave(width, 1)[:, : exact.shape[1]]
    step = step if family == "dot" else step[:, :, None]
    assert ((got * step - exact).abs() <= 0.5001 * step + 1e-30).all()
    assert (q[1] == 0).all() and (scale[1] == 0).all() and (total[1] == 0).all() and (q[3] == 0).all()
    assert scale[2, 0] == torch.tensor(3.0) * torch.tensor(1 / 127) and q[2].abs().max() == 127
    if family == "dot":
        sums = F.pad(q.double(), (0, -q.shape[1] % group)).view(5, -1, group).sum(-1)
        assert q[2, 5] == -127 and q[2].count_nonzero() == 1 and (q[:, k:] == 0).all() and (total == sums).all()
    else:
        assert torch.equal(got, -got.flip(-1))
        sums = F.pad(x.double(), (0, -k % group)).view(5, -1, group).sum(-1)
        assert torch.allclose(total.double(), sums, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_fused_norm_is_the_norm_then_the_quantisation(activations, dtype):
    k = 100
    x, weight = (torch.randn(3, k) * 4).to(dtype), (torch.rand(k) + 0.5).to(dtype)
    name = str(dtype).removeprefix("torch.")
    q, scale, _ = activations("dot", 32, NEON, k, x, weight, prologue=RmsNormPrologue(1e-5, True, name))
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    expected = normed.to(dtype) * weight
    step = scale.double().repeat_interleave(32, 1)[:, :k]
    slack = expected.double().abs() * torch.finfo(dtype).eps * 1.01 + 1e-6
    assert ((as_read(q, scale, 32, k) - expected.double()).abs() <= 0.5001 * step + slack).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_fused_gate_is_the_gate_then_the_quantisation(activations, dtype):
    k = 96
    merged = (torch.randn(2, 2 * k) * 3).to(dtype)
    q, scale, _ = activations("lookup", 32, NEON, k, merged, prologue=GatedMlpPrologue("silu"))
    gate, up = merged.split(k, 1)
    expected = F.silu(gate) * up
    step = scale.double().repeat_interleave(8, 1)[:, :, None]
    slack = tables(expected.abs())[..., -1:] * torch.finfo(dtype).eps * 1.01 + 1e-5
    assert ((q.view(2, -1, 16) * step - tables(expected)).abs() <= 0.5001 * step + slack).all()
