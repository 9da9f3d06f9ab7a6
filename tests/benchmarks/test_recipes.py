"""Size, speed and quality of recipes in miniature, and weights as llama.cpp rounds them."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer
from lutra.tests.support.output import own
from typer.testing import CliRunner

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("recipes")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    sizes = ["--prompt", "4", "--new-tokens", "3", "--rounds", "1", "--window", "16", "--windows", "1"]
    command = [sys.executable, str(FOLDER / "recipes.py"), *sizes, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_eager_recipes_and_formats_are_rows_of_one_stored_run(recipes: ModuleType, tmp_path: Path):
    done = run("--recipes", "w4", "--formats", "Q8_0", "--save", str(tmp_path / "run.json"))
    assert done.returncode == 0, done.stderr
    assert own(done.stderr) == ""
    (stored,) = sys.modules[recipes.save.__module__].load(tmp_path)
    size, speed, quality = (stored.column(name) for name in ("weights", "decode / eager", "perplexity"))
    assert list(size) == ["eager", "w4", "llama.cpp:Q8_0"]
    assert size["w4"] < 0.3 * size["eager"] and size["llama.cpp:Q8_0"] is None
    assert speed["eager"] == 1 and speed["w4"] > 0 and speed["llama.cpp:Q8_0"] is None
    assert quality["llama.cpp:Q8_0"] == pytest.approx(quality["eager"], rel=0.02)


def test_formats_round_linears_alone_and_heads_to_no_fewer_than_four_bits(recipes: ModuleType):
    tied, rounded = recipes.trained(), recipes.trained()
    recipes.round_as(rounded, "TQ2_0")
    before, after = dict(tied.named_modules()), dict(rounded.named_modules())
    assert torch.equal(after["model.embed_tokens"].weight, before["model.embed_tokens"].weight)
    assert torch.equal(after["model.norm"].weight, before["model.norm"].weight)
    blocks = after["model.layers.0.mlp.up_proj"].weight.view(-1, 256)
    assert all(len(block.unique()) <= 3 for block in blocks)
    head = after["lm_head"].weight.view(-1, 32)
    assert max(len(block.unique()) for block in head) > 8


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--recipes", "w5", "there is no recipe 'w5'"), ("--formats", "Q2_K", "'Q2_K' is none of Q8_0, Q4_0, TQ2_0")],
)
def test_names_that_are_none_are_refused_before_anything_runs(
    recipes: ModuleType, option: str, value: str, message: str
):
    command = typer.Typer()
    command.command()(recipes.main)
    done = CliRunner().invoke(command, [option, value])
    assert done.exit_code == 2 and message in done.output
