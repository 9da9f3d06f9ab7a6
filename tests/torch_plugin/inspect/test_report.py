"""`lutra.report`: what was compiled for a model."""

from io import StringIO
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.passes.base import LeftAlone, PassReport
from lutra.torch_plugin import nets
from lutra.torch_plugin.inspect.report import GraphReport
from rich.console import Console
from torch import nn
from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM


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
    assert [p.name for p in report.passes] == ["raise", "fuse"]
    assert sum(report.kernels.values()) >= 3
    assert sum(report.fallbacks.values()) == 1 and "special_i0e" in next(iter(report.fallbacks))
    assert report.cache.startswith("miss: ")
    assert all(time >= 0 for time in report.seconds.values()) and report.seconds
    text = str(report)
    for part in ("encode graph", "fuse", "none.yaml:", "raise", "linear 2", "special_i0e 1", "miss: "):
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
    assert sorted(len(report.passes) for report in lutra.report(model).graphs) == [2, 3]
    assert {report.packed_bytes > 0 for report in lutra.report(model).graphs} == {False, True}


def test_a_report_says_what_was_chosen_and_why_nothing_else_also_of_code_from_the_cache(tmp_path: Path):
    recipe = {"lutra": 1, "name": "q", "passes": [{"fuse": {}}, {"quantize-weights": {"bits": 8, "group_size": 64}}]}
    reports = []
    for _ in range(2):
        model = Network()
        compiled = compile_(model, tmp_path, recipe=recipe, target="portable", kernel_family="lookup")
        with torch.no_grad():
            compiled(torch.randn(3, 64))
        reports += lutra.report(model).graphs
    first, again = reports
    assert again.cache == "hit" and again.chosen == first.chosen
    (choice,) = first.chosen
    assert (choice.implementation, choice.count, len(choice.weights)) == ("packed lookup", 2, 2)
    text = str(first)
    assert "linear s8g64, 3 rows of float32: packed lookup 2" in text
    assert "not gemm of lookup: up to 16 rows read the weight as it is packed" in text
    assert "kernel_family" not in text, "what could not have been chosen is left to the table"
    (console := Console(width=200, file=StringIO())).print(first.choices())
    table = console.file.getvalue()  # type: ignore[attr-defined]
    assert "kernel_family asks for lookup" in table and "its weight is quantised" in table


def test_long_lists_of_what_was_left_alone_are_cut():
    left = [LeftAlone(f"model.layers.{i}.mlp", "its columns do not divide") for i in range(9)]
    report = GraphReport("decode", (PassReport("thin", "r.yaml:3", 9, {}, left),), {}, {}, "hit", {}, 1_500_000)
    text = str(report)
    assert "... and 4 more" in text and "layers.4" in text and "layers.5" not in text
    assert "1.5 MB" in text


# Weights --------------------------------------------------------------------------------------------------------------


def llama(**changes: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4} | changes
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def test_all_weights_are_accounted_for(tmp_path: Path):
    model, ids = llama(), torch.tensor([[3, 4, 5]])
    entry = {"quantize-weights": {"bits": 4, "group_size": 128, "select": {"layers": "0..-1"}}}
    fast = compile_(model, tmp_path, recipe={"lutra": 1, "name": "r", "passes": [{"fuse": {}}, entry]})
    with torch.no_grad():
        fast(ids, use_cache=False)
    account = lutra.report(fast).weights
    assert account is not None
    assert account.before == sum(p.nbytes for p in model.parameters())
    found = {kept.kind: kept for kept in account.floating}
    assert found["embedding"].bytes == model.model.embed_tokens.weight.nbytes
    assert found["not selected"].paths == ("lm_head",)
    assert found["vector"].bytes == 3 * 128 * 4
    assert found.keys() == {"embedding", "not selected", "vector"}
    assert account.low_bit_before + account.float_bytes == account.before
    layer = model.model.layers[0]
    groups = [(p, p.shape[1] // 64 if p.shape[1] == 192 else 1) for p in layer.parameters() if p.dim() > 1]
    assert account.low_bit == sum(p.numel() // 2 + p.shape[0] * number * 2 for p, number in groups)
    text = " ".join(str(lutra.report(fast)).split())
    for part in ("low-bit", "an embedding: its rows are looked up", "lm_head", "groups of 64, since 128"):
        assert part in text


def test_what_no_graph_reads_and_what_is_read_both_ways_is_told(tmp_path: Path):
    model = llama(tie_word_embeddings=True)
    model.spare = nn.Linear(8, 8, bias=False)
    fast = compile_(model, tmp_path, recipe="w4")
    with torch.no_grad():
        fast(torch.tensor([[3, 4, 5]]), use_cache=False)
    account = lutra.report(fast).weights
    assert account is not None
    found = {kept.kind: kept for kept in account.floating}
    assert found["not read"].paths == ("spare",)
    embedding = model.model.embed_tokens.weight.nbytes
    assert found["embedding"].bytes == embedding
    assert account.low_bit_before + account.float_bytes == account.before + embedding


# Silence --------------------------------------------------------------------------------------------------------------


def note(model: Any) -> str:
    """The only note."""
    (only,) = lutra.report(model).notes
    return only


def test_a_model_that_was_not_called_says_so(tmp_path: Path):
    model = Network()
    assert note(model).startswith("nothing of it was compiled")
    assert note(compile_(model, tmp_path)) == "compiled, and not called yet"
    model.compile(backend="lutra")
    assert lutra.report(model).notes[0] == "compiled in place, and not called yet"
    assert "around" in lutra.report(model).notes[1]
    assert lutra.report(model).weights is None
    with torch.no_grad():
        model(torch.randn(2, 64))
    assert lutra.report(model).notes == ()


def test_graphs_that_need_gradients_are_told_with_the_backend_that_ran_them(tmp_path: Path):
    model = Network()
    fast = compile_(model, tmp_path, training_backend="eager")
    fast(torch.randn(2, 64)).sum().backward()
    assert note(fast).startswith("1 graph needed gradients and went to 'eager': call the model under torch.no_grad()")
    with torch.no_grad():
        fast(torch.randn(2, 64))
    report = lutra.report(fast)
    assert len(report.graphs) == 1 and "needed gradients" in report.notes[0]


def test_the_limit_of_recompilations_is_told(tmp_path: Path):
    model = Network()
    torch._dynamo.reset()
    options: Any = {"cache_dir": tmp_path}
    fast = torch.compile(model, backend="lutra", dynamic=False, options=options)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=2):
        for rows in (2, 3, 4):
            fast(torch.randn(rows, 64))
        assert note(fast).startswith("Dynamo compiled Network.forward 2 times and gives up")


def test_generate_beside_the_compiled_model_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = llama()
    fast = compile_(model, tmp_path)
    plain = torch.compile(model, backend="eager")
    nets._warned.clear()
    assert plain.generate is not None and not caplog.records
    for _ in range(2):
        fast.generate(torch.tensor([[3, 4]]), max_new_tokens=2, do_sample=False)
    warned = [r.getMessage() for r in caplog.records if "runs eagerly, with any backend" in r.getMessage()]
    assert len(warned) == 1
    assert any("runs eagerly" in each for each in lutra.report(fast).notes)


def test_a_configuration_that_compiles_nothing_is_told():
    model = llama()
    model.generation_config.compile_config = CompileConfig(backend="lutra")
    assert "`_compile_all_devices` is True" in " ".join(lutra.report(model).notes)
    model.generation_config.compile_config._compile_all_devices = True
    assert "_compile_all_devices" not in " ".join(lutra.report(model).notes)
