"""Many independent cases, each judged in a worker process: one that crashes or hangs is a result, not the end.

A judge is a class that takes (log file, *arguments) and has `judge(name) -> (outcome, detail)`.
"""

import faulthandler
import json
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lutra.tuning.worker import Worker, WorkerEnded, WorkerError, WorkerLate
from rich.console import Console
from rich.table import Table

Outcome = Literal["right", "nets", "excluded", "WRONG", "ERROR", "CRASH", "HANG"]
"""right: eager's answer from lutra's code alone; nets: eager's answer, part of it computed by torch; excluded: nothing
to compare with, the reason is the detail; WRONG: another answer; ERROR: an exception that eager does not raise."""
FAILURES = ("WRONG", "ERROR", "CRASH", "HANG")
_DETAIL = 2000


@dataclass(frozen=True)
class Result:
    name: str
    outcome: Outcome
    detail: str
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """How to run: `judge(log, *arguments)` is made once a worker and then asked for one case after another."""

    judge: Callable[..., Any]
    arguments: tuple[Any, ...]
    folder: Path
    timeout: float
    jobs: int = 1
    lifetime: int = 100
    """Cases after which a worker is replaced, so that what the cases leave behind does not add up."""

    def run(self, names: Sequence[str], again: Iterable[str] = ()) -> list[Result]:
        """Results of `names`, in that order; those in the folder are taken from there, but for the outcomes `again`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        done = {r.name: r for r in self._stored() if r.outcome not in set(again)}
        waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        missing = [name for name in names if name not in done]
        for name in missing:
            waiting.put(name)
        lock = threading.Lock()

        def take(_: int) -> None:
            for result in self._judged(waiting):
                with lock:
                    done[result.name] = result
                    with self._results.open("a") as file:
                        file.write(json.dumps(asdict(result)) + "\n")
                    left = sum(name not in done for name in missing)
                    line = (result.detail.splitlines() or [""])[0][:140]
                    print(
                        f"{left:4} left  {result.outcome:8} {result.seconds:5.1f} s  {result.name}  {line}", flush=True
                    )

        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(take, range(min(self.jobs, len(missing)))))
        return [done[name] for name in names]

    @property
    def _results(self) -> Path:
        return self.folder / "results.jsonl"

    def _stored(self) -> list[Result]:
        """One result a case: a later one replaces an earlier one."""
        lines = self._results.read_text().splitlines() if self._results.exists() else []
        return list({(r := Result(**json.loads(line))).name: r for line in lines}.values())

    def _judged(self, waiting: "queue.SimpleQueue[str]") -> Iterator[Result]:
        """Results of what one worker, or its successors, took from `waiting`."""
        log = self.folder / f"worker-{threading.get_ident()}.log"
        while not waiting.empty():
            with Worker(make_judge, self.judge, log, self.arguments) as worker:
                for _ in range(self.lifetime):
                    try:
                        name = waiting.get_nowait()
                    except queue.Empty:
                        return
                    start = time.monotonic()
                    outcome, detail = self._ask(worker, name, log)
                    yield Result(name, outcome, detail[:_DETAIL], round(time.monotonic() - start, 2))
                    if outcome in ("CRASH", "HANG"):
                        break

    def _ask(self, worker: Worker, name: str, log: Path) -> tuple[Outcome, str]:
        try:
            return worker.call_within(self.timeout, "judge", name)
        except WorkerLate as error:
            return "HANG", str(error)
        except WorkerEnded as error:
            return "CRASH", f"{error}\n{log.read_text(errors='replace')[-_DETAIL:]}"
        except WorkerError as error:
            return "ERROR", str(error)[-_DETAIL:]


def make_judge(judge: Callable[..., Any], log: Path, arguments: tuple[Any, ...]) -> Any:
    """In the worker: what it prints goes to `log`, where a crash leaves its last words."""
    file = log.open("w")
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    faulthandler.enable()
    return judge(*arguments)


def select(names: Sequence[str], part: str, only: Sequence[str]) -> list[str]:
    """The cases of a slice: `part` is "0/8" for every eighth from the first on; `only` takes parts of names."""
    index, count = (int(number) for number in part.split("/"))
    return [n for n in list(names)[index::count] if not only or any(word in n for word in only)]


def summarize(results: Sequence[Result], title: str) -> int:
    """Print the table; the exit code: 1 when something is wrong, crashes, hangs or raises."""
    counts = Counter(result.outcome for result in results)
    table = Table(title=title, title_justify="left")
    for heading in ("outcome", "cases"):
        table.add_column(heading)
    for outcome in get_args(Outcome):
        table.add_row(outcome, str(counts[outcome]))
    console = Console(soft_wrap=True)
    console.print(table)
    for result in results:
        if result.outcome in FAILURES:
            first = (result.detail.strip().splitlines() or [""])[0]
            console.print(f"{result.outcome} {result.name}: {first}", markup=False, highlight=False)
    return int(any(result.outcome in FAILURES for result in results))
