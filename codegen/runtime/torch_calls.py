"""What torch runs inside an executable because code generation has nothing for it."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from ...ir.importing.fx_nodes import module_path
from ...ir.rewriting import paths

_MLIR_PLACE = re.compile(r'"([^"]+)":(\d+)')
_FX_PLACE = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True)
class TorchCall:
    """`operator`: its name. `reason`: why torch runs it. `module`: path of the module that calls it; `source`: file and
    line; "" where that is not known."""

    operator: str
    reason: str
    module: str = ""
    source: str = ""

    @staticmethod
    def of(op: Any, operator: str, reason: str) -> "TorchCall":
        """For an MLIR operation."""
        places = _MLIR_PLACE.findall(str(op.operation.location))
        return TorchCall(operator, reason, ", ".join(paths(op)), _source(places))

    @staticmethod
    def of_node(node: fx.Node, reason: str) -> "TorchCall":
        """For a node of an FX graph."""
        places = _FX_PLACE.findall(node.meta.get("stack_trace") or "")
        return TorchCall(str(node.target), reason, module_path(node), _source(places))

    def __str__(self) -> str:
        where = " ".join(part for part in (f"in {self.module}" if self.module else "", self.source) if part)
        return f"{self.operator}{f' ({where})' if where else ''}: {self.reason}"

    def to_data(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def counted(calls: Iterable[TorchCall]) -> dict[str, int]:
    """Operator -> number of calls."""
    return dict(Counter(call.operator for call in calls))


def _source(places: list[tuple[str, str]]) -> str:
    return ":".join(places[-1]) if places else ""
