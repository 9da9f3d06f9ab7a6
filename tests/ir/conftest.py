"""Graphs from text, and a backend that captures them of models in miniature."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra.ir.context import make_context
from lutra.ir.graph import Graph, GraphInput
from lutra.ir.weights.store import ParameterStore
from lutra.tests.support.capture import Interpreted
from torch import nn
from torch_mlir import ir

VOCABULARY = 64


@pytest.fixture
def parse() -> Callable[..., Graph]:
    """`parse(body, "%x: !torch.vtensor<...>", result types)`: a graph whose `@main` has that body."""

    def make(body: str, arguments: str = "", results: str = "") -> Graph:
        text = f"func.func @main({arguments}) -> ({results}) {{\n{body}\n}}"
        module = ir.Module.parse(text, make_context())
        number = len(module.body.operations[0].regions[0].blocks[0].arguments)
        return Graph(module, ParameterStore(), "encode", [GraphInput(i, f"arg{i}") for i in range(number)])

    return make


@pytest.fixture
def captured() -> Interpreted:
    """A fresh backend for `torch.compile`."""
    return Interpreted()


@pytest.fixture
def make_model() -> Callable[[str], nn.Module]:
    """`make_model("llama")`: a two-layer model in miniature with fresh random weights."""
    import transformers as hf

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    gpt2: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    makers: dict[str, Callable[[], nn.Module]] = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_key_value_heads=2)),
        "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, num_key_value_heads=2, head_dim=8)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)),
        "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**sizes, ffn_dim=48, word_embed_proj_dim=32)),
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**sizes)),
    }

    def make(name: str) -> nn.Module:
        return makers[name]().eval()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [2, 7]."""
    return torch.randint(3, VOCABULARY, (2, 7))
