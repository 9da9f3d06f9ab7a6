"""What a selector looks at: one operation of a graph, as recipes see it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """An operation that a pass could touch: module path, operator kind (`linear`, ...), weight shape if any."""

    path: str
    operator: str
    shape: tuple[int, ...] = ()
