"""Layers: how many, where the residual stream enters and leaves them, whose each operation is."""

from collections.abc import Callable

import pytest
import torch
from lutra.ir.analysis.axes import axes
from lutra.ir.analysis.layers import layers
from lutra.ir.graph import Graph
from lutra.tests.support.architectures import ARCHITECTURES, DECODERS
from lutra.tests.support.capture import Interpreted
from lutra.tests.support.studied import STAGES, Study, studied, study
from torch import nn


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_stacks_have_the_layers_of_the_configuration(name: str):
    for stage in STAGES:
        stacks = {name: found for graph in study(name, 3, 7).graphs[stage] for name, found in graph.stacks.items()}
        assert {name: len(found) for name, found in stacks.items()} == ARCHITECTURES[name].layers, stage
        for found in stacks.values():
            assert {layer.axes for layer in found} == {("batch", "sequence", "feature")}, stage


def hooked(done: Study, path: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states at the module of that path, which may begin at a part that torch compiled on its own."""
    return next(pairs for name, pairs in done.hooked.items() if f".{name}".endswith(f".{path}"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stream_at_boundaries_is_what_hooks_on_the_modules_see(name: str):
    done = study(name, 3, 7)
    for stage in ("imported", "none"):
        for graph in done.graphs[stage]:
            for stack, bounds in graph.boundaries.items():
                calls: dict[str, int] = {}
                for layer, entry, exit_ in zip(graph.stacks[stack], bounds[:-1], bounds[1:], strict=True):
                    number = calls[layer.path] = calls.get(layer.path, -1) + 1
                    before, after = hooked(done, layer.path)[number]
                    torch.testing.assert_close(entry, before, rtol=1e-4, atol=1e-4)
                    torch.testing.assert_close(exit_, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_operation_is_in_one_layer_or_outside_of_all(name: str):
    for stage in STAGES:
        for graph in study(name, 3, 7).graphs[stage]:
            assert (graph.twice, graph.unowned) == (0, 0), stage


def test_side_inputs_have_roles():
    done = study("llama", 3, 7).graphs["none"][0].stacks["model.layers"]
    assert {layer.inputs for layer in done} == {("rope", "rope")}
    assert {layer.outputs for layer in done} == {("cache", "cache")}
    first, *_ = study("t5", 3, 7).graphs["imported"][0].stacks["decoder.block"]
    assert sorted(first.inputs) == ["mask", "mask", "states"]


@pytest.mark.parametrize(("name", "recipe", "batch"), [("llama", "w4", 1), ("gemma3", "none", 3), ("opt", "none", 3)])
def test_decode_steps_over_a_static_cache_have_the_layers_and_axes_of_the_prompt(name: str, recipe: str, batch: int):
    model, backend = DECODERS[name].model(), Interpreted(recipe)
    model.forward = torch.compile(model.forward, backend=backend)
    with torch.no_grad():
        keywords = {"max_new_tokens": 3, "do_sample": False, "disable_compile": True, "pad_token_id": 0}
        ids = DECODERS[name].inputs(batch, 7)["input_ids"]
        model.generate(ids, cache_implementation="static", **keywords)  # pyright: ignore[reportCallIssue]
    phases = {}
    for graph in backend.graphs:
        found = studied(graph)
        assert not found.contradictions
        (layers_,) = found.stacks.values()
        assert len(layers_) == 2
        assert {layer.axes for layer in layers_} == {("batch", "sequence", "feature")}
        assert all(layer.outputs.count("cache") == 2 for layer in layers_)
        assert graph.phase == "prefill" or all(layer.inputs.count("cache") == 2 for layer in layers_)
        phases[graph.phase] = layers_
    assert set(phases) == {"prefill", "decode"}
    assert [layer.path for layer in phases["prefill"]] == [layer.path for layer in phases["decode"]]


def test_symbolic_sizes_give_the_answers_of_fixed_ones():
    architecture = ARCHITECTURES["llama"]
    backend = Interpreted("none")
    with torch.no_grad():
        torch.compile(architecture.model(), backend=backend, dynamic=True)(**architecture.inputs(3, 7))
    graph = backend.graph
    known = axes(graph)
    (stack,) = layers(graph, known).stacks
    fixed = study("llama", 3, 7).graphs["none"][0].stacks["model.layers"]
    assert [known.kinds(layer.entry) for layer in stack.layers] == [layer.axes for layer in fixed]
    assert [tuple(side.role for side in layer.side_inputs) for layer in stack.layers] == [one.inputs for one in fixed]
    batch, sequence = (dimension[0] for dimension in stack.axes[:2])
    assert batch.size.is_Symbol and sequence.size.is_Symbol and batch != sequence


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def captured(model: Callable[..., torch.Tensor], x: torch.Tensor) -> Graph:
    backend = Interpreted()
    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return backend.graph


def test_layers_of_one_module_are_told_apart_by_the_pattern_that_repeats():
    block = Block()
    found = layers(captured(lambda x: block(block(block(x))), torch.randn(2, 5, 8)))
    (stack,) = found.stacks
    assert len(stack.layers) == 3
    assert all(one.exit == next_.entry for one, next_ in zip(stack.layers, stack.layers[1:], strict=False))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), "no residual stream"),
        (nn.ReLU(), "no operation multiplies"),
    ],
)
def test_a_graph_without_layers_says_why(model: nn.Module, reason: str):
    found = layers(captured(model, torch.randn(2, 5, 8)))
    assert not found.stacks and reason in found.why_none
    assert len(found.outside) == len(list(captured(model, torch.randn(2, 5, 8)).operations))
