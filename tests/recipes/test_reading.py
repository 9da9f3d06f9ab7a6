"""Whatever a recipe's author wrote, it is read within bounds or refused with the limit that it is beyond."""

import datetime
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from lutra.ir.errors import RecipeError
from lutra.passes.registry import available_passes
from lutra.recipes import reading
from lutra.recipes.loading import library, load_recipe
from lutra.recipes.reading import MAX_BYTES, Bounds, parse_variables, parse_yaml
from lutra.recipes.schema import Recipe

PASSES = available_passes()
HEAD = "lutra: 1\nname: x\n"


def failure(source: Any, vars: Any = None) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(source, PASSES, vars)
    return str(error.value)


def with_entry(body: Any, **keys: Any) -> dict[str, Any]:
    return {"lutra": 1, "name": "x", "passes": [{"quantize-weights": body}], **keys}


def nested(levels: int, inner: Any, wrap: Any) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


def chain(line: str) -> str:
    """Each of twelve lines holds the one before nine times."""
    return "".join(line.format(new=chr(98 + i), nine=", ".join([f"*{chr(97 + i)}"] * 9)) for i in range(12))


TEXTS = {
    "an alias bomb": ("vars:\n  a: &a [x]\n" + chain("  {new}: &{new} [{nine}]\n"), "holds more than 20000 values"),
    "a bomb of merge keys": (
        "vars:\n  a: &a {k: 1}\n" + chain("  {new}: &{new} {{<<: [{nine}]}}\n"),
        "more than 20000",
    ),
    "an alias to itself": ("vars: &a {b: *a}\n", ":3: the text, aliases worked in, is nested more than 32 levels deep"),
    "a merge key of itself": ("vars: &a {<<: *a}\n", "more than 32 levels deep, or holds itself"),
    "lists in lists": ("vars: " + "[" * 3000, "more than 32 levels deep"),
    "lines of lists in lists": ("vars:\n " + "- " * 40, "more than 32 levels deep"),
    "many values": ("vars:\n" + "".join(f"  k{i}: 1\n" for i in range(20_000)), "holds more than 20000 values"),
    "a large text": ("#" + "x" * 3_000_000 + "\n", "is larger than 1024 KiB"),
    "a long number": ("vars: {a: " + "9" * 5000 + "}\n", ":3: a number of 5000 characters"),
    "a number of base 60": ("vars: {a: " + ":".join(["1"] * 50_000) + "}\n", ":3: a number of 99999 characters"),
    "a large number": ("vars: {a: 99999999999999999999}\n", ":3: 99999999999999999999 is no finite number of 64 bits"),
    "no number": ("vars: {a: .nan}\n", ":3: nan is no finite number"),
    "an infinite number": ("vars: {a: 1.0e+999}\n", ":3: inf is no finite number"),
    "digits that are missing": ("vars: {a: 0x_}\n", ":3: not valid YAML: '0x_' is no int"),
    "no truth value": ("vars: {a: !!bool 3}\n", ":3: not valid YAML: '3' is no bool"),
    "code": ("vars: {a: !!python/object/apply:os.system [id]}\n", ":3: not valid YAML: could not determine a construc"),
    "a long tag": ("vars: {a: !!" + "x" * 9000 + " b}\n", "xxx ... xxx"),
    "bytes": ("vars: {a: !!binary aGk=}\n", ":3: b'hi' is of type bytes"),
    "a date": ("name2: 2024-01-01\n", ":3: datetime.date(2024, 1, 1) is of type date: a recipe holds text (in quotes"),
    "no date": ("vars: {a: 2024-13-45}\n", ":3: not valid YAML: '2024-13-45' is no timestamp"),
    "a set": ("vars: {a: !!set {x}}\n", ":3: {'x'} is of type set"),
    "a number for a key": ("vars: {1: 2}\n", ":3: key 1 is no text: quote it"),
    "a list for a key": ("vars: {[a]: 2}\n", ":3: a key is text, not a list or mapping"),
    "two documents": ("---\nx: 1\n", ":3: not valid YAML: expected a single document in the stream, but found another"),
    "a tab": ("vars:\n\ta: 1\n", ":4: not valid YAML"),
    "a NUL": ("vars: \0\n", "not valid YAML: "),
    "half a surrogate pair": ("vars: \ud800\n", "is not Unicode text"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_beyond_a_limit_are_errors_with_their_line(case: str):
    text, message = TEXTS[case]
    told = failure(HEAD + text)
    assert told.startswith("recipe text") and message in told


CIRCLE: dict[str, Any] = {}
CIRCLE["not"] = CIRCLE
DATA = {
    "a mapping in itself": (with_entry({"select": CIRCLE}), None, "more than 32 levels deep, or holds itself"),
    "a tree of shared lists": (with_entry(nested(20, ["x"], lambda x: [x] * 9)), None, "more than 20000 values"),
    "deep selectors": (with_entry({"select": nested(40, {}, lambda x: {"not": x})}), None, "more than 32 levels deep"),
    "texts of variables": (
        with_entry({"select": {"modules": "${v}" * 20_000}}, vars={"v": "y" * 5000}),
        *(None, "more than 131072 characters"),
    ),
    "lists of variables": (
        with_entry({"select": {"modules": ["${v}"] * 5000}}, vars={"v": ["y"] * 5000}),
        *(None, "holds more than 20000 values"),
    ),
    "a long text": (with_entry({}, description="x" * 200_000), None, "more than 131072 characters"),
    "many passes": ({"lutra": 1, "name": "x", "passes": [{"fuse": None}] * 1001}, None, "1001 passes"),
    "many passes written out": (
        {"lutra": 1, "name": "x", "passes": [{"quantize-weights": {"select": {"modules": ["a"] * 15}}}] * 900},
        *(None, "every default written out: this holds more than 20000 values"),
    ),
    "bytes": (with_entry({"bits": b"4"}), None, "b'4' is of type bytes"),
    "a date": (with_entry({"bits": datetime.date(2024, 1, 1)}), None, "is of type date"),
    "a key that is no text": (with_entry({4: 4}), None, "key 4 is no text"),
    "a number without end": (with_entry({"bits": 10**5000}), None, "a large int is no finite number of 64 bits"),
    "an unfinished Recipe": (Recipe.model_construct(version=1), None, "name: Input should be a valid string"),
    "a Recipe in itself": (Recipe.model_construct(version=1, name="x", vars=CIRCLE), None, "or holds itself"),
    "no recipe": (None, None, "a recipe is a name, a path, YAML text, a mapping or a Recipe, got None"),
    "bytes for a name": (b"w4", None, "a recipe is a name"),
    "a list of variables": ("w4", ["bits"], "vars are a mapping of names to values, got ['bits']"),
    "a variable without a name": ("w4", {1: 2}, "vars: key 1 is no text"),
    "a variable that is no number": ("w4", {"bits": float("nan")}, "vars.bits: nan is no finite number"),
    "a variable that holds itself": ("w4", {"bits": CIRCLE}, "or holds itself"),
    "a variable of text": ("w4", {"bits": "4"}, "w4.yaml:9: bits.int: Input should be a valid integer (got '4')"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_beyond_a_limit_is_an_error(case: str):
    source, vars, message = DATA[case]
    assert message in failure(source, vars)


@pytest.mark.parametrize("name", ["pipe.yaml", "zero.yaml", "folder.yaml"])
def test_only_regular_files_are_read(name: str, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    assert "it is not a regular file" in failure(tmp_path / name)
    (tmp_path / "child.yaml").write_text(f"{HEAD}extends: {name}\n")
    told = failure(tmp_path / "child.yaml")
    assert "child.yaml:3: extends" in told and "it is not a regular file" in told


@pytest.mark.parametrize("name", ["a\0.yaml", "a\0", "x" * 5000 + ".yaml", "\ud800", "", "."])
def test_names_that_no_file_has_are_errors(name: str):
    assert "cannot be read" in failure(name) or "there is no recipe" in failure(name)
    failure({"lutra": 1, "name": "x", "extends": name})


def test_files_are_not_read_beyond_the_limit(tmp_path: Path):
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    assert "is larger than 1024 KiB" in failure(tmp_path / "large.yaml")


def test_long_chains_of_recipes_are_errors(tmp_path: Path):
    for i in range(30):
        (tmp_path / f"{i}.yaml").write_text(f"{HEAD}extends: {i + 1}.yaml\n")
    (tmp_path / "30.yaml").write_text(HEAD)
    assert "more than 10 recipes extend each other" in failure(tmp_path / "0.yaml")
    assert load_recipe(tmp_path / "20.yaml", PASSES).steps == ()


def test_aliases_and_merge_keys_stand_for_what_they_name():
    text = (
        HEAD + "passes:\n- quantize-weights: &a {bits: 2, select: &s {layers: 1}}\n- symmetrize-tables: {select: *s}\n"
    )
    steps = load_recipe(text + "- quantize-weights: {<<: *a, bits: 3}\n", PASSES).steps
    assert [step.selector.source for step in steps] == [{"layers": 1}] * 3
    assert (steps[0].pass_.bits, steps[2].pass_.bits) == (2, 3)


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert load_recipe("\ufeff" + HEAD, PASSES).name == "x"


def test_tuples_and_subclasses_of_plain_values_become_plain():
    class Name(str):
        pass

    copied = Bounds().copy({Name("a"): (Name("b"), True, 2.5, None)}, lambda _: "")
    assert copied == {"a": ["b", True, 2.5, None]}
    assert type(next(iter(copied))) is str and type(copied["a"][0]) is str


def test_without_libyaml_the_same_is_read_and_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    spec = importlib.util.spec_from_file_location("lutra.recipes.reading_without_libyaml", str(reading.__file__))
    assert spec is not None and spec.loader is not None
    pure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pure)
    for path in library().values():
        assert pure.parse_yaml(path.read_text(), "x") == parse_yaml(path.read_text(), "x")
    for text, _ in TEXTS.values():
        try:
            Bounds().copy(pure.parse_yaml(HEAD + text, "x")[0], lambda _: "")
        except RecipeError:
            continue
        pytest.fail(f"{text[:100]!r} is read without libyaml")


def test_variables_of_a_command_line_are_yaml():
    assert parse_variables(["a=1", "b=x=y", "c=[1, {d: e}]", "e="]) == {
        "a": 1,
        "b": "x=y",
        "c": [1, {"d": "e"}],
        "e": None,
    }


@pytest.mark.parametrize(
    "pair", ["a", "=1", "a=[", "a=!!python/name:os.system", "a=\0", "a=.nan", "a=&a [*a]", "a=\ud800"]
)
def test_variables_that_cannot_be_read_are_recipe_errors(pair: str):
    with pytest.raises(RecipeError):
        parse_variables([pair])
