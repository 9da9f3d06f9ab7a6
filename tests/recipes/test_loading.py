"""Loading recipes: sources, inheritance, variables, errors with places, and the round trip."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from lutra.ir.errors import RecipeError
from lutra.passes.base import ALL_PHASES
from lutra.passes.fuse.fuse import Fuse
from lutra.passes.quantize_weights.quantize_weights import QuantizeWeights
from lutra.passes.registry import available_passes
from lutra.recipes.loading import library, load_recipe
from lutra.recipes.schema import Recipe, ResolvedRecipe

PASSES = available_passes()
TEXT = """lutra: 1
name: mine
passes:
  - fuse: {}
  - quantize-weights:
      bits: 2
      group_size: 64
      phase: decode
      when: batch <= 4
      select: {modules: "*.mlp.*", not: {layers: 0}}
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def failure(source: Any, **arguments: Any) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(source, PASSES, **arguments)
    return str(error.value)


def test_text_path_mapping_and_recipe_load_to_the_same_steps(tmp_path: Path):
    import yaml

    data = yaml.safe_load(TEXT)
    sources: list[Any] = [TEXT, write(tmp_path, TEXT), str(tmp_path / "mine.yaml"), data, Recipe.model_validate(data)]
    assert len({load_recipe(source, PASSES).fingerprint() for source in sources}) == 1


def test_a_mapping_on_one_line_is_yaml_text():
    recipe = load_recipe("{lutra: 1, name: short, passes: [{fuse: {}}]}", PASSES)
    assert [step.pass_ for step in recipe.steps] == [Fuse()]


@pytest.mark.parametrize("name", library())
def test_library_recipes_load_describe_themselves_and_survive_a_round_trip(name: str):
    recipe = load_recipe(name, PASSES)
    assert recipe.name == name
    assert recipe.description
    assert recipe.steps[0].pass_ == Fuse()
    assert load_recipe(recipe.to_yaml(), PASSES).fingerprint() == recipe.fingerprint()


def test_the_round_trip_keeps_selector_phases_condition_and_allow_empty():
    recipe = load_recipe(TEXT + "      allow_empty: true\n", PASSES)
    again = load_recipe(recipe.to_yaml(), PASSES)
    assert [s.to_data() for s in again.steps] == [s.to_data() for s in recipe.steps]
    step = again.steps[1]
    assert (step.phases, step.allow_empty) == (("decode",), True)
    assert step.when is not None and step.when.text == "batch <= 4"
    assert step.selector.source == {"modules": "*.mlp.*", "not": {"layers": 0}}


@dataclass(frozen=True)
class WithTuple:
    """A pass of a third party with a tuple for a parameter."""

    name: ClassVar[str] = "with-tuple"
    phases: ClassVar = ALL_PHASES
    sizes: tuple[int, ...] = (1, 2)


def test_tuples_survive_the_round_trip():
    passes = {"with-tuple": WithTuple}
    recipe = load_recipe({"lutra": 1, "name": "t", "passes": [{"with-tuple": {"sizes": [3, 4]}}]}, passes)
    assert load_recipe(recipe.to_yaml(), passes).steps[0].pass_ == WithTuple(sizes=(3, 4))


def test_extends_runs_the_parents_passes_first_and_overrides_its_variables(tmp_path: Path):
    entry = "  - quantize-weights: {bits: '${bits}', group_size: '${group}'}\n"
    write(tmp_path, f"lutra: 1\nname: parent\nvars: {{bits: 8, group: 32}}\npasses:\n{entry}", "parent.yaml")
    child = write(
        tmp_path, "lutra: 1\nname: child\nextends: parent.yaml\nvars: {bits: 2}\npasses:\n  - symmetrize-tables: {}\n"
    )
    names = [type(step.pass_).name for step in load_recipe(child, PASSES).steps]
    assert names == ["quantize-weights", "symmetrize-tables"]
    assert load_recipe(child, PASSES).steps[0].pass_ == QuantizeWeights(bits=2, group_size=32)
    assert load_recipe(child, PASSES, vars={"bits": 4}).steps[0].pass_ == QuantizeWeights(bits=4, group_size=32)


def test_variables_keep_their_type_alone_and_become_text_inside_a_string():
    entry = {"quantize-weights": {"bits": "${bits}", "select": {"modules": "*.${part}.*"}}}
    data = {"lutra": 1, "name": "v", "vars": {"part": "mlp", "bits": 3}, "passes": [entry]}
    step = load_recipe(data, PASSES).steps[0]
    assert step.pass_ == QuantizeWeights(bits=3)
    assert step.selector.source == {"modules": "*.mlp.*"}


def test_a_recipe_that_extends_itself_is_an_error(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub", "lutra: 1\nname: a\nextends: ../sub/mine.yaml\n")
    assert "extends itself" in failure(path)


def test_fingerprint_ignores_names_and_defaults_written_out():
    short = load_recipe({"lutra": 1, "name": "a", "passes": [{"quantize-weights": None}]}, PASSES)
    long = load_recipe({"lutra": 1, "name": "b", "passes": [{"quantize-weights": {"bits": 4}}]}, PASSES)
    other = load_recipe({"lutra": 1, "name": "a", "passes": [{"quantize-weights": {"bits": 8}}]}, PASSES)
    assert short.fingerprint() == long.fingerprint() != other.fingerprint()


PLACES = [
    (TEXT.replace("passes:", "pases:"), ":3: unknown key 'pases': did you mean 'passes'?"),
    (TEXT.replace("- fuse:", "- fuze:"), ":4: there is no pass 'fuze': did you mean 'fuse'?"),
    (TEXT.replace("bits:", "bit:"), ":6: pass 'quantize-weights' has no parameter 'bit': did you mean 'bits'?"),
    (TEXT.replace("bits: 2", "bits: 5"), ":5: pass 'quantize-weights': bits = 5 is not supported: use one of 1, 2, 3"),
    (TEXT.replace("bits: 2", "bits: two"), ":6: bits.int: Input should be a valid integer"),
    (TEXT.replace("group_size: 64", "group_size: 48"), "group_size = 48 is not supported"),
    (TEXT.replace("phase: decode", "phase: decoding"), ":8: phase"),
    (
        TEXT.replace("batch <= 4", "batsh <= 4"),
        ":9: pass 'quantize-weights': condition 'batsh <= 4' uses an unknown name 'batsh': did you mean",
    ),
    (
        TEXT.replace("modules:", "module:"),
        ":10: pass 'quantize-weights': select has no key 'module': did you mean 'modules'?",
    ),
    (TEXT.replace("layers: 0", "layers: x"), ":10: pass 'quantize-weights': select.layers takes a number"),
    (TEXT.replace("bits: 2", "bits: ${bits}"), ":6: variable 'bits' has no value"),
    (TEXT.replace("lutra: 1", "lutra: 2"), ":1: lutra: Input should be 1 (got 2)"),
    (TEXT.replace("name: mine\n", ""), "name: Field required"),
    (TEXT.replace("- fuse: {}", "- fuse"), ":4: passes.0: Input should be a valid dictionary"),
    (TEXT.replace("- fuse: {}", "- {fuse: {}, symmetrize-tables: {}}"), ":4: an entry names one pass, got fuse, symm"),
    (TEXT.replace("bits: 2", "bits: 2\n      bits: 3"), ":7: key 'bits' is given twice"),
    (TEXT.replace("{}", "{"), "not valid YAML"),
    (
        TEXT + "bits: 2\n",
        ":11: unknown key 'bits': it is a parameter of quantize-weights: put it under the name of the",
    ),
    (TEXT + "select: {}\n", ":11: unknown key 'select': it is a key of every pass: put it under the name of one"),
    (TEXT + "fuse: {}\n", ":11: unknown key 'fuse': it is a pass: make it an entry of passes"),
    (
        TEXT.replace("      bits: 2", "    bits: 2\n  - fuse:"),
        ":6: there is no pass 'bits': it is a parameter of quantize-w",
    ),
    (
        TEXT.replace("fuse: {}", "fuse:\n    select: {}"),
        ":4: an entry names one pass, got fuse, select; 'select': it is a k",
    ),
    (
        TEXT.replace("fuse: {}", "fuse: {bits: 2}"),
        ":4: pass 'fuse' has no parameter 'bits': it is a parameter of quantiz",
    ),
    (
        TEXT.replace("bits: 2", "vars: {}"),
        ":6: pass 'quantize-weights' has no parameter 'vars': it belongs to the top of",
    ),
    (
        TEXT.replace("bits: 2", "layers: 2"),
        ":6: pass 'quantize-weights' has no parameter 'layers': it is a key of selec",
    ),
    (TEXT.replace("bits: 2", "bits: {bits: 2}"), ":6: unknown key 'bits': BitBudget takes no such key"),
    (TEXT.replace("bits: 2", "bits: true"), ":6: bits.int: Input should be a valid integer (got True)"),
    (TEXT.replace("bits: 2", "bits: '2'"), ":6: bits.int: Input should be a valid integer (got '2')"),
    (TEXT.replace("bits: 2", "bits: 2.0"), ":6: bits.int: Input should be a valid integer (got 2.0)"),
    (
        TEXT.replace("bits: 2", "bits: {average: '2', choices: [2]}"),
        "average: Input should be a valid number (got '2')",
    ),
    (TEXT.replace("bits: 2", "range_search: 1"), ":6: range_search: Input should be a valid boolean (got 1)"),
    (TEXT.replace("bits: 2", "allow_empty: 'true'"), ":6: allow_empty: Input should be a valid boolean (got 'true')"),
    (TEXT.replace("lutra: 1", "lutra: true"), ":1: lutra: Input should be 1 (got True)"),
    (TEXT.replace("lutra: 1", "lutra: 1.0"), ":1: lutra: Input should be 1 (got 1.0)"),
    (TEXT.replace("name: mine", "name: 1"), ":2: name: Input should be a valid string (got 1)"),
    (
        TEXT.replace("layers: 0", "layers: 4..2"),
        ":10: pass 'quantize-weights': select.layers: '4..2' holds no layer: did",
    ),
    (TEXT.replace("layers: 0", "layers: true"), ":10: pass 'quantize-weights': select.layers takes a number"),
    ("- fuse\n- fuse\n", "a recipe is a mapping"),
]


@pytest.mark.parametrize(("text", "message"), PLACES, ids=[message[:60] for _, message in PLACES])
def test_every_error_names_file_line_and_what_would_be_right(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    told = failure(path)
    assert told.startswith(str(path))
    assert message in told


def test_unknown_recipes_name_the_nearest_and_the_file_that_extends_them(tmp_path: Path):
    assert "did you mean 'w2-lut'?" in failure("w2lut")
    path = write(tmp_path, "lutra: 1\nname: a\nextends: nonne\n")
    told = failure(path)
    assert told.startswith(f"{path}:3:") and "did you mean 'none'?" in told


def test_unknown_variables_name_the_nearest():
    assert "there is no variable 'bit': did you mean 'bits'?" in failure("w4", vars={"bit": 2})


def test_files_that_cannot_be_read_are_recipe_errors(tmp_path: Path):
    assert "cannot be read" in failure(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8 text" in failure(tmp_path / "binary.yaml")
    assert "there is no recipe" in failure("x" * 5000)


def test_steps_know_where_they_were_written(tmp_path: Path):
    path = write(tmp_path, TEXT)
    recipe: ResolvedRecipe = load_recipe(path, PASSES)
    assert [step.origin for step in recipe.steps] == [f"{path}:4", f"{path}:5"]
