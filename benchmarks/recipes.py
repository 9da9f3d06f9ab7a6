"""Size, speed and quality of every recipe of the library on the small trained model, against the model run eagerly.

    python benchmarks/recipes.py
    python benchmarks/recipes.py --recipes w4,w2-lut --rounds 7 --save benchmarks/results/recipes.json

Every engine lives in a process of its own and they take turns; speeds are medians over generations by `generate`.
Perplexity is over windows of held-out text, in float32 but for what a recipe rounds.

`--formats`: the quality of formats of llama.cpp, whose speed `peers.py` measures on random weights. The `gguf` package
rounds the layers' weights as llama.cpp does, and the head as Q4_0 where the format has fewer bits. torch multiplies
them in floating point: llama.cpp itself rounds activations as well.
"""

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from lutra import LutraError, load_recipe
from lutra.passes.registry import available_passes
from lutra.recipes.loading import library
from lutra.tuning.memory import tensor_bytes, weights_resident
from lutra.tuning.quality import held_out_windows, perplexity
from lutra.tuning.speed import Speed, Timing, alternate, time_generate
from lutra.tuning.worker import Worker
from results import Cell, Column, SaveOption, printed, save
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

MODEL = Path(__file__).resolve().parent.parent / "tests" / "assets" / "tiny-llama"
EAGER = "eager"
LEFT_OUT = ("given",)
"""Recipes that take weights as a checkpoint brings them: this one's are not quantised."""
KEYWORDS = {"cache_implementation": "static", "disable_compile": True}
"""Left alone, `generate` may compile the steps over a static cache by itself: eager would then not be eager."""
FORMATS = ("Q8_0", "Q4_0", "TQ2_0")
COLUMNS = (
    Column(name="recipe"),
    Column(name="what it does"),
    Column(name="weights", unit="MB", digits=1),
    Column(name="decode", unit="tokens/s"),
    Column(name="decode / eager", digits=1),
    Column(name="perplexity", digits=2),
)


class Engine:
    """The model in this process: eager, or compiled with a recipe."""

    def __init__(self, name: str, prompt: int, new_tokens: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = trained()
        self._ids, self._new_tokens = text_ids()[None, :prompt], new_tokens
        self._eager = name == EAGER
        if not self._eager:
            self._model.compile(backend="lutra", options={"recipe": name, "release_weights": True})

    def run(self) -> Timing:
        """One generation by `generate`, as a user calls it; the first compiles."""
        return time_generate(self._model, self._ids, self._new_tokens, **KEYWORDS)

    def weight_bytes(self) -> int:
        """Bytes of all weights in memory."""
        if self._eager:
            return tensor_bytes([*self._model.parameters(), *self._model.buffers()])
        from lutra.torch_plugin.inspect.report import (
            states_of,  # only here: the eager process does not load the compiler
        )

        return weights_resident(graph.graph for state in states_of(self._model) for graph in state.graphs)

    def perplexity(self, window: int, windows: int) -> float:
        """Over `windows` windows of `window` tokens of held-out text."""
        chosen = held_out_windows(text_ids(), window, windows)
        return perplexity(partial(self._model, use_cache=False), chosen)


def trained() -> torch.nn.Module:
    """The trained model in float32."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def text_ids() -> torch.Tensor:
    """Token ids `[T]` of the held-out text."""
    text = (MODEL / "heldout.txt").read_text(encoding="utf-8")
    return torch.tensor(AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"])


def round_as(model: torch.nn.Module, format: str) -> None:
    """Every linear's weight becomes what it is after llama.cpp's `format`: the head has at least 4 bits, as in the
    recipes, and the embedding keeps its values, which are another tensor's from here on where it was tied."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    def bits(kind: GGMLQuantizationType) -> float:
        block, size = GGML_QUANT_SIZES[kind]
        return 8 * size / block

    kind, head = GGMLQuantizationType[format], GGMLQuantizationType.Q4_0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            of = max(kind, head, key=bits) if name.endswith("lm_head") else kind
            rounded = dequantize(quantize(module.weight.detach().numpy(), of), of)
            module.weight = torch.nn.Parameter(torch.from_numpy(rounded), requires_grad=False)


def measure(names: list[str], setting: dict[str, int], scratch: Path, console: Console) -> list[list[Cell]]:
    """A row for eager and each recipe of `names`, the largest weights first."""
    sizes = (setting["prompt"], setting["new tokens"], setting["threads"])
    caches = {"LUTRA_CACHE_DIR": str(scratch)}
    workers: dict[str, Worker] = {}
    sizes_of: dict[Cell, float] = {}
    rows: list[list[Cell]] = []
    try:
        for name in (EAGER, *names):
            workers[name] = Worker(Engine, name, *sizes, environment=caches)
            workers[name].call("run")  # compiles
            console.print(f"{name} is ready", highlight=False)
        runs = {name: partial(worker.call, "run") for name, worker in workers.items()}
        timings = alternate(runs, setting["rounds"], lambda name, number: console.print(f"round {number + 1}: {name}"))
        speeds = {name: Speed.over(of_engine) for name, of_engine in timings.items()}
        for name, worker in workers.items():
            sizes_of[name] = worker.call("weight_bytes") / 1e6  # before the graphs of another length
            quality = worker.call("perplexity", setting["window"], setting["windows"])
            what = "torch, float32" if name == EAGER else load_recipe(name, available_passes()).description
            decode = speeds[name].decode
            rows.append([name, what, sizes_of[name], decode, decode / speeds[EAGER].decode, quality])
    finally:
        for worker in workers.values():
            worker.close()
    return sorted(rows, key=lambda row: sizes_of[row[0]], reverse=True)


def measure_formats(formats: list[str], window: int, windows: int) -> list[list[Cell]]:
    """A row for each format of llama.cpp, with perplexities alone."""
    model, chosen = trained(), held_out_windows(text_ids(), window, windows)
    rows: list[list[Cell]] = []
    for format in formats:
        rounded = copy.deepcopy(model)
        round_as(rounded, format)
        what = f"weights rounded as llama.cpp's {format}, multiplied in floating point by torch"
        value = perplexity(partial(rounded, use_cache=False), chosen)
        rows.append([f"llama.cpp:{format}", what, None, None, None, value])
    return rows


def main(
    recipes: Annotated[str, typer.Option(help="with commas; all of the library when left out")] = "",
    formats: Annotated[str, typer.Option(help="of llama.cpp, with commas; '' for none")] = ",".join(FORMATS),
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    prompt: Annotated[int, typer.Option(help="prompt tokens", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(min=3)] = 64,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    window: Annotated[int, typer.Option(help="tokens a window of held-out text", min=2)] = 512,
    windows: Annotated[int, typer.Option(help="windows of held-out text", min=1)] = 24,
    save_file: SaveOption = None,
) -> None:
    """Print one table."""
    console = Console()
    console.width = max(console.width, 120)  # the table's; a pipe has no width of its own
    names = recipes.split(",") if recipes else [name for name in library() if name not in LEFT_OUT]
    wanted = formats.split(",") if formats else []
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(FORMATS)}", param_hint="--formats")
    setting = {
        "prompt": prompt,
        "new tokens": new_tokens,
        "threads": threads,
        "rounds": rounds,
        "window": window,
        "windows": windows,
    }
    try:
        for name in names:
            load_recipe(name, available_passes())
        with tempfile.TemporaryDirectory(prefix="lutra-recipes-") as scratch:
            rows = measure(names, setting, Path(scratch), console)
    except LutraError as error:
        console.print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    rows += measure_formats(wanted, window, windows)
    title = f"small trained Llama, float32, prompt {prompt}, {new_tokens} new tokens, {threads} threads"
    console.print(printed(title, COLUMNS, rows))
    if save_file is not None:
        save(save_file, "recipes", {"model": "tests/assets/tiny-llama", **setting}, COLUMNS, rows)


if __name__ == "__main__":
    typer.run(main)
