"""Importing FX graphs: constants that tracing lifts out of the model."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lutra.ir.graph import Graph
from lutra.ir.interpreter import interpret
from lutra.ir.params import ParameterStore
from lutra.torch_plugin.capture import capture


def compiled(function: Callable[..., Any], store: ParameterStore, *arguments: torch.Tensor) -> Any:
    """`function` captured and interpreted."""

    def backend(gm: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def compile_graph(graph: Graph, _: torch.fx.GraphModule) -> Callable[..., Any]:
            def run(values: list[Any]) -> list[Any]:
                return interpret(graph, [values[i.position] for i in graph.inputs])

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return capture(gm, inputs, store, compile_graph)

    torch._dynamo.reset()
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
        "import torch, runpy; from lutra.ir.params import ParameterStore\n"
        f"module = runpy.run_path({__file__!r}); store = ParameterStore()\n"
        "module['compiled'](module['with_constants'], store, torch.ones(2, 3)); print(store.originals())"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(store.originals())
