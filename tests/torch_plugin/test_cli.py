"""The command line: what it prints, and errors as one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lutra.passes.registry import available_passes
from lutra.recipes.loading import library, load_recipe
from lutra.torch_plugin.cli import app, main
from typer.testing import CliRunner


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_recipes_lists_the_library_with_descriptions():
    text = output("recipes")
    assert all(name in text for name in library())
    assert "4-bit head" in text


def test_recipes_prints_a_recipe_that_loads_to_the_same_steps():
    passes = available_passes()
    resolved = load_recipe("w2-lut", passes)
    assert load_recipe(output("recipes", "w2-lut"), passes).fingerprint() == resolved.fingerprint()
    changed = load_recipe(output("recipes", "w2-lut", "--var", "bits=3"), passes)
    assert changed.fingerprint() == load_recipe("w2-lut", passes, vars={"bits": 3}).fingerprint()


def test_passes_shows_parameters_with_their_defaults():
    text = output("passes")
    for expected in ("quantize-weights", "weight-static", "group_size: 128", 'table: "half"', "Operator fusion"):
        assert expected in text


def test_targets_says_which_ones_run_here():
    text = output("targets")
    assert "portable" in text and "yes" in text


def test_cache_counts_and_clears_only_executables(tmp_path: Path):
    entry = tmp_path / "0123"
    entry.mkdir()
    (entry / "manifest.json").write_text(json.dumps({}))
    (entry / "graph.so").write_bytes(b"x" * 3_000_000)
    (tmp_path / "notes").mkdir()
    assert "1 executables, 3.0 MB" in output("cache", "info", "--cache-dir", str(tmp_path)).replace("\n", "")
    assert "removed 1" in output("cache", "clear", "--cache-dir", str(tmp_path)).replace("\n", "")
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]
    assert "0 executables" in output("cache", "info", "--cache-dir", str(tmp_path)).replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "w2lut"], "did you mean 'w2-lut'?"),
        (["recipes", "w4", "--var", "bitz=2"], "did you mean 'bits'?"),
        (["recipes", "w4", "--var", "bits"], "--var takes NAME=VALUE"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["lutra", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    told = capsys.readouterr().err
    assert exit_.value.code == 2
    assert told.startswith("lutra: ") and message in told and told.count("\n") == 1


def test_the_installed_command_runs(tmp_path: Path):
    script = Path(sys.executable).with_name("lutra")
    environment = {**os.environ, "LUTRA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([script, "cache", "info"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0 and "0 executables" in done.stdout.replace("\n", "")
