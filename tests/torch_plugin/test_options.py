"""Options: validation, defaults from the environment, and the fingerprint that groups graphs."""

from pathlib import Path
from typing import Any

import pytest
from lutra.ir.errors import OptionError, RecipeError
from lutra.recipes.schema import Recipe
from lutra.torch_plugin.options import Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipy": "w4"}, "lutra has no option 'recipy': did you mean 'recipe'?"),
        ({"xyz": 1}, "lutra has no option 'xyz': known: cache, cache_dir"),
        ({"strict": "perhaps"}, "option 'strict' is 'perhaps'"),
        (
            {"kernel_family": "lookup-table"},
            "option 'kernel_family' is 'lookup-table': Input should be 'auto', 'lookup'",
        ),
        ({"recipe": 3}, "option 'recipe' is 3"),
        ({"vars": ["bits"]}, "option 'vars' is ['bits']"),
        ({"strict": 1}, "option 'strict' is 1: Input should be a valid boolean"),
        ({"cache": "yes"}, "option 'cache' is 'yes': Input should be a valid boolean"),
        ({"strict": 10**5000}, "option 'strict' is a large int"),
        ({"target": "\ud800"}, "option 'target' is '\\ud800'"),
        ({3: 4}, "lutra has no option 3"),
        ({"cache_dir": ""}, "option 'cache_dir' is '': it names no folder; leave it out for the default, or give '.'"),
        ({"cache_dir": "a\0b"}, "option 'cache_dir' is 'a\\x00b': it names no folder"),
        ({"dump": ""}, "option 'dump' is '': it names no folder"),
    ],
)
def test_wrong_options_are_errors_that_say_what_would_be_right(options: dict[str, Any], message: str):
    with pytest.raises(OptionError) as error:
        Options.parse(options)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["vars", "recipe"])
def test_what_no_recipe_may_hold_is_told_before_anything_is_made_of_it(name: str):
    circle: dict[str, Any] = {}
    circle["a"] = circle
    for value in (float("nan"), b"x", object(), circle, {1: 2}, 10**5000, "\ud800"):
        with pytest.raises(RecipeError) as error:
            Options.parse({name: {"a": value}})
        assert str(error.value).startswith(f"{name}.a")
    with pytest.raises(RecipeError):
        Options.parse({"recipe": Recipe.model_construct(version=1, name="x", vars=circle)})


def test_all_wrong_options_are_told_at_once():
    with pytest.raises(OptionError) as error:
        Options.parse({"strict": "perhaps", "cache": "sometimes"})
    assert "'strict'" in str(error.value) and "'cache'" in str(error.value)


def test_recipes_may_be_names_paths_mappings_and_objects():
    recipe = Recipe.model_validate({"lutra": 1, "name": "mine"})
    for source in ("w4", Path("w4.yaml"), {"lutra": 1, "name": "mine"}, recipe):
        assert Options.parse({"recipe": source}).recipe == source


def test_environment_variables_stand_in_for_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LUTRA_DUMP", str(tmp_path / "dump"))
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(tmp_path / "cache"))
    assert Options.parse({}).dump == tmp_path / "dump"
    assert Options.parse({"dump": tmp_path / "mine"}).dump == tmp_path / "mine"
    assert Options.parse({}).cache_directory() == tmp_path / "cache"
    assert Options.parse({"cache_dir": "~/mine"}).cache_directory() == Path.home() / "mine"
    monkeypatch.delenv("LUTRA_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Options.parse({}).cache_directory() == tmp_path / "xdg" / "lutra"


@pytest.mark.parametrize("variable", ["LUTRA_CACHE_DIR", "LUTRA_DUMP"])
def test_an_empty_environment_variable_is_not_the_working_directory(variable: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, "")
    with pytest.raises(OptionError, match=f"^{variable} is '': it names no folder"):
        Options.parse({})


def test_a_cache_folder_needs_a_home_only_where_it_is_below_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for variable in ("LUTRA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Options.parse({}).cache_directory() == tmp_path / ".cache" / "lutra"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert Options.parse({}).cache_directory() == tmp_path / ".cache" / "lutra"
    with pytest.raises(OptionError, match="there is no home folder for '~nobody-of-that-name/cache'"):
        Options.parse({"cache_dir": "~nobody-of-that-name/cache"}).cache_directory()


def test_equal_options_have_equal_fingerprints_and_different_ones_differ():
    data = {"lutra": 1, "name": "mine", "passes": [{"fuse": {}}]}
    first = Options.parse({"recipe": data}).fingerprint()
    assert first == Options.parse({"recipe": dict(data), "strict": False}).fingerprint()
    beside = {"strict": True, "dump": "/tmp/d", "training_backend": "eager", "cache": False, "cache_dir": "/tmp/c"}
    assert first == Options.parse({"recipe": data, "progress": True, **beside}).fingerprint()
    different = [{"recipe": "w4"}, {"recipe": data, "release_weights": True}, {"recipe": {**data, "passes": []}}]
    assert len({first, *(Options.parse(options).fingerprint() for options in different)}) == 4


def test_every_option_is_in_the_documents_table():
    table = (Path(__file__).resolve().parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    documented = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(documented) == sorted(Options.model_fields)
