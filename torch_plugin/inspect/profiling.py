"""Where the time of compiled graphs goes, kernel by kernel.

    with lutra.profile(model) as timeline:
        model.generate(...)
    print(timeline)               # by phase and kernel
    timeline.save("trace.json")   # for chrome://tracing or ui.perfetto.dev

Graphs that are compiled inside the block are left out: call the model once before it. Watching costs a few microseconds
a call, most of it between kernels.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from ...codegen.runtime.executable import Executable
from ...ir.graph import Phase
from .report import module_of, states_of

_WIDTH = 110
_MACHINE, _OWN = "vm.", "(allocations, shapes, views)"
"""What the names of the virtual machine's own steps begin with, and how they are shown."""


@dataclass(frozen=True)
class Event:
    """One call of a kernel: its start (seconds, `time.perf_counter`), its duration, bytes of weights that it read."""

    name: str
    start: float
    seconds: float
    weight_bytes: int


@dataclass
class GraphCall:
    """One call of a compiled graph, and what ran in it, in order."""

    phase: Phase
    start: float
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)


@dataclass
class Timeline:
    """Calls of compiled graphs, in order."""

    calls: list[GraphCall] = field(default_factory=list)

    def phases(self) -> dict[Phase, list[GraphCall]]:
        """Calls by phase."""
        found: dict[Phase, list[GraphCall]] = {}
        for call in self.calls:
            found.setdefault(call.phase, []).append(call)
        return found

    def save(self, path: Path | str) -> None:
        """Write the calls as Chrome's trace events (JSON), times in microseconds."""
        begin = self.calls[0].start if self.calls else 0.0

        def event(name: str, start: float, seconds: float, weight_bytes: int) -> dict[str, Any]:
            times = {"ts": (start - begin) * 1e6, "dur": seconds * 1e6}
            return {"name": name, "ph": "X", "pid": 0, "tid": 0, **times, "args": {"weight bytes": weight_bytes}}

        events = []
        for call in self.calls:
            read = sum(e.weight_bytes for e in call.events)
            events.append(event(f"{call.phase} graph", call.start, call.seconds, read))
            events += [event(e.name, e.start, e.seconds, e.weight_bytes) for e in call.events]
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}) + "\n")

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich__(self) -> Group:
        """One table a phase."""
        return Group(*(_table(phase, calls) for phase, calls in self.phases().items()))


def _table(phase: Phase, calls: Sequence[GraphCall]) -> Table:
    """Mean times over `calls`: every kernel, then what is not one."""
    number, total = len(calls), sum(call.seconds for call in calls)
    table = Table(title=f"{phase}: {1e3 * total / number:.2f} ms a call, {number} calls", title_justify="left")
    for heading in ("kernel", "calls", "ms", "share", "weights MB", "GB/s"):
        table.add_column(heading, justify="left" if heading == "kernel" else "right")

    def row(name: str, count: float, seconds: float, weight_bytes: float) -> None:
        size, rate = f"{weight_bytes / number / 1e6:.1f}", f"{weight_bytes / (seconds or 1) / 1e9:.1f}"
        figures = (f"{1e3 * seconds / number:.2f}", f"{seconds / (total or 1):.1%}")
        table.add_row(name, f"{count / number:g}", *figures, *((size, rate) if weight_bytes else ()))

    def sums(events: Sequence[Event]) -> tuple[int, float, int]:
        return len(events), sum(e.seconds for e in events), sum(e.weight_bytes for e in events)

    every = [event for call in calls for event in call.events]
    by_name: dict[str, list[Event]] = {}
    for event in every:
        by_name.setdefault(_OWN if event.name.startswith(_MACHINE) else event.name, []).append(event)
    for name, events in sorted(by_name.items(), key=lambda item: -sums(item[1])[1]):
        row(name, *sums(events))
    row("between them", 0, total - sums(every)[1], 0)
    table.add_section()
    reading = [event for event in every if event.weight_bytes]
    row("reading weights", *sums(reading))
    row("all else", len(every) - len(reading), total - sums(reading)[1], 0)
    return table


@contextmanager
def profile(model: Any) -> Iterator[Timeline]:
    """Watch the graphs compiled so far over the parameters of `model` (what `lutra.report` takes).

    Raises `TypeError` for what is no model."""
    timeline = Timeline()
    with ExitStack() as stack:
        for state in states_of(module_of(model)):
            for graph in state.graphs:
                for executable in graph.executables():
                    stack.enter_context(_watched(executable, graph.graph.phase, timeline))
        yield timeline


@contextmanager
def _watched(executable: Executable, phase: Phase, timeline: Timeline) -> Iterator[None]:
    """Record every call of `executable` in `timeline`."""
    begun: list[float] = []

    def watch(name: str, begins: bool, weight_bytes: int) -> None:
        now = time.perf_counter()
        if begins:
            begun.append(now)
        elif begun:
            start = begun.pop()
            # An embedding reads a few rows of its weight.
            read = 0 if name.startswith("embedding") else weight_bytes
            timeline.calls[-1].events.append(Event(name, start, now - start, read))

    def graph_call(begins: bool) -> None:
        now = time.perf_counter()
        if begins:
            timeline.calls.append(GraphCall(phase, now))
        else:
            timeline.calls[-1].seconds = now - timeline.calls[-1].start

    with executable.watched(watch, graph_call):
        yield
