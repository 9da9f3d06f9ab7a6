"""Predicted against measured decode time: three Llama shapes (random weights) under three recipes.

    python benchmarks/cost.py
    python benchmarks/cost.py --shapes 0.4b --recipes w4 --rounds 2

In every round the machine's constants are measured right before and after the decode steps whose time they predict, so
that what else runs on the machine meets both. A prediction is the median over the rounds, a measurement the lower
quartile of all steps, as constants are: what else runs makes a step slower, never faster.
"""

from statistics import median
from typing import Annotated

import torch
import typer
from engines import SHAPES, TorchEngine
from lutra import LutraError
from lutra.torch_plugin.options import Options
from lutra.tuning.explain import explain, products_of, weights_of
from lutra.tuning.machine import Meter, undisturbed
from results import Cell, Column, SaveOption, printed, save
from rich.console import Console

PROMPT, NEW_TOKENS = 64, 32
COLUMNS = (
    Column(name="shape"),
    Column(name="recipe"),
    Column(name="predicted", unit="ms", digits=2),
    Column(name="measured", unit="ms", digits=2),
    Column(name="predicted / measured", digits=2),
)


def measure(shape: str, recipe: str, rounds: int) -> tuple[float, float]:
    """Predicted and measured seconds of a decode step."""
    engine = TorchEngine(recipe, shape, PROMPT, NEW_TOKENS, torch.get_num_threads())
    engine.first_call()
    model, context = engine.model, PROMPT + NEW_TOKENS // 2
    products, meter = list(products_of(model, context)), Meter(Options.parse({}), weights_of(model))
    predicted = [explain(model, context, machine=meter.measure(products)).seconds]
    measured: list[float] = []
    for _ in range(rounds):
        timing, _ = engine.run()
        measured += timing.token_seconds
        predicted.append(explain(model, context, machine=meter.measure(products)).seconds)
    return median(predicted), undisturbed(measured)


def main(
    shapes: Annotated[str, typer.Option(help=f"of {', '.join(SHAPES)}")] = "0.15b,0.4b,1.1b",
    recipes: Annotated[str, typer.Option()] = "w4,w2-lut,w1-lut",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    save_file: SaveOption = None,
) -> None:
    """Print predictions, measurements and the worst of their ratios."""
    torch._dynamo.config.recompile_limit = 1 << 10  # nine models in one process
    rows: list[list[Cell]] = []
    errors = []
    try:
        for shape in shapes.split(","):
            for recipe in recipes.split(","):
                predicted, measured = measure(shape, recipe, rounds)
                errors.append(abs(predicted / measured - 1))
                rows.append([shape, recipe, 1e3 * predicted, 1e3 * measured, predicted / measured])
                print(*(column.text(cell) for column, cell in zip(COLUMNS, rows[-1], strict=True)), flush=True)
    except LutraError as error:
        Console().print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    Console().print(printed(None, COLUMNS, rows))
    print(f"worst error {max(errors):.0%}")
    if save_file is not None:
        threads = torch.get_num_threads()
        setting = {"prompt": PROMPT, "new tokens": NEW_TOKENS, "threads": threads, "rounds": rounds}
        save(save_file, "cost", setting, COLUMNS, rows)


if __name__ == "__main__":
    typer.run(main)
