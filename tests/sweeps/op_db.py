"""PyTorch's own operator database against eager: `make test-ops`.

python -m lutra.tests.sweeps.op_db [--slice 0/8] [--only softmax] [--samples 2] [--again WRONG]
"""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from lutra.ir.errors import LutraError
from lutra.torch_plugin.backend import lutra
from torch.testing._internal.common_methods_invocations import op_db

from .compare import difference
from .sweep import Outcome, Sweep, select, summarize

DTYPES = (torch.float32, torch.int64, torch.bool, torch.complex64)
"""Each variant runs in the first of these that it supports."""
UNDEFINED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
"""Operators whose results hold whatever was in memory: only their dtypes and shapes are compared."""


@cache
def variants() -> dict[str, Any]:
    """Name -> `OpInfo`, in the database's order."""
    return {f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name: op for op in op_db}


def attempt(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the exception that it raises."""
    try:
        return call()
    except Exception as error:
        return error


class OperatorJudge:
    """Judges one variant: its first `samples` samples by one compiled function, as a user would call it."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def judge(self, name: str) -> tuple[Outcome, str]:
        op = variants()[name]
        dtype = next((d for d in DTYPES if d in op.supported_dtypes("cpu")), None)
        if dtype is None:
            return "excluded", f"none of {DTYPES} is supported"

        def run(compile: Callable[[Any], Any]) -> list[Any]:
            """(result, inputs after the call) of each sample, or its exception."""
            torch._dynamo.reset()
            function = compile(lambda value, args, kwargs: op.op(value, *args, **kwargs))
            torch.manual_seed(0)
            results = []
            for sample in itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=False), self._samples):
                inputs = (sample.input, sample.args, sample.kwargs)
                with torch.no_grad(), torch.random.fork_rng():
                    torch.manual_seed(1)
                    results.append(attempt(lambda inputs=inputs: (function(*inputs), inputs)))
            return results

        expected = run(lambda function: function)
        if not expected:
            return "excluded", f"no samples of {dtype}"
        values = op.name not in UNDEFINED
        graphs: list[Any] = []

        def by_lutra(strict: bool) -> list[Any]:
            def backend(gm: Any, inputs: Any) -> Any:
                graphs.append(gm)
                return lutra(gm, inputs, options={"strict": strict, "cache": False})

            return run(lambda function: torch.compile(function, backend=backend))

        strict = by_lutra(strict=True)
        refused = next((r for r in strict if isinstance(r, Exception) and r not in expected), None)
        actual = by_lutra(strict=False) if refused is not None else strict
        outcome, detail = judged(expected, actual, values)
        if outcome in ("WRONG", "ERROR"):
            by_torch = run(lambda function: torch.compile(function, backend="aot_eager"))
            if judged(expected, by_torch, values)[0] == outcome:
                return "excluded", f"torch.compile with aot_eager is no better: {detail}"
            return outcome, detail
        if refused is not None:
            return "nets", reason(refused)
        return ("right", "") if graphs else ("nets", "Dynamo captured no graph")


def judged(expected: list[Any], actual: list[Any], values: bool) -> tuple[Outcome, str]:
    """right, WRONG or ERROR, for all samples together."""
    for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
        if isinstance(want, Exception) and isinstance(got, Exception):
            continue
        if isinstance(got, Exception):
            return "ERROR", f"sample {index}: {reason(got)}"
        if isinstance(want, Exception):
            return "WRONG", f"sample {index}: an answer instead of {type(want).__name__}: {want}"
        found = difference(want, got, values)
        if found is not None:
            return "WRONG", f"sample {index}: {found}"
    return "right", ""


def reason(error: BaseException) -> str:
    """The message of the innermost error, which torch wraps, with its type, in a line."""
    inner: Any = error
    while not isinstance(inner, LutraError):
        cause = getattr(inner, "inner_exception", None) or inner.__cause__
        if cause is None:
            break
        inner = cause
    return " ".join(f"{type(inner).__name__}: {inner}".split())


def main(
    part: Annotated[str, typer.Option("--slice", help="I/N: every N-th variant, from the I-th on")] = "0/1",
    only: Annotated[list[str] | None, typer.Option(help="variants whose name has this in it")] = None,
    samples: Annotated[int, typer.Option(help="samples of each variant")] = 2,
    again: Annotated[list[str] | None, typer.Option(help="outcomes to try again, others are kept")] = None,
    timeout: Annotated[float, typer.Option(help="seconds for one variant")] = 300,
    jobs: Annotated[int, typer.Option(help="worker processes")] = 2,
    folder: Annotated[Path, typer.Option(help="results.jsonl is there: a run goes on where it stopped")] = Path(
        "build/op_db"
    ),
) -> None:
    """Every variant of PyTorch's operator database gives eager's answer."""
    sweep = Sweep(OperatorJudge, (samples,), folder, timeout, jobs)
    results = sweep.run(select(list(variants()), part, only or []), again or [])
    raise typer.Exit(summarize(results, "PyTorch's operator database"))


if __name__ == "__main__":
    typer.run(main)
