"""Importing FX graphs: values, mutations, module paths, symbolic sizes, constants that tracing lifts out."""

import re
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
import torch
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from filecheck.parser import Parser, pattern_for_opts
from lutra.ir.weights.store import ParameterStore
from lutra.tests.support.capture import Interpreted
from torch import nn


def compiled(function: Callable[..., Any], store: ParameterStore, *arguments: torch.Tensor) -> Any:
    """`function` captured and interpreted."""

    backend = Interpreted()
    backend.store = store
    with torch.no_grad():
        return torch.compile(function, backend=backend, fullgraph=True)(*arguments)


def with_constants(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor (as lazily initialised caches make), a vector and a flag as constants."""
    empty = torch.tensor([], dtype=x.dtype).reshape(0, 3)
    shift = torch.tensor([0.5, -1.0, 2.0], dtype=x.dtype)
    return torch.cat([empty, torch.where(torch.tensor([True, False, True]), x + shift, x)])


def test_constants_of_any_dtype_become_parameters_named_by_content():
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        x, store = torch.randint(-9, 9, (2, 3)).to(dtype), ParameterStore()
        torch.testing.assert_close(compiled(with_constants, store, x), with_constants(x))
        names = store.originals()
        again = ParameterStore()
        compiled(with_constants, again, x)
        assert again.originals() == names
        assert all(name.startswith("constant.") for name in names)


def test_names_of_constants_are_the_same_in_every_process():
    store = ParameterStore()
    compiled(with_constants, store, torch.ones(2, 3))
    script = (
        "import torch, runpy; from lutra.ir.weights.store import ParameterStore\n"
        f"module = runpy.run_path({__file__!r}); store = ParameterStore()\n"
        "module['compiled'](module['with_constants'], store, torch.ones(2, 3)); print(store.originals())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(store.originals())


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [*((name, False) for name in ("llama", "qwen3", "gpt2", "opt", "bert")), ("llama", True), ("bert", True)],
)
def test_imported_models_agree_with_eager(
    name: str, dynamic: bool, make_model: Callable[[str], nn.Module], captured: Any, tokens: torch.Tensor
):
    model, mask = make_model(name), torch.ones_like(tokens)
    mask[0, :3] = 0
    options = {} if name == "bert" else {"use_cache": False}
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask, **options).logits
        compiled = torch.compile(model, backend=captured, dynamic=dynamic, fullgraph=True)
        torch.testing.assert_close(compiled(tokens, attention_mask=mask, **options).logits, expected)
    graph = captured.graph
    assert graph.phase == "encode"
    assert bool(graph.symbol_ranges) == dynamic
    assert not graph.mutations
    # Every parameter is read by name, none is an argument or a literal.
    named = dict(model.named_parameters(remove_duplicate=False))
    assert set(graph.parameter_positions.values()) & set(named)
    assert all(not i.name.endswith(("weight", "bias")) for i in graph.inputs)


def test_caches_are_results_that_name_the_argument_they_are_written_to(
    make_model: Callable[[str], nn.Module], captured: Any, tokens: torch.Tensor
):
    from transformers import StaticCache

    model = make_model("llama")
    compiled = torch.compile(model, backend=captured, dynamic=False, fullgraph=True)
    caches = [StaticCache(model.config, max_cache_len=12) for _ in range(2)]  # pyright: ignore[reportArgumentType]
    layers: list[Any] = caches[1].layers
    keys: list[int] = []
    with torch.no_grad():
        for step in (tokens, tokens[:, :1], tokens[:, 1:2]):
            expected = model(step, past_key_values=caches[0]).logits
            torch.testing.assert_close(compiled(step, past_key_values=caches[1]).logits, expected)
            for eager, ours in zip(caches[0].layers, caches[1].layers, strict=True):
                torch.testing.assert_close((ours.keys, ours.values), (eager.keys, eager.values))
            keys = keys or [layer.keys.data_ptr() for layer in layers]
    assert keys == [layer.keys.data_ptr() for layer in layers]
    decode = captured.graphs[-1]
    assert (captured.graphs[0].phase, decode.phase) == ("prefill", "decode")
    written = [decode.inputs[argument] for argument in decode.mutations.values()]
    assert all(i.mutated for i in written)
    # Keys, values and the count of positions, of each of two layers.
    ranks = [len(decode.input_shapes[argument]) for argument in set(decode.mutations.values())]
    assert sorted(ranks) == [0, 0, 4, 4, 4, 4]
    assert len(written) == 6


def test_every_operator_carries_the_path_of_its_module(
    make_model: Callable[[str], nn.Module], captured: Any, tokens: torch.Tensor
):
    model = make_model("llama")
    with torch.no_grad():
        torch.compile(model, backend=captured, fullgraph=True, dynamic=False)(tokens, use_cache=False)
    modules = dict(model.named_modules())
    linears = set()
    for op in captured.graph.operations:
        operation = op.operation
        if not re.match(r"torch\.(aten|operator)", operation.name):
            continue
        path = str(operation.attributes["lutra.path"]).strip('"')
        assert path in modules
        assert f'"{path}"' in str(operation.location)
        if operation.name == "torch.aten.linear":
            linears.add(path)
    assert linears == {name for name, module in modules.items() if isinstance(module, nn.Linear)}


class Small(nn.Module):
    """A layer with a parameter, a buffer that it updates, and a size in its arithmetic."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        self.seen.add_(y.sum(0))
        return y * x.shape[0] ** 2


def test_a_small_module_is_written_as_expected(captured: Any):
    model, x = Small(), torch.randn(5, 4)
    with torch.no_grad():
        got = torch.compile(model, backend=captured, dynamic=True, fullgraph=True)(x)
    torch.testing.assert_close(got, model.inner(x) * 25)
    torch.testing.assert_close(model.seen, model.inner(x).sum(0))
    graph = captured.graph
    assert [i.name for i in graph.inputs if i.mutated] == ["seen"]
    (size,) = graph.symbol_ranges
    assert size in {s for shape in graph.input_shapes for s in shape}
    filecheck(
        str(graph.module),
        """
        CHECK:      func.func @main(%[[S:.*]]: !torch.int, %[[X:.*]]: !torch.vtensor<[?,4],f32>,
        CHECK-SAME: %[[SEEN:.*]]: !torch.vtensor<[3],f32>) -> (!torch.vtensor<[?,3],f32>, !torch.vtensor<[3],f32>)
        CHECK-DAG:  %[[B:.*]] = "lutra.param"() {sym = "inner.bias"} : () -> !torch.vtensor<[3],f32>
        CHECK-DAG:  %[[W:.*]] = "lutra.param"() {sym = "inner.weight"} : () -> !torch.vtensor<[3,4],f32>
        CHECK:      %[[Y:.*]] = torch.aten.linear %[[X]], %[[W]], %[[B]]
        CHECK-SAME: {lutra.path = "inner", lutra.sizes = "[{{.*}}, 3]"}
        CHECK:      %[[SUM:.*]] = torch.aten.sum.dim_IntList %[[Y]]
        CHECK:      %[[NEW:.*]] = torch.aten.add.Tensor %[[SEEN]], %[[SUM]]
        CHECK:      %[[SQUARE:.*]] = "lutra.number"() {expression = "{{.*}}**2"} : () -> !torch.int
        CHECK:      %[[OUT:.*]] = torch.aten.mul.Scalar %[[Y]], %[[SQUARE]]
        CHECK-NOT:  torch.aten.copy_
        CHECK:      return %[[OUT]], %[[NEW]]
        """,
    )


def filecheck(output: str, text: str) -> None:
    """LLVM's FileCheck with the `CHECK` lines of `text`."""
    options = parse_argv_options(["filecheck", "-", "--reject-empty-vars"])
    parser = Parser(options, StringIO(text), *pattern_for_opts(options))
    assert Matcher(options, FInput("output", output), parser).run() == 0, output
