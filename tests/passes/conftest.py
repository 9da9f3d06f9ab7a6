"""Models in miniature, and a torch.compile backend that runs a recipe's passes and then interprets the graph."""

from collections import Counter
from collections.abc import Callable, Sequence
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
from lutra.ir.rewriting import operator_name
from lutra.ir.types import TensorType, tensor_type
from lutra.ir.weights.store import ParameterStore
from lutra.passes.base import PassReport
from lutra.passes.calibration import Calibration
from lutra.passes.pipeline import run_passes
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe
from lutra.torch_plugin.capture import capture
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


class Interpreted:
    """A backend: capture, the passes of `entries`, interpretation. Keeps graphs, the last arguments and the reports of
    all entries; `raised`: the last of what is recognised before them."""

    def __init__(self, *entries: Any, facts: dict[str, int] | None = None) -> None:
        recipe = {"lutra": 1, "name": "test", "passes": list(entries)}
        self.steps = load_recipe(recipe, available_passes()).steps
        self.facts = facts
        self.store = ParameterStore()
        self.graphs: list[Graph] = []
        self.reports: list[PassReport] = []
        self.raised = PassReport("raise")
        self.arguments: list[Any] = []

    @property
    def graph(self) -> Graph:
        """The only graph."""
        (graph,) = self.graphs
        return graph

    def __call__(self, gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return capture(gm, inputs, self.store, self._compile)

    def _compile(self, graph: Graph, functional: torch.fx.GraphModule) -> Callable[..., Any]:
        self.raised, *reports = run_passes(graph, self.steps, self.facts)
        self.reports += reports
        self.graphs.append(graph)

        def run(arguments: list[Any]) -> list[Any]:
            inputs = [arguments[i.position] for i in graph.inputs]
            self.arguments = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
            outputs = interpret(graph, inputs)
            for result, argument in graph.mutations.items():
                inputs[argument].copy_(outputs[result])
            return [value for i, value in enumerate(outputs) if i not in graph.mutations]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def again(self) -> list[Any]:
        """Results of the graph as it is now for the arguments of the last call."""
        return interpret(self.graph, self.arguments)

    def rewrite(self, *entries: Any, calibration: Calibration | None = None, strict: bool = False) -> list[PassReport]:
        """Run more passes on the graph."""
        recipe = {"lutra": 1, "name": "more", "passes": list(entries)}
        steps = load_recipe(recipe, available_passes()).steps
        self.raised, *reports = run_passes(self.graph, steps, self.facts, calibration=calibration, strict=strict)
        return reports

    def counts(self) -> Counter[str]:
        """Operations of the graph by name, without `torch.` and `lutra.`; constants and parameters left out."""
        names = Counter(operator_name(op).removeprefix("torch.").removeprefix("lutra.") for op in self.graph.operations)
        skipped = ("constant.", "prim.", "param", "return", "func.return", "vtensor.literal")
        return Counter({name: n for name, n in names.items() if not name.startswith(skipped)})


@pytest.fixture
def interpreted() -> Callable[..., Interpreted]:
    """`interpreted({"fuse": {}}, ...)`: a backend for `torch.compile`."""
    torch._dynamo.reset()
    torch._dynamo.config.specialize_float = True
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
            if operator_name(op) == "lutra.param":
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
