"""Graphs from text, and a torch.compile backend that captures graphs and runs them with the interpreter."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lutra.ir.context import make_context
from lutra.ir.graph import Graph, GraphInput
from lutra.ir.interpreter import interpret
from lutra.ir.weights.store import ParameterStore
from lutra.torch_plugin.capture import capture
from lutra.torch_plugin.retracing import trace_as_wanted
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


class Captured:
    """A backend that interprets what it captures. `calls`: graph and arguments of each run."""

    def __init__(self) -> None:
        self.store = ParameterStore()
        self.graphs: list[Graph] = []
        self.calls: list[tuple[Graph, list[Any]]] = []

    @property
    def graph(self) -> Graph:
        """The only graph."""
        (graph,) = self.graphs
        return graph

    def __call__(self, gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        trace_as_wanted(gm, inputs)
        return capture(gm, inputs, self.store, self._compile)

    def _compile(self, graph: Graph, _: torch.fx.GraphModule) -> Callable[..., Any]:
        self.graphs.append(graph)

        def run(arguments: list[Any]) -> list[Any]:
            inputs = [arguments[i.position] for i in graph.inputs]
            self.calls.append((graph, [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]))
            outputs = interpret(graph, inputs)
            for result, argument in graph.mutations.items():
                inputs[argument].copy_(outputs[result])
            return [value for i, value in enumerate(outputs) if i not in graph.mutations]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


@pytest.fixture
def captured() -> Captured:
    """A fresh backend for `torch.compile`."""
    torch._dynamo.reset()
    return Captured()


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
