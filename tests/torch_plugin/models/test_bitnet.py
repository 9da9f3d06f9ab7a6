"""Transformers' BitNet layers run on the ternary kernels, with the numbers of their W1.58A8 arithmetic."""

from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from torch import nn
from transformers import BitNetQuantConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations.bitnet import (
    AutoBitLinear,
    BitLinear,
    pack_weights,
    replace_with_bitnet_linear,
    unpack_weights,
)

KINDS = ("packed", "online", "offline")
IDS = torch.arange(2, 14).reshape(1, -1)


def give_values(module: nn.Module) -> None:
    """Ternary weights for those layers that store them, which are made empty, and scales."""
    for layer in module.modules():
        if isinstance(layer, BitLinear):
            codes = torch.randint(-1, 2, (layer.out_features, layer.in_features), dtype=torch.int8)
            layer.weight = nn.Buffer(pack_weights(codes))
            layer.weight_scale = nn.Buffer(torch.tensor([23.7], dtype=layer.dtype))
        elif isinstance(layer, AutoBitLinear) and not layer.online_quant:
            layer.weight = nn.Parameter(torch.randint(-1, 2, layer.weight.shape).to(layer.weight.dtype))
            layer.weight_scale = nn.Buffer(torch.tensor([0.042], dtype=layer.weight.dtype))


def layer(kind: str, n: int, k: int, bias: bool, dtype: torch.dtype) -> Any:
    if kind == "packed":
        made: Any = BitLinear(k, n, bias, dtype=dtype)
    else:
        made = AutoBitLinear(k, n, bias, dtype=dtype, online_quant=kind == "online")
    give_values(made)
    if bias:
        made.bias.data = torch.randn(n, dtype=dtype)
    return made.eval()


def defined(made: Any, x: torch.Tensor) -> torch.Tensor:
    """W1.58A8 in float64: only the whole numbers, and the factor that makes them, are those of float32."""
    factor = 127 / x.float().abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    q = (x.float() * factor).round().clamp(-128, 127).double()
    bias = 0 if made.bias is None else made.bias.detach().double()
    if isinstance(made, BitLinear):
        weight = unpack_weights(made.weight, torch.float64)
        return (q @ weight.T) / (factor.double() * made.weight_scale.double()) + bias
    weight = made.weight.detach().float()
    if not made.online_quant:
        return ((q @ weight.double().T) / factor.double() + bias) * made.weight_scale.double()
    inverse = 1 / weight.abs().mean().clamp(min=1e-5)
    codes = (weight * inverse).round().clamp(-1, 1)
    return (q @ codes.double().T) / factor.double() / inverse.double() + bias


def inputs(rows: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(rows, k)
    x[0] = 0
    if rows > 2:
        x[1] = 0
        x[1, k // 2] = -3  # one hot
        x[2, 5] = 1e4  # an outlier
    return x.to(dtype)


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


class WithParameter(nn.Module):
    """Reports are found by parameters, and a packed layer has buffers alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.one = inner, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.one.to(x.dtype)


def run(made: nn.Module, x: torch.Tensor, folder: Path) -> tuple[torch.Tensor, Any]:
    options: dict[str, Any] = {"cache_dir": folder, "strict": True}
    compiled: Any = torch.compile(WithParameter(made), backend="lutra", options=options, dynamic=False)
    with torch.no_grad():
        return compiled(x), lutra.report(compiled).graphs[-1].kernels


SHAPES = pytest.mark.parametrize(
    ("rows", "n", "k", "bias"), [(1, 96, 256, False), (5, 40, 100, True), (40, 96, 256, False)]
)


@SHAPES
def test_a_packed_layer_gives_bit_for_bit_what_it_gives_by_itself(
    tmp_path: Path, rows: int, n: int, k: int, bias: bool
):
    made, x = layer("packed", n, k, bias, torch.float32), inputs(rows, k, torch.float32)
    with torch.no_grad():
        expected = made(x)
    got, kernels = run(made, x, tmp_path)
    assert torch.equal(got, expected)
    assert kernels.keys() & {"dot_t2gc", "gemm_t2gc"}


@pytest.mark.parametrize("kind", ["online", "offline"])
@SHAPES
def test_a_layer_that_scales_before_the_product_gives_what_its_arithmetic_defines(
    tmp_path: Path, kind: str, rows: int, n: int, k: int, bias: bool
):
    made, x = layer(kind, n, k, bias, torch.float32), inputs(rows, k, torch.float32)
    got, kernels = run(made, x, tmp_path)
    expected = defined(made, x)
    assert (got - expected).abs().max() <= 4e-7 * expected.abs().max()
    assert kernels.keys() & {"dot_t2gc", "gemm_t2gc"}


@pytest.mark.parametrize("kind", KINDS)
def test_in_half_precision_it_is_nearer_to_its_arithmetic_than_eager(tmp_path: Path, kind: str):
    made, x = layer(kind, 96, 512, False, torch.bfloat16), inputs(40, 512, torch.bfloat16)
    with torch.no_grad():
        eager = made(x)
    got, kernels = run(made, x, tmp_path)
    expected = defined(made, x)
    assert "gemm_t2gc" in kernels
    assert (got - expected).norm() <= 1.01 * (eager - expected).norm()


def model_of(kind: str) -> Any:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    mode: dict[str, Any] = {"linear_class": "bitlinear" if kind == "packed" else "autobitlinear"}
    quantization: Any = BitNetQuantConfig(
        **mode, quantization_mode="online" if kind == "online" else "offline", modules_to_not_convert=["lm_head"]
    )
    model: Any = LlamaForCausalLM(config)
    replace_with_bitnet_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    for each in model.modules():
        if isinstance(each, BitLinear):
            each.dtype = torch.float32
    give_values(model)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_models_generate_eagers_tokens_and_can_be_packed(tmp_path: Path, kind: str, generated: Any):
    model = model_of(kind)
    expected, eager = generated(model, IDS)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "strict": True}
    model.compile(backend="lutra", options={**options, "recipe": "none", "release_weights": True})
    tokens, logits = generated(model, IDS)
    assert torch.equal(tokens, expected)
    assert (logits - eager).norm() < 1e-5 * eager.norm()
    for report in lutra.report(model).graphs:
        assert sum(count for name, count in report.kernels.items() if name.endswith("t2gc")) == 14
    lutra.pack(model, tmp_path / "packed")
    torch._dynamo.reset()
    other = model_of(kind)
    loaded = lutra.load(tmp_path / "packed", other, options)
    assert torch.equal(generated(loaded, IDS)[0], expected)
