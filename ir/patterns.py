"""Patterns: small rewrites that compose with `+`, and the driver that applies them until none matches any more.

A pattern looks at one operation of a kind that it names, and replaces what it finds. Handles of operations and values
must not outlive the call: keep names, not handles.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch_mlir.rewrite import GreedyRewriteConfig, RewritePatternSet, apply_patterns_and_fold_greedily

from .graph import Graph


class Pattern(ABC):
    """One rewrite, called `name` in reports: the name of its class (`RmsNorm`: "rms_norm").

    roots: names of the operations that it is tried at."""

    roots: ClassVar[tuple[str, ...]]

    @abstractmethod
    def match_and_rewrite(self, op: Any, rewriter: Any) -> bool:
        """Rewrite what starts at `op` and return True; leave everything as it is and return False where it is
        something else."""

    @property
    def name(self) -> str:
        """What reports call it."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__.lstrip("_")).lower()

    def __add__(self, other: "Pattern | Patterns") -> "Patterns":
        return Patterns((self,)) + other


@dataclass(frozen=True)
class Patterns:
    """Patterns that are applied together; where several match one operation, the first in order wins."""

    members: tuple[Pattern, ...]

    def __add__(self, other: "Pattern | Patterns") -> "Patterns":
        return Patterns((*self.members, *([other] if isinstance(other, Pattern) else other.members)))

    def __iter__(self) -> Iterator[Pattern]:
        return iter(self.members)


def apply_patterns(graph: Graph, patterns: Pattern | Patterns, report: Callable[[str], None]) -> None:
    """Apply `patterns` greedily to a fixed point; `report(pattern name)` is called per rewrite."""
    with graph.module.context:
        pattern_set = RewritePatternSet()
        for pattern in [patterns] if isinstance(patterns, Pattern) else patterns:

            def adapter(op: Any, rewriter: Any, pattern: Pattern = pattern) -> bool:
                changed = pattern.match_and_rewrite(op, rewriter)
                if changed:
                    report(pattern.name)
                return not changed  # the driver's convention: true means "no match"

            for root in pattern.roots:
                pattern_set.add(root, adapter)
        config = GreedyRewriteConfig()
        config.enable_folding = False  # see `clean_up`
        apply_patterns_and_fold_greedily(graph.module, pattern_set.freeze(), config)
