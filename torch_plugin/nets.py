"""What catches a graph that Lutra cannot run: torch runs it, the report and one warning say so, `strict` raises.

A user's mistake (a recipe that cannot be followed, a weight without values) is never caught.
"""

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from ..codegen.runtime.torch_calls import TorchCall
from ..ir.errors import LoweringError, LutraError, Mistake
from ..ir.graph import Phase
from ..ir.importing.fx_regions import copied

logger = logging.getLogger("lutra")
_warned: set[str] = set()


@dataclass
class TorchGraph:
    """An FX graph without what tracing noted beside it, which torch can run on the graph's arguments."""

    graph: fx.Graph
    attributes: dict[str, Any] = field(repr=False)

    @staticmethod
    def of(gm: fx.GraphModule) -> "TorchGraph":
        """A copy of the graph of `gm`, over the same tensors."""
        graph = copied(gm.graph)
        for node in graph.nodes:
            node.meta = {}
        read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        return TorchGraph(graph, {name: operator.attrgetter(name)(gm) for name in read})

    @cached_property
    def _module(self) -> fx.GraphModule:
        return fx.GraphModule(self.attributes, self.graph)

    def __call__(self, arguments: Sequence[Any]) -> list[Any]:
        """Results of the graph; what it updates is updated in place."""
        return list(self._module(*arguments))

    def boxed(self, owner: Any) -> Callable[[list[Any]], list[Any]]:
        """The callable in AOTAutograd's boxed convention: one list of arguments, which it may empty.

        owner: what lives as long as the callable does."""

        def run(arguments: list[Any]) -> list[Any]:
            outputs = self(arguments)
            arguments.clear()
            return outputs

        run._boxed_call, run._owner = True, owner  # type: ignore[attr-defined]
        return run


@dataclass(frozen=True)
class FallenGraph:
    """A graph that torch runs as a whole, and why."""

    phase: Phase
    reason: str


def must_raise(error: Exception, strict: bool) -> LutraError | None:
    """The error that the user gets for `error`; None where torch runs the graph instead."""
    if isinstance(error, Mistake) or (strict and isinstance(error, LutraError)):
        return error
    if strict:
        return LoweringError(f"strict: the graph cannot be compiled: {described(error)}")
    return None


def described(error: Exception) -> str:
    """`error` in a line: its kind, and the first lines of what it says."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    text = " ".join(lines[:3])
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def warn_of_calls(calls: Sequence[TorchCall]) -> None:
    """Say once of each operator that torch runs it."""
    new = [call for call in calls if call.operator not in _warned]
    if not new:
        return
    _warned.update(call.operator for call in new)
    first = {call.operator: call for call in reversed(new)}
    logger.warning("torch runs what Lutra has no code for:\n  %s", "\n  ".join(map(str, first.values())))


def warn_once(message: str, level: int = logging.WARNING) -> None:
    """Say `message` if it was not said before."""
    if message not in _warned:
        _warned.add(message)
        logger.log(level, "%s", message)
