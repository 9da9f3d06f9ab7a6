"""One low-bit linear by every kernel that can compute it: where a target's choices between them come from.

    python benchmarks/linear.py
    python benchmarks/linear.py --weights 4 --rows 4,8,16 --features 8192x2048 --target avx512

`packed` multiplies the weight as it is packed, `gemm` unpacks it first, once a tile (`select.py`, and what CPUs have in
`targets/cpu/implementations/low_bit.py`). Each call reads another copy of the weight, more of them than the caches
keep; kernels take turns, round by round. Times are of the product alone: activations are quantised, and tables built,
before.
"""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Annotated, Any

import torch
import typer
from lutra import LutraError
from lutra.codegen.kernels.cpu import triples
from lutra.codegen.kernels.cpu.activations import precompute_outputs
from lutra.codegen.kernels.cpu.bandwidth import ReadCeiling
from lutra.codegen.kernels.cpu.lowbit_gemm import low_bit_gemm
from lutra.codegen.kernels.cpu.lowbit_linear import PackedKnobs, low_bit_linear
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.kernels.cpu.tile_gemm import tile_gemm
from lutra.codegen.select import Family, LinearProblem, choose
from lutra.codegen.targets.cpu import memory
from lutra.codegen.targets.cpu.isa import Activations, VectorIsa
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.codegen.targets.cpu.launcher import compiled
from lutra.codegen.targets.registry import get_target
from lutra.ir.weights.formats import WeightFormat
from rich.console import Console
from rich.table import Column, Table
from tvm_ffi import from_dlpack

WEIGHTS = {
    "8": WeightFormat(8, 128, "symmetric"),
    "4": WeightFormat(4, 128, "symmetric"),
    "3": WeightFormat(3, 64, "symmetric"),
    "2": WeightFormat(2, 64, "symmetric"),
    "ternary": WeightFormat(2, 128, "ternary"),
    "1": WeightFormat(1, 64, "symmetric"),
}
CACHES, COPIES = 256 << 20, 64
"""Bytes of all copies of a weight, and how many there are at most: the caches keep weights below 4 MB."""
DTYPE = "bfloat16"


class Contender:
    """One kernel over copies of its weight."""

    def __init__(
        self, name: str, function: Any, layout: PackedLayout, family: Activations, rows: int, isa: VectorIsa
    ) -> None:
        self.name, self.weight_bytes = name, layout.nbytes
        self._run = compiled(function, isa.tvm_target())
        activations = [filled(*part) for part in precompute_outputs(family, layout.k, layout.activation_group, rows)]
        count = min(max(CACHES // layout.nbytes, 1), COPIES)
        copies = [[filled(*part) for part in layout.buffers] for _ in range(count)]
        out = torch.empty(rows, layout.n, dtype=getattr(torch, DTYPE))
        self._calls = [[from_dlpack(x) for x in (*activations, *copy, out)] for copy in copies]

    def seconds(self) -> float:
        """Mean seconds of a call."""
        start = time.perf_counter()
        for call in self._calls:
            self._run(*call)
        return (time.perf_counter() - start) / len(self._calls)


def filled(shape: Sequence[Any], dtype: str) -> torch.Tensor:
    """Random bytes; ones where these might make numbers that are none. In huge pages, as weights lie."""
    tensor = memory.empty(tuple(int(size) for size in shape), getattr(torch, dtype))
    return tensor.fill_(1) if dtype.startswith("float") else tensor.random_()


def contenders(format: WeightFormat, rows: int, n: int, k: int, isa: VectorIsa) -> Iterator[Contender]:
    """All kernels of `isa` that multiply a weight of `format` with `rows` rows."""
    families: list[Family] = ["dot", "lookup", *(["triples"] if triples.fits(format, k) else [])]
    for family in families:
        layout = PackedLayout.create(family, format, n, k, isa)
        function = low_bit_linear(layout, isa, PackedKnobs().static(rows), DTYPE)
        yield Contender(f"packed {family}", function, layout, family, rows, isa)
        if rows > 1 and isa.unpacks(family):
            yield Contender(f"gemm of {family}", low_bit_gemm(layout, isa, DTYPE), layout, "dot", rows, isa)
            if isa.multiplies_tiles:
                yield Contender(f"tile gemm of {family}", tile_gemm(layout, isa, DTYPE), layout, "dot", rows, isa)


def choice(format: WeightFormat, rows: int, n: int, k: int, target: str) -> str:
    """The name of the contender that a decoder's graphs take."""
    problem = LinearProblem(phase="prefill", rows=rows, features=n, columns=k, dtype=DTYPE, weight=format, parts=(n,))
    return choose(problem, get_target(target)).implementation.name


def integers(text: str, option: str, separator: str, exactly: int | None = None) -> list[int]:
    """The positive integers of an option's value."""
    parts = text.split(separator)
    if not all(part.isdigit() and int(part) > 0 for part in parts) or exactly not in (None, len(parts)):
        example = separator.join(["8", "16"])
        raise typer.BadParameter(f"{text!r} are no positive integers like {example}", param_hint=option)
    return [int(part) for part in parts]


def compare(weights: Sequence[str], rows: Sequence[int], n: int, k: int, rounds: int, target: str) -> Table:
    """Median time of every kernel, its rate, and which one is chosen."""
    ceiling = ReadCeiling().measure()
    title = f"{n}x{k} on {target}, {torch.get_num_threads()} threads, read ceiling {ceiling / 1e9:.1f} GB/s"
    kernel = Column("kernel", no_wrap=True)
    table = Table("weights", "rows", kernel, "us", "Gw/s x rows", "GB/s", "of ceiling", "chosen", title=title)
    for name in weights:
        for count in rows:
            engines = list(contenders(WEIGHTS[name], count, n, k, ISAS[target]))
            turns = [[engine.seconds() for engine in engines] for _ in range(rounds)]
            for engine, *times in zip(engines, *turns, strict=True):
                seconds = median(times)
                rate = engine.weight_bytes / seconds
                figures = [f"{1e6 * seconds:.0f}", f"{n * k * count / seconds / 1e9:.0f}", f"{rate / 1e9:.1f}"]
                chosen = "*" if engine.name == choice(WEIGHTS[name], count, n, k, target) else ""
                table.add_row(name, str(count), engine.name, *figures, f"{rate / ceiling:.0%}", chosen)
    return table


def main(
    weights: Annotated[str, typer.Option(help=f"of {', '.join(WEIGHTS)}")] = "4,2,ternary,1",
    rows: Annotated[str, typer.Option(help="of activations")] = "1,4,8,16,128",
    features: Annotated[str, typer.Option(help="NxK of the weight")] = "8192x2048",
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    target: Annotated[str, typer.Option(help="as the option of torch.compile")] = "auto",
) -> None:
    """Print how fast every kernel of a low-bit linear is on this machine."""
    named, counts, (n, k) = weights.split(","), integers(rows, "--rows", ","), integers(features, "--features", "x", 2)
    if unknown := [name for name in named if name not in WEIGHTS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(WEIGHTS)}", param_hint="--weights")
    try:
        table = compare(named, counts, n, k, rounds, get_target(target).name)
    except LutraError as error:
        Console().print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
