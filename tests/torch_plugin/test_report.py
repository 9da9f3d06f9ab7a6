"""`lutra.report`: what was compiled for a model."""

from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.passes.base import LeftAlone, PassReport
from lutra.torch_plugin.report import GraphReport
from torch import nn


class Network(nn.Module):
    """A norm, two linears, and an operator that has no lowering (a fallback)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.special.i0e(self.first(self.norm(x))))


def compile_(model: Any, folder: Path, **options: Any) -> Any:
    torch._dynamo.reset()
    given: Any = {"cache_dir": folder, **options}
    return torch.compile(model, backend="lutra", options=given)


def test_a_report_says_what_runs_and_where_it_came_from(tmp_path: Path):
    model, x = Network(), torch.randn(3, 64)
    compiled = compile_(model, tmp_path)
    with torch.no_grad():
        compiled(x)
    (report,) = lutra.report(compiled).graphs
    assert report.phase == "encode"
    assert [p.name for p in report.passes] == ["fuse"]
    assert sum(report.kernels.values()) >= 3
    assert sum(report.fallbacks.values()) == 1 and "special_i0e" in next(iter(report.fallbacks))
    assert report.cache.startswith("miss: ")
    assert all(time >= 0 for time in report.seconds.values()) and report.seconds
    text = str(report)
    for part in ("encode graph", "fuse", "none.yaml:", "fuse_linear 2", "special_i0e 1", "miss: "):
        assert part in text
    assert max(map(len, text.splitlines())) <= 110

    again = compile_(Network(), tmp_path)
    with torch.no_grad():
        again(x)
    assert lutra.report(again).graphs[0].cache == "hit"


def test_reports_are_found_from_the_compiled_model_its_original_a_method_and_a_part(tmp_path: Path):
    model, x = Network(), torch.randn(3, 64)
    with torch.no_grad():
        compile_(model.forward, tmp_path)(x)
    expected = lutra.report(model).graphs
    assert len(expected) == 1
    compiled = torch.compile(model.forward, backend="lutra")
    for handle in (model.first, model.forward, compiled, nn.ModuleList([model, nn.Linear(2, 2)])):
        assert lutra.report(handle).graphs == expected
    assert lutra.report(nn.Linear(2, 2)).graphs == ()
    with pytest.raises(TypeError, match="a module, or a method of one, compiled or not, is wanted; got int"):
        lutra.report(3)


def test_different_options_and_shapes_have_reports_of_their_own(tmp_path: Path):
    model = Network()
    with torch.no_grad():
        compile_(model, tmp_path)(torch.randn(3, 64))
        quantised = {"lutra": 1, "name": "q", "passes": [{"fuse": {}}, {"quantize-weights": {"group_size": 64}}]}
        options: Any = {"cache_dir": tmp_path, "recipe": quantised}
        torch.compile(model, backend="lutra", options=options)(torch.randn(3, 64))
    assert sorted(len(report.passes) for report in lutra.report(model).graphs) == [1, 2]
    assert {report.packed_bytes > 0 for report in lutra.report(model).graphs} == {False, True}


def test_long_lists_of_what_was_left_alone_are_cut():
    left = [LeftAlone(f"model.layers.{i}.mlp", "its columns do not divide") for i in range(9)]
    report = GraphReport("decode", (PassReport("thin", "r.yaml:3", 9, {}, left),), {}, {}, "hit", {}, 1_500_000)
    text = str(report)
    assert "... and 4 more" in text and "layers.4" in text and "layers.5" not in text
    assert "1.5 MB" in text
