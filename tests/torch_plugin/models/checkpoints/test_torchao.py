"""torchao's int4 tensors come back code by code, with and without torchao."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import QuantizedWeight, WeightFormat, dequantize
from lutra.torch_plugin.models.checkpoints.torchao import from_torchao

N, K, GROUP = 96, 256, 64  # on AVX-512, one block of 64 rows and a rest


class Tensor4(torch.Tensor):
    """Attributes and shape as torchao 0.18 documents them for `Int4Tensor` and `Int4OpaqueTensor`: a reconstruction,
    for machines without torchao."""

    def __new__(cls, **attributes: Any) -> "Tensor4":
        tensor = torch.empty(N, K, dtype=torch.bfloat16).as_subclass(cls)
        for name, value in {"act_pre_scale": None, "block_size": [1, GROUP], **attributes}.items():
            setattr(tensor, name, value)
        return tensor


def reconstructed(kind: str, **attributes: Any) -> torch.Tensor:
    return type(kind, (Tensor4,), {})(**attributes)


def made(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes 0 ... 15 `[N, K]`, scales and floating zero points `[K / GROUP, N]`."""
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (N, K), dtype=torch.int32)
    scales = torch.rand(K // GROUP, N) * 0.1 + 0.01
    zeros = scales * (torch.rand(K // GROUP, N) * 16 - 8)
    return codes, scales.to(dtype), zeros.to(dtype)


def plain_bytes(codes: torch.Tensor) -> torch.Tensor:
    """int8 `[N, K / 2]` of signed codes."""
    packed = torch.zeros(N, K // 2, dtype=torch.int8)
    for column in range(K // 2):
        low, high = codes[:, 2 * column] - 8, codes[:, 2 * column + 1] - 8
        packed[:, column] = (low & 15 | high << 4).to(torch.int8)
    return packed


def check(weight: QuantizedWeight, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> None:
    assert weight.format == WeightFormat(4, GROUP, "asymmetric")
    assert torch.equal(weight.codes, codes.byte()) and weight.zero_points is not None
    assert torch.equal(weight.scales.float(), scales.t().float())
    group = torch.arange(K) // GROUP
    step = scales.float()[group].t()
    published = step * (codes - 8) + zeros.float()[group].t()
    bound = step * weight.zero_points.float()[:, group].abs() * 2.0**-11
    assert ((dequantize(weight) - published).abs() <= bound + 1e-6).all()


def test_plain_by_its_attributes():
    codes, scales, zeros = made()
    check(
        from_torchao(reconstructed("Int4Tensor", qdata=plain_bytes(codes), scale=scales, zero_point=zeros)),
        codes,
        scales,
        zeros,
    )


def test_symmetric_zero_points_are_exact():
    codes, scales, zeros = made()
    tensor = reconstructed("Int4Tensor", qdata=plain_bytes(codes), scale=scales, zero_point=zeros * 0)
    weight = from_torchao(tensor)
    assert weight.zero_points is not None and (weight.zero_points == 8).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_opaque_as_torch_packs_it_here(dtype: torch.dtype):
    codes, scales, zeros = made(dtype)
    qdata = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    both = torch.stack([scales, zeros], -1)
    check(from_torchao(reconstructed("Int4OpaqueTensor", qdata=qdata, scale_and_zero=both)), codes, scales, zeros)


@pytest.mark.skipif("ATEN_CPU_CAPABILITY" in os.environ, reason="is itself the other process")
def test_opaque_as_processors_without_vector_units_pack_it():
    """torch chooses its kernels when it starts."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "packs_it_here"]
    done = subprocess.run(command, env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_opaque_of_avx512_is_read_where_torch_packs_so(monkeypatch: pytest.MonkeyPatch):
    """The documented order of AVX-512, written out: this machine may not have it."""

    def pack(codes: torch.Tensor, _: int) -> torch.Tensor:
        rows, columns = codes.shape
        out = torch.zeros(rows * columns // 2, dtype=torch.uint8)
        for first in range(0, rows, 64):
            height = min(64, rows - first)
            for k in range(columns):
                for d in range(height // 2):
                    low, high = (first + d, first + d + 32) if height == 64 else (first + 2 * d, first + 2 * d + 1)
                    byte = codes[low, k] | codes[high, k] << 4
                    out[first * columns // 2 + k * height // 2 + d] = byte
        return out.reshape(rows, columns // 2)

    codes, scales, zeros = made()
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack_for_cpu", pack)
    both = torch.stack([scales, zeros], -1)
    tensor = reconstructed("Int4OpaqueTensor", qdata=pack(codes, 1), scale_and_zero=both)
    check(from_torchao(tensor), codes, scales, zeros)


def test_torchaos_own_tensors():
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.prototype.quantization.int4 import Int4OpaqueTensor
    from torchao.quantization import Int4Tensor

    codes, scales, zeros = made()
    shape = torch.Size((N, K))
    check(from_torchao(Int4Tensor(plain_bytes(codes), scales, zeros, [1, GROUP], shape)), codes, scales, zeros)

    original = torch.randn(N, K, dtype=torch.bfloat16)
    opaque = Int4OpaqueTensor.from_hp(original, [1, GROUP])
    weight = from_torchao(opaque)
    operators = torch.nn.functional.linear(torch.eye(K, dtype=torch.bfloat16), opaque).t().float()
    assert weight.zero_points is not None
    group = torch.arange(K) // GROUP
    step = weight.scales.float()[:, group]
    bound = step * weight.zero_points.float()[:, group].abs() * 2.0**-11 + operators.abs() * 2.0**-8
    assert ((dequantize(weight) - operators).abs() <= bound).all()


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("Int4TilePackedTo4dTensor", {}, "Int4TilePackedTo4dTensor is none of .*int4_packing_format='plain'"),
        ("Int4OpaqueTensor", {"act_mapping_type": "symmetric"}, "for int8 activations .*int4_packing_format='plain'"),
        ("Int4Tensor", {"act_pre_scale": torch.ones(K)}, "act_pre_scale multiplies its inputs"),
        ("Int4Tensor", {"block_size": [N, K]}, r"in blocks of \[96, 256\] is no matrix with groups"),
        ("Int4Tensor", {"qdata": torch.zeros(N, K, dtype=torch.int8)}, r"qdata is torch.uint8 \[96, 256\]"),
        ("Int4Tensor", {"zero_point": torch.full((K // GROUP, N), 1e6)}, "too far for float16"),
    ],
)
def test_what_cannot_be_read_is_named(kind: str, change: dict[str, Any], message: str):
    codes, scales, zeros = made()
    attributes = {"qdata": plain_bytes(codes), "scale": scales, "zero_point": zeros, **change}
    with pytest.raises(QuantizationError, match=message):
        from_torchao(reconstructed(kind, **attributes))
