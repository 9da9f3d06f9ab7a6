"""What became of a model, for people: `print(lutra.report(model))`."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from torch import nn

from ...codegen.runtime.manifest import Chosen
from ...codegen.runtime.torch_calls import TorchCall, counted
from ...ir.graph import Phase
from ...ir.torch_private import OptimizedModule
from ...passes.base import PassReport
from ..compiled_graph import CompiledGraph
from ..model_state import ModelState, states_over
from ..nets import FallenGraph
from .uncompiled import why_not_compiled
from .weight_account import WeightAccount, some, weight_account

_WIDTH = 110
_SHOWN = 5


@dataclass(frozen=True)
class GraphReport:
    """One compiled graph.

    `kernels`: kernel -> calls. `fallbacks`: torch operator -> calls, for what code generation cannot lower. `cache`:
    "hit" or "miss: reason". `seconds`: stage -> time. `packed_bytes`: packed weights, shared by all graphs.
    `torch_calls`: the fallbacks one by one, with reason and place. `chosen`: what computes linears and attention, and
    why not the others; `choices()` shows it in full. `fell`: why torch runs the whole graph; None when it
    does not."""

    phase: Phase
    passes: tuple[PassReport, ...]
    kernels: Mapping[str, int]
    fallbacks: Mapping[str, int]
    cache: str
    seconds: Mapping[str, float]
    packed_bytes: int
    torch_calls: tuple[TorchCall, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    fell: str | None = None

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich__(self) -> Group:
        """The report as rich renders it."""
        facts = Table.grid(padding=(0, 2))
        facts.add_row("kernels", _counts(self.kernels) or "none")
        if self.fell is not None:
            return Group(f"{self.phase} graph: torch runs it as a whole", self.fell)
        facts.add_row("torch fallbacks", _counts(self.fallbacks) or "none")
        for call in list({call.operator: call for call in reversed(self.torch_calls)}.values())[:_SHOWN]:
            facts.add_row("", str(call))
        for number, choice in enumerate(self.chosen[:_SHOWN]):
            first, *against = choice.brief()
            facts.add_row("" if number else "chosen", "\n  ".join((f"{first} {choice.count}", *against)))
        if len(self.chosen) > _SHOWN:
            facts.add_row("", f"... and {len(self.chosen) - _SHOWN} more")
        facts.add_row("packed weights", f"{self.packed_bytes / 1e6:.1f} MB, shared by the model's graphs")
        facts.add_row("executable cache", self.cache)
        facts.add_row("seconds", ", ".join(f"{stage} {time:.2f}" for stage, time in self.seconds.items()) or "none")
        return Group(self._pass_table(), facts)

    def choices(self) -> Table:
        """Every implementation of what was chosen: why it was, or was not, and the measurements behind that."""
        return choice_table(self.chosen)

    def _pass_table(self) -> Table:
        table = Table(title=f"{self.phase} graph", title_justify="left", expand=True)
        for heading, ratio in (("pass", 2), ("written at", 2), ("rewrites", 4), ("left alone", 3)):
            table.add_column(heading, ratio=ratio, overflow="fold")  # a path that is cut short names nothing
        for report in self.passes:
            left = _cut(f"{left.path}: {left.reason}" for left in report.left)
            origin = report.origin.replace("\\", "/").rsplit("/", 1)[-1]
            done = [_counts(report.changed) or "none", *_cut(_adjusted(report))]
            table.add_row(report.name, origin, "\n".join(done), "\n".join(left))
        return table


@dataclass(frozen=True)
class ModelReport:
    """What became of a model.

    graphs: those compiled over its parameters, in order of compilation, then those that torch runs as a whole. weights:
    None as long as there are no graphs. notes: what does not run on Lutra, and why."""

    graphs: tuple[GraphReport, ...]
    weights: WeightAccount | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        text = StringIO()
        Console(file=text, width=_WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def __rich__(self) -> Group:
        """Notes, weights, then every graph."""
        account = [] if self.weights is None else [self.weights]
        return Group(*self.notes, *account, *self.graphs)


def report(model: Any) -> ModelReport:
    """What became of `model`: its graphs, its weights, and why nothing was compiled where nothing was.

    model: what `torch.compile` returned, the module or bound method that it was given, or any module that holds
    parameters of it. Raises `TypeError` for anything else."""
    module = module_of(model)
    states = list(states_of(module))
    compiled = [graph for state in states for graph in state.graphs]
    graphs = [*map(_report, compiled), *(_fallen(graph) for state in states for graph in state.fallen)]
    elsewhere = [graph for state in states for graph in state.elsewhere]
    return ModelReport(
        graphs=tuple(graphs),
        weights=weight_account(module, compiled) if compiled else None,
        notes=tuple(why_not_compiled(model, module, len(graphs), elsewhere)),
    )


def module_of(model: Any) -> nn.Module:
    """The module behind what a user has in hand; raises `TypeError` for anything that has none."""
    if isinstance(model, OptimizedModule):
        return model._orig_mod
    if isinstance(model, nn.Module):
        return model
    owner = getattr(getattr(model, "_torchdynamo_orig_callable", model), "__self__", None)
    if not isinstance(owner, nn.Module):
        raise TypeError(f"a module, or a method of one, compiled or not, is wanted; got {type(model).__name__}")
    return owner


def states_of(module: nn.Module) -> Iterator[ModelState]:
    """The states of all graphs over parameters of `module`, in the order in which they were made."""
    yield from states_over(module.parameters())


def _report(compiled: CompiledGraph) -> GraphReport:
    summary = compiled.executable.summary
    return GraphReport(
        phase=compiled.graph.phase,
        passes=tuple(compiled.pass_reports),
        kernels=dict(summary.kernels),
        fallbacks=counted(summary.fallbacks),
        torch_calls=summary.fallbacks,
        chosen=summary.chosen,
        cache=summary.cache,
        seconds=dict(summary.seconds),
        packed_bytes=compiled.graph.store.packed_bytes(),
    )


def choice_table(chosen: Iterable[Chosen]) -> Table:
    """A section for each kind of problem: what was chosen, then every other with the reason against it in full."""
    table = Table(title="implementations", title_justify="left", expand=True)
    for heading, ratio in (("of", 3), ("implementation", 2), ("why not", 6)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for choice in chosen:
        table.add_section()
        table.add_row(f"{choice.count}: {choice.kind}", choice.implementation, "chosen")
        for name, reason in (*choice.slower, *choice.unable):
            table.add_row("", name, str(reason))
    return table


def _fallen(graph: FallenGraph) -> GraphReport:
    return GraphReport(graph.phase, (), {}, {}, "off", {}, 0, fell=graph.reason)


def _cut(lines: Iterable[str]) -> list[str]:
    """The first few of `lines`, and how many more there are."""
    lines = list(lines)
    return lines[:_SHOWN] + ([f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])


def _adjusted(report: PassReport) -> Iterator[str]:
    """A line for each thing that was done otherwise than asked, with the paths that it was done to."""
    paths: dict[str, list[str]] = {}
    for each in report.adjusted:
        paths.setdefault(each.what, []).append(each.path)
    for what, own in paths.items():
        yield f"{what}: {some(own)}"


def _counts(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered)
