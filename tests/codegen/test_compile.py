"""From a graph to an executable, by way of the cache or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lutra.codegen.cache.executables import ExecutableCache
from lutra.codegen.compile import CodegenOptions, compile_graph
from lutra.codegen.select import Tuned
from lutra.codegen.targets.registry import get_target
from lutra.ir.errors import LoweringError
from torch import nn

TARGET = get_target("portable")
FUSE = [{"fuse": {}}]


class Model(nn.Module):
    """A product, and an operator that has no lowering."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0e(self.linear(x))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_an_executable_gives_what_the_model_gives_and_says_what_it_took(graph_of: Any, model: Model):
    x = torch.randn(3, 32)
    executable = compile_graph(graph_of(model, x, passes=FUSE), TARGET, CodegenOptions())
    torch.testing.assert_close(executable(x)[0], model(x))
    summary = executable.summary
    assert summary.cache == "off"
    assert [call.operator for call in summary.fallbacks] == ["aten.special_i0e"]
    assert [choice.implementation for choice in summary.chosen] == ["dense"]
    assert "total" in summary.seconds


def test_strict_is_an_error_that_names_what_has_no_lowering(graph_of: Any, model: Model, tmp_path: Path):
    graph, cache = graph_of(model, torch.randn(3, 32)), ExecutableCache(tmp_path)
    for _ in range(2):  # code of others in the cache is no way around
        with pytest.raises(LoweringError, match=r"(?s)strict: .*aten\.special_i0e .*test_compile\.py:\d+.*no lowering"):
            compile_graph(graph, TARGET, CodegenOptions(strict=True, cache=cache))
        compile_graph(graph, TARGET, CodegenOptions(cache=cache))


def test_what_is_kept_is_found_with_all_that_a_summary_says_and_each_option_is_its_own(
    graph_of: Any, model: Model, tmp_path: Path
):
    x, cache = torch.randn(3, 32), ExecutableCache(tmp_path)
    graph = graph_of(model, x)
    first = compile_graph(graph, TARGET, CodegenOptions(cache=cache))
    again = compile_graph(graph, TARGET, CodegenOptions(cache=cache))
    assert (first.summary.cache, again.summary.cache) == ("miss: this graph is new", "hit")
    for name in ("kernels", "fallbacks", "chosen"):
        assert getattr(first.summary, name) == getattr(again.summary, name)
    assert "generate" not in again.summary.seconds
    torch.testing.assert_close(again(x), first(x))
    for options in (
        CodegenOptions(kernel_family="dot", cache=cache),
        CodegenOptions(database={"another problem": Tuned("dense")}, cache=cache),
    ):
        assert compile_graph(graph, TARGET, options).summary.cache == "miss: options changed"


def test_relax_and_tir_are_handed_out_even_where_code_is_in_the_cache(graph_of: Any, model: Model, tmp_path: Path):
    graph, cache, texts = graph_of(model, torch.randn(3, 32), passes=FUSE), ExecutableCache(tmp_path), {}
    for _ in range(2):
        texts.clear()
        compile_graph(graph, TARGET, CodegenOptions(cache=cache, dump=texts.__setitem__))
        assert texts.keys() == {"relax.py", "tir.py"}
    assert "lutra.torch_call" in texts["relax.py"] and "dense_linear" in texts["tir.py"]


def test_stages_are_told_in_order_and_timed(graph_of: Any, model: Model, tmp_path: Path):
    told: list[str] = []
    cache = ExecutableCache(tmp_path)
    options = CodegenOptions(cache=cache, progress=lambda stage, done=0, total=0: told.append(stage))
    summary = compile_graph(graph_of(model, torch.randn(3, 32)), TARGET, options).summary
    stages = ["lower", "optimise", "generate", "store"]
    assert list(dict.fromkeys(told)) == [*stages, "weights"]
    assert list(summary.seconds) == [*stages, "pack weights", "total"]
