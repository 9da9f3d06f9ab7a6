"""Whatever is given for a recipe loads or is a `RecipeError`."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lutra.ir.errors import RecipeError, SelectorError
from lutra.ir.selection import Candidate
from lutra.passes.registry import available_passes
from lutra.recipes.conditions import FACTS, Condition
from lutra.recipes.loading import library, load_recipe
from lutra.recipes.selectors import Selector
from lutra.tests.recipes.random_recipes import conditions, mappings, patterns, texts, variables
from lutra.tests.support.fuzzing import random

PASSES = available_passes()
CANDIDATES = [Candidate(f"model.layers.{i}.{'a' * 60}", "linear", (64, 64)) for i in range(4)]

pytestmark = pytest.mark.fuzz


def loads_or_says_why(source: Any, vars: Any = None) -> None:
    try:
        recipe = load_recipe(source, PASSES, vars)
    except RecipeError as error:
        assert 0 < len(str(error)) < 20_000
        return
    assert load_recipe(recipe.to_yaml(), PASSES).fingerprint() == recipe.fingerprint()
    for step in recipe.steps:
        step.selector.select(CANDIDATES)
        with suppress(RecipeError):  # a division by zero
            assert step.applies(dict.fromkeys(FACTS, 0)) in (True, False)


@random(300, seconds=30)
@given(texts())
def test_texts(text: str):
    loads_or_says_why(text + "\n")


@random(300, seconds=30)
@given(mappings(), variables())
def test_mappings(data: Any, vars: Any):
    loads_or_says_why(data, vars)


@random(300, seconds=30)
@given(st.sampled_from(list(library())), variables())
def test_variables(name: str, vars: Any):
    loads_or_says_why(name, vars)


@random(300, seconds=30)
@given(st.text(max_size=30) | st.integers() | st.binary() | st.none() | st.lists(st.integers(), max_size=2))
def test_names(source: Any):
    loads_or_says_why(source)


@random(300, seconds=30)
@given(conditions(), st.dictionaries(st.sampled_from(FACTS), st.integers(0, 9)))
def test_conditions(text: str, facts: dict[str, int]):
    with suppress(RecipeError):
        Condition.parse(text).holds(facts)


@random(300, seconds=30)
@given(patterns())
def test_patterns(pattern: str):
    with suppress(SelectorError):
        Selector({"modules": pattern}).select(CANDIDATES)
