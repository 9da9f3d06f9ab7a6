"""Complete a prompt with a recipe, then say what it brought and what it cost, against the same model run eagerly.

    python examples/generate.py --model tests/assets/tiny-llama --recipe w2-lut --prompt "def main():"

Each engine runs in a process of its own, so that the memory of each can be told; they take turns, so that only one
works at a time and both meet the same machine.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from lutra import LutraError, load_recipe
from lutra.passes.registry import available_passes
from lutra.recipes.reading import parse_variables
from lutra.tuning.memory import Peak, resident, tensor_bytes, weights_resident
from lutra.tuning.quality import Quality, compare, held_out_windows
from lutra.tuning.speed import Speed, Timing, alternate, time_generate
from lutra.tuning.worker import Worker
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer
from transformers.utils import logging

PROMPT = '''import json


class Settings:
    """Settings of an application, kept in a JSON file.

    Keys are strings; values are anything that JSON can hold.
    """

    def __init__(self, path):
        self.path = path
        self.values = {}

    def load(self):
        """Read the settings from the file."""
        '''


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights, and of the process beyond what it had before the model, now and at its peak of a run."""

    weights: int
    process: int
    peak: int


class Engine:
    """The model in this process: eager, or compiled by lutra when there are `options`."""

    def __init__(self, model: str, dtype: str, options: Mapping[str, Any] | None) -> None:
        self._bare = resident()
        logging.disable_progress_bar()  # one for loading a model that takes no time
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._compiled = options is not None
        self._peaks: list[int] = []
        # Left alone, `generate` may compile the steps over a static cache by itself: eager would then not be eager.
        self._keywords = {"cache_implementation": "static", "disable_compile": True}
        if options is not None:
            self._model.forward = torch.compile(self._model.forward, backend="lutra", options=dict(options))

    def run(self, ids: list[int], new_tokens: int, stream: bool = False) -> Timing:
        """Complete the prompt, printing what comes when `stream`."""
        streamer = TextStreamer(self._tokenizer, skip_special_tokens=True) if stream else None
        with Peak() as peak:
            timing = time_generate(self._model, torch.tensor([ids]), new_tokens, streamer, **self._keywords)
        self._peaks.append(peak.bytes)
        return timing

    def memory(self) -> Memory:
        """What the weights and the process take, to be asked after two runs: the first, which compiles, is left out."""
        return Memory(self._weights(), resident() - self._bare, max(self._peaks[1:]) - self._bare)

    def _weights(self) -> int:
        if not self._compiled:
            return tensor_bytes([*self._model.parameters(), *self._model.buffers()])
        from lutra.torch_plugin.inspect.report import (
            states_of,  # only here: the eager process does not load the compiler
        )

        return weights_resident(g.graph for state in states_of(self._model) for g in state.graphs)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> np.ndarray:
        """float32 `[1, S, V]` for token ids `[S]`."""
        return self._model(torch.tensor([ids]), use_cache=False).logits.float().numpy()


def quality(eager: Worker, fast: Worker, tokens: torch.Tensor, window: int, windows: int) -> Quality:
    """`fast` against `eager` over `windows` windows of held-out `tokens`."""

    def logits(worker: Worker, ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(worker.call("logits", ids[0].tolist()))

    chosen = held_out_windows(tokens, min(window, len(tokens)), windows)
    steps = iter(track(range(len(chosen)), "held-out text", transient=True))
    next(steps)
    return compare(partial(logits, fast), partial(logits, eager), chosen, lambda done, total: next(steps, None))


def comparison(
    speeds: Mapping[str, Speed], memory: Mapping[str, Memory], cost: Quality | None, compiling: float
) -> list[tuple[str, str, str, str]]:
    """Rows of what was measured, eager, lutra and the ratio."""
    rows: list[tuple[str, str, str, str]] = []

    def row(name: str, unit: float, digits: int, values: Callable[[str], float]) -> None:
        eager, fast = values("eager") / unit, values("lutra") / unit
        rows.append((name, f"{eager:.{digits}f}", f"{fast:.{digits}f}", f"{fast / eager:.2f}x"))

    row("prefill, tokens/s", 1, 1, lambda name: speeds[name].prefill)
    row("decode, tokens/s", 1, 1, lambda name: speeds[name].decode)
    row("weights in memory, MB", 1e6, 1, lambda name: memory[name].weights)
    row("process above bare, MB", 1e6, 0, lambda name: memory[name].process)
    row("same, peak of a run, MB", 1e6, 0, lambda name: memory[name].peak)
    if cost is not None:
        perplexities = {"eager": cost.reference_perplexity, "lutra": cost.perplexity}
        row("held-out perplexity", 1, 3, lambda name: perplexities[name])
        rows.append(("KL to eager, nats a token", "0", f"{max(cost.kl_divergence, 0):.4f}", ""))
        rows.append(("top-1 agreement with eager", "100 %", f"{100 * cost.top1_agreement:.1f} %", ""))
    rows.append(("compiling, in the first run, s", "", f"{compiling:.1f}", ""))
    return rows


def save(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]], setting: Mapping[str, Any]) -> None:
    """Store `rows` under the headings `names` as benchmarks store theirs: the README shows them."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import results

    results.save(path, "demo", setting, [results.Column(name=name) for name in names], rows)


def main(
    model: Annotated[str, typer.Option(help="folder or hub name of a causal language model")],
    recipe: Annotated[str, typer.Option(help="recipe: a name of the library, a path or YAML text")] = "w2-lut",
    vars: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, in place of the recipe's variable")] = None,
    prompt: Annotated[str, typer.Option(help="text to complete")] = PROMPT,
    max_new_tokens: Annotated[int, typer.Option(min=2)] = 64,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ..., or auto for the checkpoint's own")] = "float32",
    text: Annotated[Path | None, typer.Option(help="held-out text (default: heldout.txt beside the model)")] = None,
    window: Annotated[int, typer.Option(help="tokens a window of held-out text", min=2)] = 512,
    windows: Annotated[int, typer.Option(help="windows of held-out text; 0 leaves quality out", min=0)] = 24,
    rounds: Annotated[int, typer.Option(help="generations by each engine", min=1)] = 5,
    kernel_family: Annotated[str, typer.Option(help="auto, lookup, triples or dot")] = "auto",
    save_file: Annotated[Path | None, typer.Option("--save", help="write the table there, for `make figures`")] = None,
) -> None:
    """Stream a completion, then compare eager and lutra: speed, memory, quality."""
    console = Console()
    try:
        overrides = parse_variables(vars or [])
        load_recipe(recipe, available_passes(), vars=overrides)  # an error in it is better told before models load
        tokenizer = AutoTokenizer.from_pretrained(model)
        ids = tokenizer(prompt)["input_ids"]
        options = {
            "recipe": recipe,
            "vars": overrides,
            "kernel_family": kernel_family,
            "release_weights": True,
        }
        with ExitStack() as stack:
            workers = {
                "eager": stack.enter_context(Worker(Engine, model, dtype, None)),
                "lutra": stack.enter_context(Worker(Engine, model, dtype, options)),
            }
            runs = {name: partial(worker.call, "run", ids, max_new_tokens) for name, worker in workers.items()}
            first = {name: run() for name, run in runs.items()}
            console.rule("completion by lutra")
            runs["lutra"](stream=True)
            console.rule()
            timings = alternate(runs, rounds)
            speeds = {name: Speed.over(of_engine) for name, of_engine in timings.items()}
            compiling = first["lutra"].seconds - median(timing.seconds for timing in timings["lutra"])
            memory = {name: worker.call("memory") for name, worker in workers.items()}
            held_out = text or Path(model) / "heldout.txt"
            cost = None
            if windows and held_out.is_file():
                tokens = torch.tensor(tokenizer(held_out.read_text(encoding="utf-8"))["input_ids"])
                cost = quality(workers["eager"], workers["lutra"], tokens, window, windows)
    except LutraError as error:
        console.print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    headings, rows = ("quantity", "eager", f"lutra {recipe}", "ratio"), comparison(speeds, memory, cost, compiling)
    table = Table(headings[0], title="the same model, the same prompt, taking turns")
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{len(ids)} prompt tokens and {max_new_tokens} new ones, greedy, through generate with a static cache; "
        f"{dtype}; medians of {rounds} rounds; {torch.get_num_threads()} threads. Process: resident memory after the "
        "runs, less that of the same process before it loaded the model; lutra's has TVM in it "
        "as well." + (f" Quality: {cost.tokens} tokens of {held_out.name}." if cost else ""),
        highlight=False,
    )
    if save_file is not None:
        setting = {"new tokens": max_new_tokens, "rounds": rounds, "threads": torch.get_num_threads(), "dtype": dtype}
        save(save_file, headings, rows, {"prompt": len(ids), **setting})


if __name__ == "__main__":
    typer.run(main)
