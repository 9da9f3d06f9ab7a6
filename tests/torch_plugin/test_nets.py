"""Whatever fails, the caller gets eager's answer, and the report and one warning say what torch ran, and why."""

import logging
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.codegen import compile as codegen
from lutra.codegen.lowering import registry
from lutra.codegen.pipelines import cpu
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.codegen.targets.registry import get_target
from lutra.ir.importing import fx_import
from lutra.passes.fuse.fuse import Fuse
from lutra.torch_plugin import nets
from torch import nn


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(nets, "_warned", set())
    torch._dynamo.reset()
    torch.manual_seed(0)


class Model(nn.Module):
    """A linear, a norm and an activation, and a buffer that counts calls."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 32), nn.LayerNorm(32)
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return torch.tanh(self.norm(self.linear(x)))


def fails(*_: Any, **__: Any) -> Any:
    raise ValueError("an injected fault")


def run(model: nn.Module, **options: Any) -> Any:
    fast, x = torch.compile(model, backend="lutra", options=options), torch.randn(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
    return fast


def lowering_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(registry.LOWERINGS, "torch.aten.tanh", fails)


def import_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fx_import.NodeImporter, "_call", fails)


def mlir_is_invalid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fx_import, "clean_up", fails)


def a_pass_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Fuse, "run", fails)


def optimising_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cpu, "with_workspace", fails)


def the_compiler_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codegen.relax, "build", fails)


def the_processor_is_older(patch: pytest.MonkeyPatch) -> None:
    """LLVM would end the process."""
    isa = ISAS[get_target("auto").name]
    patch.setattr(type(isa), "native", lambda self: {"mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"})


def loading_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codegen, "Executable", fails)


WHOLE = [import_fails, mlir_is_invalid, a_pass_fails, optimising_fails, the_compiler_fails, loading_fails]


def test_an_operator_whose_lowering_fails_runs_in_torch(monkeypatch: pytest.MonkeyPatch, caplog: Any):
    lowering_fails(monkeypatch)
    (report,) = lutra.report(run(Model())).graphs
    (call,) = report.torch_calls
    assert report.fell is None and report.fallbacks == {"aten.tanh": 1}
    assert call.reason == "its lowering failed: ValueError: an injected fault"
    assert Path(call.source.rsplit(":", 1)[0]).name == "test_nets.py"
    text = " ".join(str(report).split())  # where its lines break depends on the length of a path
    assert "aten.tanh" in text and "an injected fault" in text
    (warning,) = [r for r in caplog.records if r.name == "lutra"]
    assert "aten.tanh" in warning.getMessage() and "an injected fault" in warning.getMessage()


@pytest.mark.parametrize("fault", WHOLE)
def test_a_graph_that_cannot_be_compiled_runs_in_torch(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    fault(monkeypatch)
    model = Model()
    reports = lutra.report(run(model, recipe="none")).graphs
    torch.testing.assert_close(model.calls, torch.full((3,), 2.0))  # updated in place, by eager and by the net
    assert [report.fell is not None and "an injected fault" in report.fell for report in reports] == [True]
    assert "torch runs it as a whole" in str(reports[0])
    (warning,) = [r for r in caplog.records if r.name == "lutra" and r.levelno >= logging.WARNING]
    assert "an injected fault" in warning.getMessage()


@pytest.mark.skipif(not get_target("auto").features, reason="every processor has what the portable target needs")
def test_instructions_that_the_compiler_does_not_know_do_not_end_the_process(monkeypatch: pytest.MonkeyPatch):
    the_processor_is_older(monkeypatch)
    (report,) = lutra.report(run(Model())).graphs
    assert report.fell is not None and "which LLVM does not see in" in report.fell


@pytest.mark.parametrize("fault", [lowering_fails, *WHOLE])
def test_strict_makes_each_an_error(fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch):
    fault(monkeypatch)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="an injected fault"):
        run(Model(), strict=True)


def test_a_call_that_compiled_code_cannot_make_runs_in_torch(monkeypatch: pytest.MonkeyPatch):
    model = Model()
    fast = run(model)
    monkeypatch.setattr(lutra.codegen.runtime.executable.Executable, "__call__", fails)
    x = torch.randn(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


def test_a_fallen_graph_keeps_the_weights_that_it_reads(monkeypatch: pytest.MonkeyPatch):
    a_pass_fails(monkeypatch)
    model = Model()
    run(model, recipe="w8", release_weights=True)
    assert not model.linear.weight.isnan().any()


def test_a_mistake_is_never_caught():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="RecipeError: there is no recipe 'w3'"):
        run(Model(), recipe="w3")


def test_the_dump_of_a_fallen_graph_is_a_script_that_runs_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: Any
):
    a_pass_fails(monkeypatch)
    recipe = {"lutra": 1, "name": "mine", "passes": [{"fuse": {}}]}
    run(Model(), recipe=recipe, dump=tmp_path / "dump")
    (script,) = (tmp_path / "dump").glob("fallen-0/*-reproduce.py")
    said = len(caplog.records)
    nets._warned.clear()
    runpy.run_path(str(script))
    assert "an injected fault" in "".join(record.getMessage() for record in caplog.records[said:])
    assert "an injected fault" in script.read_text()


def test_constants_are_compared_and_joined_as_torch_does():
    """torch-mlir's folders crash on the first, and take NaN to equal itself."""

    def constants(x: torch.Tensor) -> Any:
        return torch.zeros(2) > 0, torch.cat([torch.empty(0), x]), torch.full((3,), torch.nan) == torch.nan, x + 0 == x

    x = torch.tensor([1.0, torch.nan])
    with torch.no_grad():
        got, expected = torch.compile(constants, backend="lutra")(x), constants(x)
    torch.testing.assert_close(got, expected, equal_nan=True)


def of_complex(x: torch.Tensor) -> Any:
    spectrum = torch.fft.rfft(x)
    turned = torch.view_as_complex(torch.stack([x.cos(), x.sin()], -1))
    return torch.fft.irfft(spectrum * 2) + x, turned, (turned * turned).abs().sum(1)


def of_shorts(x: torch.Tensor) -> Any:
    short = (x * 100).abs().to(torch.uint16)
    return short, short.to(torch.int32) + 1, (x + 1).relu()


def of_branches(x: torch.Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x - 1, (x,)) * 2


def of_effects(x: torch.Tensor) -> Any:
    square = x[:4, :4] + 5 * torch.eye(4)
    return torch.linalg.inv(square) @ square, x + 1


def of_strides(x: torch.Tensor) -> Any:
    return x.as_strided((3, 2), (1, 3)) * 2, torch.searchsorted(x[0].sort().values, x[1])


def of_shared_memory(x: torch.Tensor) -> Any:
    a, b = x[:3], x[2:]
    a.mul_(2)
    return a + b[:3]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "function", [of_complex, of_shorts, of_branches, of_effects, of_strides, of_shared_memory], ids=lambda f: f.__name__
)
def test_values_that_the_ir_cannot_hold_stay_with_torch(function: Callable[..., Any], dynamic: bool):
    fast = torch.compile(function, backend="lutra", dynamic=dynamic, fullgraph=True)
    for rows in (6, 5) if dynamic else (6,):
        x = torch.randn(rows, 8)
        ours, theirs = x.clone(), x.clone()
        with torch.no_grad():
            torch.testing.assert_close(fast(ours), function(theirs))
        torch.testing.assert_close(ours, theirs)


def test_foreign_arguments_results_and_buffers_cross_as_they_are():
    class Turned(nn.Module):
        table: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.polar(torch.ones(8), torch.randn(8)))
            self.scale = nn.Parameter(torch.randn(16))

        def forward(self, x: torch.Tensor, z: torch.Tensor) -> Any:
            turned = torch.view_as_complex((x * self.scale).view(3, 8, 2)) * self.table
            z.mul_(2)
            return torch.view_as_real(turned + z).flatten(1), turned, z.real + 1

    model = Turned()
    fast = torch.compile(model, backend="lutra", fullgraph=True)
    x, z = torch.randn(3, 16), torch.randn(3, 8, dtype=torch.complex64)
    ours, theirs = z.clone(), z.clone()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x, ours), model(x, theirs))
            torch.testing.assert_close(ours, theirs)
            model.table.mul_(1j)
    assert [report.fell for report in lutra.report(fast).graphs] == [None]


class Lists(nn.Module):
    """Parameters and buffers inside lists of operands."""

    index: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 4))
        self.register_buffer("index", torch.tensor([[0, 6], [3, 3]]))

    def forward(self, x: torch.Tensor) -> Any:
        return (
            x[self.index],
            self.table[self.index] + 1,
            torch.cat([self.table, x]),
            torch.stack([self.table, self.table]),
        )


def test_parameters_inside_lists_are_read_as_parameters():
    model, x = Lists(), torch.randn(7, 4)
    fast = torch.compile(model, backend="lutra", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(fast(x), model(x))
            model.table.data.mul_(2)
    assert all(report.fell is None for report in lutra.report(fast).graphs)


def test_jagged_and_sparse_arguments_give_eagers_answer():
    jagged = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(5, 4)], layout=torch.jagged)
    sparse = torch.eye(4).to_sparse()
    x = torch.randn(4, 4)
    with torch.no_grad():
        got = torch.compile(lambda n: n * 2 + 1, backend="lutra")(jagged)
        torch.testing.assert_close(got.values(), jagged.values() * 2 + 1)
        torch.testing.assert_close(torch.compile(lambda s, x: s @ x + 1, backend="lutra")(sparse, x), sparse @ x + 1)
