"""Selectors: which candidates a `select:` mapping takes."""

from typing import Any

import pytest
from lutra.ir.errors import SelectorError
from lutra.ir.selection import Candidate
from lutra.recipes.selectors import Selector, layer_index


def llama(layers: int) -> list[Candidate]:
    """The linears of a small Llama, as passes offer them."""
    parts = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "mlp.down_proj": (64, 128)}
    body = [
        Candidate(f"model.layers.{i}.{name}", "linear", shape) for i in range(layers) for name, shape in parts.items()
    ]
    return [*body, Candidate("lm_head", "linear", (96, 64)), Candidate("model.norm", "rms_norm")]


def chosen(source: Any, layers: int = 4) -> list[str]:
    return [c.path for c in Selector(source).select(llama(layers))]


def test_an_empty_selector_takes_everything():
    assert Selector({}).select(llama(3)) == llama(3)


def test_globs_match_whole_paths_and_stars_cross_dots():
    assert chosen({"modules": "lm_head"}) == ["lm_head"]
    assert chosen({"modules": "head"}) == []
    assert len(chosen({"modules": "model.layers.*.q_proj"})) == 4
    assert len(chosen({"modules": "model.*"})) == 4 * 3 + 1


def test_regular_expressions_match_whole_paths():
    assert chosen({"modules": r"re:model\.layers\.[02]\..*down_proj"}) == [
        "model.layers.0.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
    ]
    assert chosen({"modules": "re:down_proj"}) == []


@pytest.mark.parametrize("pattern", ["re:(a*)*b", "re:(a|aa)+$", "re:(.*a){30}", "*a" * 200 + "b", "[!b]*" * 100 + "d"])
def test_no_pattern_takes_longer_than_its_length_allows(pattern: str):
    assert Selector({"modules": pattern}).select([Candidate("a" * 200 + "c", "linear")]) == []


def test_a_list_means_any_of_its_members():
    assert chosen({"modules": ["lm_head", "model.norm"]}) == ["lm_head", "model.norm"]
    assert chosen([{"modules": "lm_head"}, {"operators": "rms_norm"}]) == ["lm_head", "model.norm"]


def test_all_keys_must_hold():
    assert chosen({"modules": "model.*", "operators": "rms_norm"}) == ["model.norm"]
    assert chosen({"modules": "lm_head", "operators": "rms_norm"}) == []


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("2..-3", range(2, 6)), ("0..-1", range(8)), (3, [3]), (-1, [7]), (["0", "6..-1"], [0, 6, 7]), ("-3..2", [])],
)
def test_layer_ranges_are_inclusive_and_negative_numbers_count_from_the_last(layers: Any, expected: Any):
    paths = chosen({"layers": layers, "modules": "*.q_proj"}, layers=8)
    assert [layer_index(path) for path in paths] == list(expected)


def test_outside_means_not_in_a_numbered_layer_of_a_model_that_has_some():
    assert chosen({"layers": "outside", "operators": "linear"}) == ["lm_head"]
    region = [Candidate("self_attn.q_proj", "linear"), Candidate("mlp.down_proj", "linear")]
    assert Selector({"layers": "outside"}).select(region) == []


def test_shapes_match_with_stars_for_any_size():
    assert len(chosen({"shape": ["*", 128]})) == 4
    assert chosen({"shape": [96, 64]}) == ["lm_head"]
    assert chosen({"shape": ["*"]}) == []


def test_not_leaves_matches_out():
    assert chosen({"operators": "linear", "not": {"modules": "model.layers.*"}}) == ["lm_head"]
    assert len(chosen({"operators": "linear", "not": {"layers": ["0", "-1"]}})) == 2 * 3 + 1
    assert chosen({"operators": "linear", "not": [{"layers": "0..-1"}, {"modules": "lm_head"}]}) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"module": "x"}, "select has no key 'module': did you mean 'modules'?"),
        ({"not": {"operator": "x"}}, "did you mean 'operators'?"),
        ({"modules": "re:("}, "is not a regular expression of RE2: missing )"),
        ({"modules": "re:(?!lm_head).*"}, "invalid perl operator: (?!: leave modules out with `not`"),
        ({"modules": r"re:(.)\1"}, "is not a regular expression of RE2"),
        ({"modules": "re:((a{1000}){1000}){1000}"}, "is not a regular expression of RE2: invalid repetition size"),
        ({"modules": "re:\ud800"}, "it is no Unicode text"),
        ({"modules": "x" * 1001}, "of at most 1000 characters, got 1001: 'xxx"),
        ({"operators": "x" * 1001}, "of at most 1000 characters, got 1001: 'xxx"),
        ({"layers": "4..2"}, "'4..2' holds no layer: did you mean '2..4'?"),
        ({"layers": "-2..-4"}, "'-2..-4' holds no layer: did you mean '-4..-2'?"),
        ({"layers": True}, "got True"),
        ({"layers": 1.0}, "got 1.0"),
        ({"layers": "1" * 5000}, "select.layers takes a number"),
        ({4: 2}, "select has no key 4"),
        ({"modules": 3}, "select.modules takes globs"),
        ({"operators": 3}, "select.operators takes globs"),
        ({"layers": "4-8"}, "select.layers takes a number, a range such as 4..-4, or 'outside', got '4-8'"),
        ({"shape": 2048}, "select.shape takes a list"),
        ({"shape": [True, "?"]}, "select.shape takes a list"),
        ({"not": "lm_head"}, "select takes a mapping"),
        ("lm_head", "select takes a mapping"),
    ],
)
def test_errors_say_what_would_be_right(source: Any, message: str):
    with pytest.raises(SelectorError) as error:
        Selector(source)
    assert message in str(error.value)
