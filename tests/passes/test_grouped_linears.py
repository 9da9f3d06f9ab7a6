"""Experts of real models, quantised, against eager's answer with the same weights rounded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from lutra.ir.ops import GatedMlpOp
from lutra.ir.rewriting import defined_by
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from torch import nn

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_local_experts": 4,
}
FORMAT = WeightFormat(4, 32)


def mixtral(**changes: Any) -> nn.Module:
    values: dict[str, Any] = SIZES | changes
    return hf.MixtralForCausalLM(hf.MixtralConfig(**values)).eval()


def gpt_oss(**changes: Any) -> nn.Module:
    """Its experts are stored transposed, and have biases."""
    values: dict[str, Any] = SIZES | {"head_dim": 16} | changes
    return hf.GptOssForCausalLM(hf.GptOssConfig(**values)).eval()


def round_experts(model: nn.Module, transposed: bool) -> list[str]:
    """Round every stack of `model` as the pass does; the names of the stacks."""
    found = []
    for name, stack in model.named_parameters():
        if stack.dim() != 3:
            continue
        found.append(name)
        rows = stack.data.transpose(1, 2) if transposed else stack.data
        rounded = dequantize(RoundToNearest(FORMAT, False)(rows.flatten(0, 1))).unflatten(0, rows.shape[:2])
        stack.data.copy_(rounded.transpose(1, 2) if transposed else rounded)
    return found


def loud(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data.mul_(5)
    return model


@pytest.mark.parametrize("make", [mixtral, gpt_oss], ids=["mixtral", "gpt-oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_are_quantised(
    make: Callable[..., nn.Module], dtype: torch.dtype, interpreted: Callable[..., Any], tokens: torch.Tensor
):
    # In bf16 every token goes to all experts: two of them may be as near to each other as its rounding.
    model = loud(make(num_experts_per_tok=2 if dtype == torch.float32 else 4)).to(dtype)
    backend = interpreted(
        {"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 32, "select": {"modules": "*.experts.*"}}}
    )
    with torch.no_grad():
        logits = torch.compile(model, backend=backend)(tokens, use_cache=False).logits
        plain = model(tokens, use_cache=False).logits
        names = round_experts(model, make is gpt_oss)
        expected = model(tokens, use_cache=False).logits
    assert len(names) == 2
    assert backend.counts()["grouped_linear"] == 2
    assert not set(names) & {left.path for report in backend.reports for left in report.left}
    assert (logits - expected).norm() <= (1e-3 if dtype == torch.float32 else 0.3) * (plain - expected).norm()


def test_a_merged_gate_reads_the_product_of_the_experts(interpreted: Callable[..., Any], tokens: torch.Tensor):
    backend = interpreted({"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 32}})
    with torch.no_grad():
        torch.compile(mixtral(), backend=backend)(tokens, use_cache=False)
    (gate,) = [op for op in backend.graph.operations if isinstance(op, GatedMlpOp)]
    assert gate.up is None and defined_by(gate.gate, "lutra.grouped_linear")


@pytest.mark.parametrize(
    ("changes", "entry", "reason"),
    [
        ({"intermediate_size": 36}, {"group_size": "channel"}, "each of its matrices has 72 output features, which 16"),
        ({}, {"group_size": 32, "method": "gptq"}, "a calibration has no statistics of experts"),
        ({}, {"group_size": 32, "select": {"modules": "*.self_attn.*"}}, "a stack of matrices"),
    ],
    ids=["odd features", "gptq", "not selected"],
)
def test_experts_that_stay_are_named(
    interpreted: Callable[..., Any], tokens: torch.Tensor, changes: Any, entry: Any, reason: str
):
    model = mixtral(**changes)
    entry = {"select": {"modules": "*.experts.*"}, **entry}
    backend = interpreted({"fuse": {}}, {"quantize-weights": entry})
    with torch.no_grad():
        torch.compile(model, backend=backend)(tokens, use_cache=False)
    found = {left.path: left.reason for report in backend.reports for left in report.left}
    assert found["model.layers.0.mlp.experts.gate_up_proj"].startswith(reason)


def test_a_budget_of_bits_takes_experts_in(interpreted: Callable[..., Any], tokens: torch.Tensor):
    budget = {"average": 3, "choices": [2, 4]}
    backend = interpreted({"fuse": {}}, {"quantize-weights": {"bits": budget, "group_size": 32}})
    with torch.no_grad():
        torch.compile(mixtral(), backend=backend)(tokens, use_cache=False)
    assert backend.counts()["grouped_linear"] == 2
