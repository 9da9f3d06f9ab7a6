"""What a pass is: a frozen dataclass whose fields are its recipe parameters, and `run(graph, context)`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

from ..ir.graph import Graph, Phase
from ..ir.selection import Candidate
from .calibration import Calibration

Kind = Literal["fusion", "weight-static", "activation-mask", "prefill-decode", "cache-policy", "control-flow"]
ALL_PHASES: tuple[Phase, ...] = ("prefill", "decode", "encode")


Stays = Literal["embedding", "convolution", "experts", "not selected", "other"]
"""Kinds of weights that stay in floating point."""


class LeftAlone(NamedTuple):
    """What a pass did not touch: module path, reason, and the kind of the weight for sums."""

    path: str
    reason: str
    kind: Stays = "other"


class Adjusted(NamedTuple):
    """What a pass did otherwise than its parameters say: module path, and what it did with the reason."""

    path: str
    what: str


@dataclass
class PassReport:
    """What a pass did. `matched`: operations its selector took; `changed`: rewrites by name; `left`: what it left
    alone; `adjusted`: what it did otherwise than it was asked to."""

    name: str
    origin: str = ""
    matched: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    left: list[LeftAlone] = field(default_factory=list)
    adjusted: list[Adjusted] = field(default_factory=list)

    def count(self, rewrite: str, number: int = 1) -> None:
        """Note `number` more rewrites of this name."""
        self.changed[rewrite] = self.changed.get(rewrite, 0) + number


@dataclass
class PassContext:
    """What a pass may ask while it runs: `select` keeps the candidates that the recipe's selector takes; `calibration`:
    statistics of real inputs, where the user gave them; `strict`: what cannot be done as asked is an error."""

    report: PassReport
    select: Callable[[list[Candidate]], list[Candidate]] = lambda candidates: candidates
    calibration: Calibration | None = None
    strict: bool = False


class Pass(Protocol):
    """A rewrite of one graph, whose operations are named (`lutra.linear`, `lutra.attention`, ...) and not merged yet.

    Invariants: the module verifies before and after; running twice changes nothing more;
    only what the selector takes is touched; at its neutral setting the output is identical.

    A pass may have a method `review(graph, report)` too, called for its last entry after all passes of a recipe: it
    adds to its report what only the finished graph tells."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    phases: ClassVar[tuple[Phase, ...]]

    def run(self, graph: Graph, context: PassContext) -> None:
        """Rewrite `graph` in place and fill `context.report`."""
        ...
