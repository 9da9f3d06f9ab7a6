"""Models in miniature, graphs from text, and a backend that runs passes and then interprets."""

from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
import torch
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from filecheck.parser import Parser, pattern_for_opts
from lutra.ir.context import make_context
from lutra.ir.graph import Graph, GraphInput
from lutra.ir.interpreter import interpret
from lutra.ir.ops import ParamOp
from lutra.ir.types import TensorType, tensor_type
from lutra.ir.weights.store import ParameterStore
from lutra.tests.support.capture import Interpreted
from torch import nn
from torch_mlir import ir

LAYERS = 2
VOCABULARY = 96


def _common() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }


def _make(name: str) -> nn.Module:
    import transformers as hf

    match name:
        case "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(**_common(), num_key_value_heads=2))
        case "qwen3":
            return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_common(), num_key_value_heads=2, head_dim=16))
        case "gpt2":
            return hf.GPT2LMHeadModel(
                hf.GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=LAYERS, n_head=4, n_positions=64)
            )
        case "opt":
            sizes = _common()
            return hf.OPTForCausalLM(
                hf.OPTConfig(**sizes, ffn_dim=sizes["intermediate_size"], word_embed_proj_dim=sizes["hidden_size"])
            )
        case "bert":
            return hf.BertForMaskedLM(hf.BertConfig(**_common()))
    raise AssertionError(name)


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """`make_model("llama")`: fresh random weights, of norms and biases too, so that none drops out of a result."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
        model = _make(name).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
                else:
                    parameter.mul_(3)
        return model.to(dtype)

    return make


@pytest.fixture
def interpreted() -> Callable[..., Interpreted]:
    """`interpreted({"fuse": {}}, ...)`: a backend for `torch.compile` that runs these passes."""
    return Interpreted


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [2, 7]."""
    return torch.randint(3, VOCABULARY, (2, 7))


@dataclass
class Parsed:
    """A graph from text, random arguments for it, and random values for the parameters that it names."""

    graph: Graph
    arguments: list[torch.Tensor]

    def run(self) -> list[Any]:
        """Results of the graph as it is now."""
        return interpret(self.graph, self.arguments)


@pytest.fixture
def parse() -> Callable[[str], Parsed]:
    """`parse(text)`: one function `@main` in the torch and lutra dialects."""

    def make(text: str) -> Parsed:
        module = ir.Module.parse(text, make_context())
        function = module.body.operations[0]
        types = [tensor_type(a.type) for a in function.regions[0].blocks[0].arguments]
        graph = Graph(module, ParameterStore(), "encode", [GraphInput(i, f"arg{i}") for i in range(len(types))])
        for op in graph.operations:
            if isinstance(op, ParamOp):
                graph.store.bind(op.sym.value, _random(tensor_type(op.out.type)))
        return Parsed(graph, [_random(type_) for type_ in types])

    return make


def _random(type_: TensorType) -> torch.Tensor:
    shape = tuple(n or 0 for n in type_.shape)
    if type_.dtype == torch.int64:
        return torch.randperm(16)[: shape[0]]
    return torch.randn(shape).to(type_.dtype)


@pytest.fixture
def filecheck() -> Callable[[str, str], None]:
    """`filecheck(output, text)`: LLVM's FileCheck with the `CHECK` lines of `text`."""

    def check(output: str, text: str) -> None:
        options = parse_argv_options(["filecheck", "-", "--reject-empty-vars"])
        parser = Parser(options, StringIO(text), *pattern_for_opts(options))
        assert Matcher(options, FInput("output", output), parser).run() == 0, output

    return check
