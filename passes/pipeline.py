"""Run a recipe over one graph: what the model is made of is recognised, then the recipe's passes in their order, and
last of all `fuse`. After each: verify, clean up, dump, report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ir.errors import SelectorError
from ..ir.graph import Graph
from ..ir.rewriting import clean_up, verify
from ..ir.selection import Candidate
from .base import PassContext, PassReport
from .calibration import Calibration
from .fuse.fuse import Fuse
from .raising.raising import raise_operations


def run_passes(
    graph: Graph,
    steps: Sequence[Any],
    facts: Mapping[str, int] | None = None,
    dump: Callable[[str, str], None] | None = None,
    calibration: Calibration | None = None,
    strict: bool = False,
) -> list[PassReport]:
    """`steps`: resolved recipe entries (`pass_`, `selector`, `phases`, `applies`, `allow_empty`, `origin`), in order;
    those of `fuse` run last, wherever they stand: what it merged no technique could take apart. The first report is
    that of `raise_operations`, which runs whatever the recipe says.

    `facts`: values for `when` conditions. `dump(name, text)` receives the module after each pass. `strict`: what a
    pass cannot do as its parameters say is an error. Raises
    `SelectorError` when a selector takes none of the operations that its pass offers; an operation already handled by
    an earlier entry is still offered. In the end the last entry of each pass that has a `review(graph, report)` may add
    to its report what the finished graph tells."""
    reports = [raise_operations(graph)]

    def finish(report: PassReport) -> None:
        verify(graph, report.name)
        clean_up(graph.module)
        if dump is not None:
            dump(f"after-{report.name}.mlir", str(graph.module))

    finish(reports[0])
    last: dict[str, tuple[Any, PassReport]] = {}
    for step in sorted(steps, key=lambda step: isinstance(step.pass_, Fuse)):
        if graph.phase not in (step.phases or step.pass_.phases) or graph.phase not in step.pass_.phases:
            continue
        if not step.applies(facts or {}):
            continue
        report = PassReport(step.pass_.name, step.origin)

        def select(candidates: list[Candidate], step: Any = step, report: PassReport = report) -> list[Candidate]:
            chosen = step.selector.select(candidates)
            report.matched += len(chosen)
            if candidates and not chosen and not step.allow_empty:
                paths = ", ".join(sorted({c.path for c in candidates})[:5])
                raise SelectorError(
                    f"{step.origin}: select {step.selector} of pass {step.pass_.name!r} matches nothing "
                    f"in the {graph.phase} graph; modules there: {paths}, ... (allow_empty: true if that is meant)"
                )
            return chosen

        step.pass_.run(graph, PassContext(report, select, calibration, strict))
        finish(report)
        reports.append(report)
        last[report.name] = step.pass_, report
    for pass_, report in last.values():
        if hasattr(pass_, "review"):
            pass_.review(graph, report)
    return reports
