"""Decode, prefill, first call and memory of a Llama of 1.1B shape: lutra against eager and inductor, in one run.

    python benchmarks/decode.py
    python benchmarks/decode.py --engines eager,inductor,none,w4,w2-lut,ternary-lut --rounds 5 --save result.json

Weights are random: no figure here depends on their values. Every engine lives in a process of its own and they take
turns, A B A B, so that what the machine does meanwhile meets all of them; figures are medians over the rounds. Engines
are `eager`, `inductor`, or the name of a recipe. Cold: the first call with empty compile caches; warm: the same in a
second process over the caches that the first one left.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from engines import SHAPES, TorchEngine
from lutra import LutraError
from lutra.tuning.speed import Speed, alternate
from lutra.tuning.worker import Worker
from results import Cell, Column, SaveOption, printed, save
from rich.console import Console
from targets import Target, target_table


@dataclass(frozen=True)
class Result:
    """What one engine did: tokens per second, seconds (None where there is nothing to compile), bytes."""

    decode: float
    prefill: float
    cold: float
    warm: float | None
    peak: int
    weights: int


def _slowest(time_of: Callable[[Result], float | None]) -> Callable[[Mapping[str, Result]], float]:
    """The greatest `time_of` over all recipes that ran; `KeyError` when none did."""

    def value(results: Mapping[str, Result]) -> float:
        times = [time_of(r) for name, r in results.items() if name not in ("eager", "inductor")]
        if not times:
            raise KeyError
        return max(t for t in times if t is not None)

    return value


TARGETS = (
    Target("w4 decode / eager", lambda r: r["w4"].decode / r["eager"].decode, 4.0),
    Target("w2-lut decode / eager", lambda r: r["w2-lut"].decode / r["eager"].decode, 6.0),
    Target("none decode / inductor", lambda r: r["none"].decode / r["inductor"].decode, 1.0),
    Target("first call cold, s, slowest recipe", _slowest(lambda r: r.cold), 60.0, most=True),
    Target("first call warm, s, slowest recipe", _slowest(lambda r: r.warm), 10.0, most=True),
    Target("w4 peak above bare, GB", lambda r: r["w4"].peak / 1e9, 1.0, most=True),
)
"""Set for the 1.1B shape on two cores."""


def measure(
    names: Sequence[str], engine: Sequence[Any], rounds: int, scratch: Path, console: Console
) -> dict[str, Result]:
    """Cold start, rounds and warm start of every engine; `engine`: arguments of `TorchEngine` after its name."""

    def worker(name: str) -> Worker:
        folder = scratch / str(names.index(name))
        caches = {"LUTRA_CACHE_DIR": str(folder / "lutra"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        return Worker(TorchEngine, name, *engine, environment=caches)

    def first_call(name: str, process: Worker, caches: str) -> float:
        seconds = process.call("first_call")
        console.print(f"{name}: first call, {caches} caches: {seconds:.1f} s", highlight=False)
        return seconds

    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name)) for name in names}
        cold = {name: first_call(name, process, "empty") for name, process in workers.items()}
        runs = {name: partial(process.call, "run") for name, process in workers.items()}
        done = alternate(
            runs, rounds, lambda name, number: console.print(f"round {number + 1}: {name}", highlight=False)
        )
        weights = {name: process.call("weight_bytes") for name, process in workers.items()}
    warm: dict[str, float] = {}
    for name in names:
        if name != "eager":
            with worker(name) as process:
                warm[name] = first_call(name, process, "warm")
    results = {}
    for name in names:
        speed = Speed.over([timing for timing, _ in done[name]])
        peak = max(peak for _, peak in done[name])
        results[name] = Result(speed.decode, speed.prefill, cold[name], warm.get(name), peak, weights[name])
    return results


def rows_of(results: Mapping[str, Result]) -> tuple[list[Column], list[list[Cell]]]:
    """One row an engine, with its decode speed relative to the peers that ran."""
    peers = [peer for peer in ("eager", "inductor") if peer in results]
    columns = [
        Column(name="engine"),
        Column(name="decode", unit="tokens/s", digits=1),
        *(Column(name=f"decode / {peer}", digits=2) for peer in peers),
        Column(name="prefill", unit="tokens/s"),
        Column(name="first call", unit="s", digits=2),
        Column(name="with warm cache", unit="s", digits=1),
        Column(name="peak", unit="MB"),
        Column(name="weights read", unit="MB/token"),
    ]
    rows: list[list[Cell]] = []
    for name, r in results.items():
        ratios = [r.decode / results[peer].decode for peer in peers]
        rows.append([name, r.decode, *ratios, r.prefill, r.cold, r.warm, r.peak / 1e6, r.weights / 1e6])
    return columns, rows


def main(
    engines: Annotated[
        str, typer.Option(help="eager, inductor and recipes, with commas")
    ] = "eager,inductor,none,w4,w2-lut",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    shape: Annotated[str, typer.Option(help=" or ".join(SHAPES))] = "1.1b",
    prompt: Annotated[int, typer.Option(help="prompt tokens", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(min=3)] = 32,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    save_file: SaveOption = None,
) -> None:
    """Print one table with all engines, and the targets beside what was measured."""
    console = Console()
    console.width = max(console.width, 110)  # the table's; a pipe has no width of its own
    names = list(dict.fromkeys(engines.split(",")))
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is not one of {', '.join(SHAPES)}", param_hint="--shape")
    settings = {"shape": shape, "prompt": prompt, "new tokens": new_tokens, "threads": threads}
    try:
        with tempfile.TemporaryDirectory(prefix="lutra-benchmark-") as scratch:
            results = measure(names, list(settings.values()), rounds, Path(scratch), console)
    except LutraError as error:
        console.print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    columns, rows = rows_of(results)
    title = f"Llama {shape}, bfloat16, prompt {prompt}, {new_tokens} new tokens, {threads} threads"
    console.print(printed(title, columns, rows))
    if shape == "1.1b":
        console.print(target_table(TARGETS, results))
    if save_file is not None:
        save(save_file, "decode", {**settings, "rounds": rounds}, columns, rows)


if __name__ == "__main__":
    typer.run(main)
