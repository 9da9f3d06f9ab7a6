"""The command line: what it prints, and errors as one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lutra
import pytest
from lutra.cli.main import app, main
from lutra.codegen.cache import entries
from lutra.codegen.cache.entries import Stored
from lutra.ir.errors import RecipeError
from lutra.passes.registry import available_passes, explained
from lutra.recipes.loading import library, load_recipe
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


@pytest.mark.parametrize("columns", ["20", "80", "1000"])
def test_passes_shows_parameters_with_defaults_and_meanings_whole(columns: str):
    text = CliRunner().invoke(app, ["passes"], env={"COLUMNS": columns}, catch_exceptions=False).output
    words = " ".join(text.split())
    for cls in available_passes().values():
        summary, meanings = explained(cls)
        assert f"{cls.name} ({cls.kind}) {summary}" in words
        assert all(meaning in words for meaning in meanings.values())
    for expected in ("group_size: 128 input columns a scale", 'table: "half" `half` stores the 8 entries'):
        assert expected in words


def test_the_version_is_told():
    assert output("--version") == f"lutra {lutra.__version__}\n"


def test_targets_says_which_ones_run_here():
    text = output("targets")
    assert "portable" in text and "yes" in text


def test_cache_counts_and_clears_what_lutra_wrote_and_says_what_it_left_alone(tmp_path: Path):
    folder = tmp_path / "cache"
    entries.make_private(folder)
    entries.write(folder, "0" * 32, {"graph": "g"}, Stored("graph.so", {}, b"x" * 3_000_000))
    entries.write(folder, "1" * 32, {"launcher": "l"}, Stored("launcher.so", {}, b"x"))
    entries.write(folder, "2" * 32, {"graph": "h"}, Stored("graph.so", {}, b"x"))
    (folder / ("2" * 32) / "notes.txt").write_text("mine")
    (folder / f".new-{'3' * 32}-abcdefgh").mkdir()
    (app := folder / "app").mkdir()
    (app / "manifest.json").write_text('{"name": "app"}')
    (folder / "data.csv").write_text("1,2")
    (folder / ("4" * 32)).symlink_to(app)
    told = output("cache", "info", "--cache-dir", str(folder))
    assert told == f"{folder}: 2 executables, 1 leftovers, 1 launchers, 3.0 MB\n"
    told = output("cache", "clear", "--cache-dir", str(folder)).splitlines()
    assert told == [
        f"{folder}: removed 1 executables, 1 leftovers, 1 launchers",
        f"left alone: {'2' * 32} (a file in it is not ours, or cannot be removed)",
        f"left alone: {'4' * 32} (Not a directory)",
        "left alone: app (without lutra's mark)",
        "left alone: data.csv (without lutra's mark)",
    ]
    assert sorted(p.name for p in folder.iterdir()) == ["2" * 32, "4" * 32, "app", "data.csv"]
    assert [p.name for p in (folder / ("2" * 32)).iterdir()] == ["notes.txt"]
    assert (app / "manifest.json").exists()
    assert output("cache", "info", "--cache-dir", str(folder)) == f"{folder}: 0 executables, 0.0 MB\n"


def test_a_cache_folder_that_is_not_there_is_empty_and_not_made(tmp_path: Path):
    for command in ("info", "clear"):
        assert "0 executables" in output("cache", command, "--cache-dir", str(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipes", "w2lut"], "did you mean 'w2-lut'?"),
        (["recipes", "w4", "--var", "bitz=2"], "did you mean 'bits'?"),
        (["recipes", "w4", "--var", "bits"], "--var takes NAME=VALUE"),
        (["recipes", "w4", "--var", "bits=["], "variable 'bits':2: not valid YAML"),
        (["recipes", "w4", "--var", "bits=!!python/name:os.system"], "could not determine a constructor for the tag"),
        (["recipes", "w4", "--var", "bits=true"], "bits.int: Input should be a valid integer (got True)"),
        (["recipes", "./w4.yaml"], "recipe file 'w4.yaml' cannot be read: No such file or directory"),
        (["recipes", "a\0b"], "an argument holds a NUL character"),
        (["recipes", "\udcff"], "there is no recipe '\\udcff' in the library"),
        (["frob"], "No such command 'frob' (--help says what there is)"),
        (["profile"], "Missing argument 'model' (--help"),
        (["profile", "tiny", "--dtype", "float99"], "'float99' is not one of 'auto', 'bfloat16'"),
        (["profile", "tiny", "--prompt", "-1"], "Invalid value for '--prompt'"),
        (["profile", "tiny", "--new-tokens", "1" + "0" * 30], "Invalid value for '--new-tokens'"),
        (["profile", ""], "there is no folder or file ''"),
        (["profile", "./none"], "there is no folder or file './none'"),
        (["profile", "a/b/none"], "there is no folder or file 'a/b/none'"),
        (["pack", "/none", "-o", "new"], "there is no folder or file '/none'"),
        (["explain", "none.gguf"], "there is no folder or file 'none.gguf'"),
        (["profile", "bare"], "config.json"),
        (["profile", "pipe"], "pipe is neither a folder"),
        (["profile", "piped"], "piped/config.json is"),
        (["profile", "code"], "code has no model.safetensors.index.json"),
        (["profile", "strange"], "strange has no model.safetensors.index.json"),
        (["profile", "strange", "--recipe", "w2lut"], "did you mean 'w2-lut'?"),
        (["profile", "org/none"], "org/none"),
        (["cache", "clear", "--cache-dir", ""], "option 'cache_dir' is '': it names no folder"),
        (["cache", "clear", "--cache-dir", __file__], "Not a directory"),
        (["doctor", "--cache-dir", ""], "option 'cache_dir' is '': it names no folder"),
        (["pack", "model", "--output", ""], "an option that takes a path was given an empty one"),
        (["profile", "model", "--trace", ""], "an option that takes a path was given an empty one"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    for name in ("bare", "piped", "code", "strange"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "piped" / "config.json")
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "strange"}')
    code = {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "code" / "config.json").write_text(json.dumps(code))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
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


def test_a_reader_that_has_seen_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    script = Path(sys.executable).with_name("lutra")
    done = subprocess.run([script, "recipes"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_output_that_cannot_be_written_is_an_error():
    script = Path(sys.executable).with_name("lutra")
    with open("/dev/full", "w") as full:
        done = subprocess.run([script, "recipes", "w4"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "lutra: [Errno 28] No space left on device\n")


def raises(error: BaseException) -> Callable[[], Any]:
    def passes() -> Any:
        raise error

    return passes


def test_an_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["lutra", "passes"])
    monkeypatch.setattr("lutra.cli.listings.available_passes", raises(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 130 and capsys.readouterr() == ("", "")


def test_a_fault_of_ours_is_an_exception_and_any_error_is_one_on_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["lutra", "passes"])
    monkeypatch.setattr("lutra.cli.listings.available_passes", raises(KeyError("fault")))
    with pytest.raises(KeyError):
        main()
    monkeypatch.setenv("LUTRA_DEBUG", "1")
    monkeypatch.setattr("lutra.cli.listings.available_passes", raises(RecipeError("wrong")))
    with pytest.raises(RecipeError):
        main()
