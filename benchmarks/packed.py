"""Loading a packed model of 1.1B shape: seconds and memory in a new process, against its size on disk.

    python benchmarks/packed.py
    python benchmarks/packed.py --recipe w2-lut --shape tiny

The model (random weights) is packed in one process; another loads it, which has imported what it needs before but holds
no weights, and generates. Memory is what is resident above that process before it loaded: mapped files count.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from engines import SHAPES, empty_model, fill
from lutra import LutraError
from lutra.torch_plugin.models.causal_lm import generate
from lutra.torch_plugin.models.loading import load
from lutra.torch_plugin.models.packed_model import pack
from lutra.tuning.memory import resident
from lutra.tuning.worker import Worker
from results import Cell, Column, SaveOption, printed, save
from rich.console import Console

COLUMNS = (
    Column(name="step"),
    Column(name="time", unit="s", digits=2),
    Column(name="size", unit="MB"),
    Column(name="of what"),
)


class Packer:
    """Makes the model, compiles it for a prefill and decode steps, and writes it."""

    def __init__(self, shape: str, recipe: str) -> None:
        self._model = empty_model(shape)
        fill(self._model)
        self._model.compile(backend="lutra", options={"recipe": recipe, "release_weights": True})

    def pack(self, folder: Path) -> tuple[int, float]:
        """Bytes of the weights, and seconds of the writing."""
        generate(self._model, prompt=32, new_tokens=2)
        start = time.perf_counter()
        return pack(self._model, folder), time.perf_counter() - start


class Loader:
    """Loads it in a process that has loaded one before, so that imports are not counted."""

    def __init__(self, warm_up: Path) -> None:
        load(warm_up)
        self._bare = resident()
        self._model: Any = None

    def load(self, folder: Path) -> tuple[float, int]:
        """Seconds, and bytes resident above before."""
        start = time.perf_counter()
        self._model = load(folder)
        return time.perf_counter() - start, resident() - self._bare

    def generate(self) -> tuple[float, int]:
        """The same for a first generation, which traces the model and reads all its weights."""
        start = time.perf_counter()
        generate(self._model, prompt=32, new_tokens=2)
        return time.perf_counter() - start, resident() - self._bare


def main(
    recipe: Annotated[str, typer.Option()] = "w4",
    shape: Annotated[str, typer.Option(help=" or ".join(SHAPES))] = "1.1b",
    save_file: SaveOption = None,
) -> None:
    """Print sizes, seconds and memory."""
    torch.set_grad_enabled(False)
    try:
        with tempfile.TemporaryDirectory(prefix="lutra-packed-") as scratch:
            caches = {"LUTRA_CACHE_DIR": f"{scratch}/cache"}
            folder, small = Path(scratch, "model"), Path(scratch, "small")
            with Worker(Packer, "tiny", "w4", environment=caches) as packer:
                packer.call("pack", small)
            with Worker(Packer, shape, recipe, environment=caches) as packer:
                size, writing = packer.call("pack", folder)
            with Worker(Loader, small, environment=caches) as loader:
                loading, loaded = loader.call("load", folder)
                first, used = loader.call("generate")
    except LutraError as error:
        Console().print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    rows: list[list[Cell]] = [
        ["written", writing, size / 1e6, "on disk"],
        ["loaded", loading, loaded / 1e6, "resident"],
        ["first generation", first, used / 1e6, "resident"],
    ]
    Console().print(printed(f"Llama {shape}, {recipe}, packed", COLUMNS, rows))
    if save_file is not None:
        save(save_file, "packed", {"shape": shape, "recipe": recipe}, COLUMNS, rows)


if __name__ == "__main__":
    typer.run(main)
