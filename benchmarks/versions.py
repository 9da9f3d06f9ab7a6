"""Two versions of Lutra in turns: is a change faster, or slower, than what was there before?

    git worktree add ../before HEAD~1 && make -C ../before setup
    python benchmarks/versions.py ../before
    python benchmarks/versions.py ../before --recipes none,w4 --rounds 7 --prompt 512

Each version runs by the Python of its own `.venv`, in processes of its own, which take turns (A B A B) so that a noisy
machine is noisy for both. The figures are medians; the ratio is that of this version over the other, paired round by
round. The model is that of `peers.py`.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SERVE = "serve"
"""First argument of a process that runs one version."""


@dataclass
class Version:
    """A process that runs one recipe by the checkout at `path`, once for every line that it is sent."""

    path: Path
    arguments: Mapping[str, Any]

    def __post_init__(self) -> None:
        python = self.path / ".venv" / "bin" / "python"
        if not python.exists():
            raise typer.BadParameter(f"{python} is not there: `make -C {self.path} setup` makes it")
        command = [str(python), str(Path(__file__).resolve()), SERVE, json.dumps(dict(self.arguments))]
        self._process = subprocess.Popen(
            command, cwd=self.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self) -> tuple[float, float]:
        """Tokens per second of prefill and of decode, of one generation."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.path}: the process ended: see above")
        prefill, decode = json.loads(answer)
        return prefill, decode

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve(arguments: str) -> None:
    """Answer every line of standard input with the speeds of a generation."""
    from engines import TorchEngine

    engine = TorchEngine(**json.loads(arguments))
    engine.first_call()
    for _ in sys.stdin:
        timing, _ = engine.run()
        print(json.dumps([timing.prefill_speed, timing.decode_speed]), flush=True)


def compare(
    before: Path, settings: Mapping[str, Any], rounds: int, progress: Console
) -> list[list[tuple[float, float]]]:
    """Per version, the other first, prefill and decode speed of each round."""
    versions = [Version(path, settings) for path in (before.resolve(), ROOT)]
    try:
        for version in versions:
            version.run()  # the first generation warms up
        turns = track(range(rounds), f"{settings['name']}", console=progress, transient=True)
        pairs = [[version.run() for version in versions] for _ in turns]
    finally:
        for version in versions:
            version.close()
    return [list(figures) for figures in zip(*pairs, strict=True)]


def _row(figures: Sequence[Sequence[tuple[float, float]]], part: int) -> list[str]:
    other, this = ([figure[part] for figure in version] for version in figures)
    ratio = median(b / a for a, b in zip(other, this, strict=True))
    return [f"{median(other):.1f}", f"{median(this):.1f}", f"{ratio:.3f}"]


def main(
    before: Annotated[Path, typer.Argument(help="a checkout of the other version, set up")],
    recipes: Annotated[str, typer.Option(help="with commas")] = "none,w4,w2-lut",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    shape: Annotated[str, typer.Option(help="a shape of benchmarks/engines.py")] = "1.1b",
    prompt: Annotated[int, typer.Option(help="prompt tokens", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(min=3)] = 48,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Print one table: tokens per second before and now, and now over before."""
    console = Console()
    table = Table(title=f"Llama {shape}, prompt {prompt}, {new_tokens} new tokens, {threads} threads, {rounds} rounds")
    for column in ("recipe", "prefill before", "now", "ratio", "decode before", "now", "ratio"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    setting = {"shape": shape, "prompt": prompt, "new_tokens": new_tokens, "threads": threads}
    for recipe in recipes.split(","):
        figures = compare(before, {"name": recipe, **setting}, rounds, Console(stderr=True))
        table.add_row(recipe, *_row(figures, 0), *_row(figures, 1))
    console.print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == [SERVE]:
        serve(sys.argv[2])
    else:
        typer.run(main)
