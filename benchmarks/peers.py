"""Low-bit inference on the 1.1B Llama shape: lutra against what else runs it on a CPU, in one run.

    make peers                  # installs llama-cpp-python, gguf and torchao, and OpenVINO in an environment of its own
    python benchmarks/peers.py
    python benchmarks/peers.py --engines llama.cpp:Q4_0,w4 --prompt 512 --rounds 5
    python benchmarks/peers.py --engines w2-lut --batch 8 --save benchmarks/results/peers-batch-8.json
    python benchmarks/peers.py --no-module-guards       # of all that torch compiles: docs/options.md

Engines: `eager`, `inductor`, `torchao-int4` (with inductor, bfloat16), `openvino-int4`, `llama.cpp:TYPE` for Q4_0,
Q8_0, Q2_K, TQ1_0, TQ2_0 and F16, and recipes of lutra. Weights are random. Every engine lives in a process of its own
and they take turns, A B A B; figures are medians. Between them the read ceiling of the machine is measured in that
moment: `of ceiling` is the time that reading the weights would take at that ceiling, over the time of a step.
"""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from engine_llama_cpp import SCALES_AT, LlamaCpp
from engines import SHAPES, TorchEngine
from lutra import LutraError
from lutra.codegen.kernels.cpu.bandwidth import ReadCeiling
from lutra.tuning.speed import Speed, Timing, alternate
from lutra.tuning.worker import Worker
from results import Cell, Column, SaveOption, printed, save
from rich.console import Console
from rich.table import Table
from targets import Target, target_table

ROOT = Path(__file__).resolve().parent.parent
ALL = (
    "eager,inductor,torchao-int4,openvino-int4,llama.cpp:Q4_0,llama.cpp:Q8_0,llama.cpp:Q2_K,llama.cpp:TQ2_0,"
    "llama.cpp:TQ1_0,w4,w2-lut,ternary-lut,w1-lut"
)


@dataclass(frozen=True)
class Setting:
    """What every engine does: `batch` prompts of `prompt` tokens, then `new_tokens` each, on `threads` cores.

    `module_guards`: see `TorchEngine`."""

    shape: str
    prompt: int
    new_tokens: int
    threads: int
    batch: int
    module_guards: bool


@dataclass(frozen=True)
class Result:
    """Medians of one engine: tokens per second of all prompts together, bytes of weights a step reads."""

    decode: float
    prefill: float
    weights: int


class OpenVinoProcess:
    """`engine_openvino.py` in the Python that has OpenVINO: answers like a `Worker` of a `TorchEngine`."""

    def __init__(self, python: Path, setting: Setting, folder: Path) -> None:
        if not python.exists():
            raise LutraError(f"openvino-int4: {python} is not there: `make peers` makes it")
        given = asdict(setting) | {"config": SHAPES[setting.shape].to_dict(), "folder": str(folder)}
        given["config"] = {key: value for key, value in given["config"].items() if isinstance(value, int | float)}
        command = [str(python), str(Path(__file__).with_name("engine_openvino.py")), json.dumps(given)]
        self._errors = folder.with_suffix(".log").open("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._prompt = setting.prompt
        self._bytes = self._answer()["bytes"]

    def call(self, method: str) -> Any:
        """`run` or `weight_bytes`."""
        if method == "weight_bytes":
            return self._bytes
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        prefill, *tokens = self._answer()
        return Timing(self._prompt, prefill, tuple(tokens)), 0

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise LutraError(f"openvino-int4 ended: {self._errors.read().strip().splitlines()[-1:]}")
        return json.loads(line)

    def __enter__(self) -> "OpenVinoProcess":
        return self

    def __exit__(self, *unused: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()


def open_engine(name: str, setting: Setting, scratch: Path, openvino: Path) -> Any:
    """A context that answers `call("run")` with a timing and a peak, and `call("weight_bytes")`."""
    peer, _, kind = name.partition(":")
    if setting.batch > 1 and peer in ("llama.cpp", "openvino-int4"):
        raise LutraError(f"{name} runs one prompt at a time here: leave it out with --batch {setting.batch}")
    if peer == "openvino-int4":
        return OpenVinoProcess(openvino, setting, scratch / "openvino")
    if peer == "llama.cpp":
        if kind not in SCALES_AT:
            raise LutraError(f"{name}: the type is none of {', '.join(SCALES_AT)}")
        sizes = (setting.shape, setting.prompt, setting.new_tokens, setting.threads)
        return Worker(LlamaCpp, kind, *sizes, str(scratch))
    caches = {"LUTRA_CACHE_DIR": str(scratch / "lutra"), "TORCHINDUCTOR_CACHE_DIR": str(scratch / f"inductor-{name}")}
    return Worker(TorchEngine, name, *asdict(setting).values(), environment=caches)


def measure(
    names: Sequence[str], setting: Setting, rounds: int, scratch: Path, openvino: Path, console: Console
) -> tuple[dict[str, Result], float]:
    """Rounds of every engine, and the read ceiling (bytes per second), measured once a round."""
    with ExitStack() as stack:
        engines = {}
        for name in names:
            engines[name] = stack.enter_context(open_engine(name, setting, scratch, openvino))
            engines[name].call("run")  # compiles
            console.print(f"{name} is ready", highlight=False)
        ceiling = stack.enter_context(Worker(ReadCeiling, environment={"OMP_NUM_THREADS": str(setting.threads)}))
        runs: dict[str, Callable[[], Any]] = {"ceiling": partial(ceiling.call, "measure")}
        runs |= {name: partial(engine.call, "run") for name, engine in engines.items()}
        done = alternate(runs, rounds, lambda name, number: console.print(f"round {number + 1}: {name}"))
        weights = {name: engine.call("weight_bytes") for name, engine in engines.items()}
    results = {}
    for name in names:
        speed = Speed.over([timing for timing, _ in done[name]])
        results[name] = Result(speed.decode * setting.batch, speed.prefill * setting.batch, weights[name])
    return results, median(done["ceiling"])


def _best(field: str, *names: str) -> Callable[[Mapping[str, Result]], float]:
    """The fastest of `names`; `KeyError` when one did not run."""
    return lambda results: max(getattr(results[name], field) for name in names)


def _ratio(field: str, ours: str, *peers: str) -> Callable[[Mapping[str, Result]], float]:
    return lambda results: getattr(results[ours], field) / _best(field, *peers)(results)


TWO_BIT = ("llama.cpp:Q2_K", "llama.cpp:TQ2_0")

DECODE_TARGETS = (
    Target("w4 / llama.cpp Q4_0, decode", _ratio("decode", "w4", "llama.cpp:Q4_0"), 1.2),
    Target("w4 / torchao int4, decode", _ratio("decode", "w4", "torchao-int4"), 1.7),
    Target("w2-lut / best of Q2_K, TQ2_0, decode", _ratio("decode", "w2-lut", *TWO_BIT), 1.6),
    Target("ternary-lut / TQ2_0, decode", _ratio("decode", "ternary-lut", "llama.cpp:TQ2_0"), 1.8),
    Target(
        "ternary-lut / TQ2_0, bytes", lambda r: r["ternary-lut"].weights / r["llama.cpp:TQ2_0"].weights, 1.0, most=True
    ),
    Target("w1-lut / Q2_K, decode", _ratio("decode", "w1-lut", "llama.cpp:Q2_K"), 2.5),
)
PREFILL_TARGETS = (
    Target("w4 / llama.cpp Q4_0, prefill", _ratio("prefill", "w4", "llama.cpp:Q4_0"), 2.0),
    Target("w2-lut / best of Q2_K, TQ2_0, prefill", _ratio("prefill", "w2-lut", *TWO_BIT), 2),
    Target("w4 / inductor, prefill", _ratio("prefill", "w4", "inductor"), 1.3),
    Target("w4 / OpenVINO int4, prefill", _ratio("prefill", "w4", "openvino-int4"), 1.25),
)
LONG_TARGETS = (Target("w4 / llama.cpp Q4_0, decode", _ratio("decode", "w4", "llama.cpp:Q4_0"), 1.2),)


def targets_for(setting: Setting, results: Mapping[str, Result], ceiling: float) -> list[Target]:
    """What was set for this setting: contexts of 128 and 4096, prompts of 128 and 512, one prompt at a time."""
    if setting.shape != "1.1b" or setting.batch > 1:
        return []
    chosen: list[Target] = []
    if setting.prompt == 128:
        chosen += DECODE_TARGETS
        for name in results:
            if name in ("w4", "w2-lut", "ternary-lut", "w1-lut"):
                chosen.append(Target(f"{name}, of ceiling", partial(_of_ceiling, name, ceiling), 0.8))
    if setting.prompt in (128, 512):
        chosen += PREFILL_TARGETS
    if setting.prompt == 4096:
        chosen += LONG_TARGETS
    return chosen


def _of_ceiling(name: str, ceiling: float, results: Mapping[str, Result]) -> float:
    """Time to read the weights at `ceiling` over the time of a step, one prompt at a time."""
    return results[name].weights / ceiling * results[name].decode


COLUMNS = (
    Column(name="engine"),
    Column(name="decode", unit="tokens/s", digits=1),
    Column(name="prefill", unit="tokens/s"),
    Column(name="weights read", unit="MB/token"),
    Column(name="of read ceiling", unit="%"),
)


def rows_of(results: Mapping[str, Result], setting: Setting, ceiling: float) -> list[list[Cell]]:
    """One row an engine, by `COLUMNS`."""
    return [
        [name, r.decode, r.prefill, r.weights / 1e6, 100 * _of_ceiling(name, ceiling, results) / setting.batch]
        for name, r in results.items()
    ]


def table(rows: Sequence[Sequence[Cell]], setting: Setting, ceiling: float) -> Table:
    """Those rows for people."""
    guards = "" if setting.module_guards else ", no guards on modules"
    title = (
        f"Llama {setting.shape}, prompt {setting.prompt}, {setting.new_tokens} new tokens, batch {setting.batch},\n"
        f"{setting.threads} threads{guards}; read ceiling {ceiling / 1e9:.1f} GB/s"
    )
    return printed(title, COLUMNS, rows)


def main(
    engines: Annotated[str, typer.Option(help="peers and recipes, with commas")] = ALL,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    shape: Annotated[str, typer.Option(help=" or ".join(SHAPES))] = "1.1b",
    prompt: Annotated[int, typer.Option(help="prompt tokens", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(min=3)] = 32,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    batch: Annotated[int, typer.Option(help="prompts at a time", min=1)] = 1,
    module_guards: Annotated[bool, typer.Option(help="Dynamo looks at all modules before a call")] = True,
    openvino: Annotated[Path, typer.Option(help="the Python that has it")] = ROOT / ".venv-openvino/bin/python",
    folder: Annotated[Path | None, typer.Option(help="keep the peers' model files there")] = None,
    save_file: SaveOption = None,
) -> None:
    """Print one table with all engines, and the targets beside what was measured."""
    console = Console()
    console.width = max(console.width, 100)  # the table's; a pipe has no width of its own
    if shape not in SHAPES:
        raise typer.BadParameter(f"{shape!r} is not one of {', '.join(SHAPES)}", param_hint="--shape")
    setting = Setting(shape, prompt, new_tokens, threads, batch, module_guards)
    names = list(dict.fromkeys(engines.split(",")))
    try:
        with tempfile.TemporaryDirectory(prefix="lutra-peers-") as scratch:
            place = folder or Path(scratch)
            place.mkdir(parents=True, exist_ok=True)
            results, ceiling = measure(names, setting, rounds, place, openvino, console)
    except LutraError as error:
        console.print(f"[bold red]error[/] {error}", highlight=False)
        raise typer.Exit(2) from None
    rows = rows_of(results, setting, ceiling)
    console.print(table(rows, setting, ceiling))
    targets = targets_for(setting, results, ceiling)
    if targets:
        console.print(target_table(targets, results))
    if save_file is not None:
        settings = {name.replace("_", " "): value for name, value in asdict(setting).items()}
        shared = settings | {"rounds": rounds, "read ceiling, GB/s": round(ceiling / 1e9, 1)}
        save(save_file, "peers", shared, COLUMNS, rows)


if __name__ == "__main__":
    typer.run(main)
