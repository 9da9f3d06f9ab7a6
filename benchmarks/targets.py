"""Figures that the project set out to reach, beside what a benchmark measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Target:
    """One figure that the project set out to reach: at least `bound`, or at most when `most`."""

    text: str
    value: Callable[[Mapping[str, Any]], float]
    bound: float
    most: bool = False

    def verdict(self, results: Mapping[str, Any]) -> tuple[str, str] | None:
        """Its figure and whether it was reached; None when an engine that it speaks of did not run."""
        try:
            value = self.value(results)
        except KeyError:
            return None
        reached = value <= self.bound if self.most else value >= self.bound
        return f"{value:.2f}", "reached" if reached else "missed"


def target_table(targets: Sequence[Target], results: Mapping[str, Any]) -> Table:
    """The targets, as far as the engines that ran speak to them."""
    result = Table("target", "bound", "measured", "")
    for target in targets:
        verdict = target.verdict(results) or ("not run", "")
        result.add_row(target.text, f"{'<=' if target.most else '>='} {target.bound:g}", *verdict)
    return result
