"""The recipes that docs/recipes.md shows are recipes, and it names all that one can say."""

import re
from pathlib import Path
from typing import Any

import pytest
from lutra.passes import registry
from lutra.passes.registry import available_passes
from lutra.recipes.conditions import FACTS
from lutra.recipes.loading import load_recipe
from lutra.recipes.schema import CommonKeys
from lutra.recipes.selectors import KEYS

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall(r"name: (\S+)", text)[0])
def test_an_example_is_a_whole_recipe(example: str):
    recipe = load_recipe(example, available_passes())
    assert load_recipe(recipe.to_yaml(), available_passes()).fingerprint() == recipe.fingerprint()


def test_every_key_and_fact_is_named():
    names = {*FACTS, *KEYS, *CommonKeys.model_fields}
    assert {name for name in names if f"`{name}`" not in TEXT and f"`{name}:" not in TEXT} == set()
    assert len(EXAMPLES) >= 5


def test_the_pass_that_is_shown_is_one():
    (source,) = re.findall(r"```python\n(@.*?|from dataclasses.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {"__name__": "shown"}
    exec(source, names)
    try:
        recipe = {"lutra": 1, "name": "r", "passes": [{"count-linears": {"prefix": "seen-"}}]}
        (step,) = load_recipe(recipe, available_passes()).steps
        assert step.pass_ == names["CountLinears"]("seen-")
    finally:
        registry._registered.pop("count-linears")
