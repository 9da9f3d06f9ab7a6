"""Perplexity of the small trained model by method of quantisation, at equal bits.

    python benchmarks/quality.py
    python benchmarks/quality.py --windows 24 --group-size 128

The model runs compiled by lutra. Calibration sees the first quarter of the held-out text, evaluation windows that are
spread over the rest. The head keeps its values, and activations too (`activations: float`), so that the methods alone
make the differences. Mixed: widths of 2, 3 and 4 bits by layer, 3 on average.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lutra import calibrate
from lutra.tuning.quality import held_out_windows, perplexity
from results import Cell, Column, SaveOption, printed, save
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).resolve().parent.parent / "tests" / "assets" / "tiny-llama"
WIDTHS: dict[str, dict[str, Any]] = {
    "4 bits": {"bits": 4},
    "3 bits": {"bits": 3},
    "2 bits": {"bits": 2},
    "ternary": {"bits": 2, "scheme": "ternary"},
}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "rtn, range search": {"method": "rtn", "range_search": True},
    "hqq": {"method": "hqq"},
    "gptq": {"method": "gptq", "range_search": True},
}
MIXED = {"average": 3, "choices": [2, 3, 4]}


def recipe(parameters: dict[str, Any]) -> dict[str, Any]:
    """A recipe that quantises every linear except the head."""
    entry = {**parameters, "activations": "float", "select": {"layers": "0..-1"}}
    return {"lutra": 1, "name": "quality", "passes": [{"fuse": {}}, {"quantize-weights": entry}]}


def runs(group_size: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(row, column, parameters) of everything that is measured."""
    for width, bits in WIDTHS.items():
        for method, how in METHODS.items():
            yield width, method, {**bits, **how, "group_size": group_size}
    for method, how in METHODS.items():
        yield "2 to 4 bits, 3 on average", method, {"bits": MIXED, **how, "group_size": group_size}


def main(
    windows: Annotated[int, typer.Option(min=1, help="windows of 256 tokens to evaluate")] = 48,
    calibration_windows: Annotated[int, typer.Option(min=1, help="windows of 256 tokens to calibrate with")] = 64,
    group_size: Annotated[int, typer.Option(help="columns that share a scale")] = 64,
    save_file: SaveOption = None,
) -> None:
    """Print one table."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor(tokenizer((MODEL / "heldout.txt").read_text(encoding="utf-8"))["input_ids"])
    known, unseen = ids[: len(ids) // 4], ids[len(ids) // 4 :]
    evaluated = held_out_windows(unseen, 256, windows)
    model = AutoModelForCausalLM.from_pretrained(MODEL).float().eval()
    calibration = calibrate(model, [window[None] for window in held_out_windows(known, 256, calibration_windows)])
    found: dict[str, dict[str, float]] = {}
    for width, method, parameters in track(list(runs(group_size)), "recipes", console=Console(stderr=True)):
        torch._dynamo.reset()
        options = {"recipe": recipe(parameters), "calibration": calibration}
        compiled = torch.compile(model, backend="lutra", options=options)
        with torch.inference_mode():
            found.setdefault(width, {})[method] = perplexity(
                lambda window, compiled=compiled: compiled(window, use_cache=False), evaluated
            )
    with torch.inference_mode():
        eager = perplexity(model, evaluated)
    columns = [Column(name="weights"), *(Column(name=method, digits=3) for method in METHODS)]
    rows: list[list[Cell]] = [[width, *of_method.values()] for width, of_method in found.items()]
    Console().print(printed(f"perplexity (eager float32: {eager:.3f}), groups of {group_size}", columns, rows))
    if save_file is not None:
        setting = {"group size": group_size, "windows": windows, "calibration windows": calibration_windows}
        save(save_file, "quality", {**setting, "perplexity of eager": round(eager, 3)}, columns, rows)


if __name__ == "__main__":
    typer.run(main)
