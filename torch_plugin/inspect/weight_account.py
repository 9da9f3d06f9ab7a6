"""What became of a model's weights: bytes in few bits, and bytes that stay in floating point, with the reason."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from torch import nn

from ...codegen.runtime.weights import PackedWeight
from ...passes.base import LeftAlone, Stays
from ...passes.left_alone import parameter_path
from ..compiled_graph import CompiledGraph

_NOT_ASKED = "no pass of the recipe quantises it"
_VECTORS = "vectors: norms and biases"
_UNREAD = "no graph that was compiled reads it"
_SHOWN = 3
FloatKind = Stays | Literal["vector", "not read"]


@dataclass(frozen=True)
class KeptInFloat:
    """Parameters of one kind that stay as they are for one reason: their bytes and module paths."""

    kind: FloatKind
    reason: str
    bytes: int
    paths: tuple[str, ...]


@dataclass(frozen=True)
class WeightAccount:
    """Bytes of a model's parameters.

    before: of all. low_bit_before: of those that a graph reads in few bits, as they came; low_bit: what these take now,
    scales and zero points among it. floating: the others, the largest first; a weight that is read both ways (a head
    that is tied to an embedding) is in both."""

    before: int
    low_bit_before: int
    low_bit: int
    floating: tuple[KeptInFloat, ...]

    @property
    def float_bytes(self) -> int:
        """Of all that stays in floating point."""
        return sum(kept.bytes for kept in self.floating)

    @property
    def after(self) -> int:
        """Of all weights in the form in which graphs read them."""
        return self.low_bit + self.float_bytes

    def __rich__(self) -> Table:
        """A row for low-bit weights and one for each kind and reason."""
        table = Table(title="weights", title_justify="left")
        for heading in ("", "before MB", "now MB", "why they stay in floating point"):
            table.add_column(heading, justify="right" if heading.endswith("MB") else "left", overflow="fold")
        if self.low_bit:
            table.add_row("low-bit", _mb(self.low_bit_before), _mb(self.low_bit), "")
        for kept in self.floating:
            table.add_row(kept.kind, _mb(kept.bytes), _mb(kept.bytes), f"{kept.reason}: {some(kept.paths)}")
        table.add_section()
        table.add_row("all", _mb(self.before), _mb(self.after), "")
        return table


def weight_account(module: nn.Module, graphs: Iterable[CompiledGraph]) -> WeightAccount:
    """The account of the parameters of `module`, as the compiled `graphs` read them."""
    parameters = {id(p): (name, p) for name, p in module.named_parameters()}
    packed: dict[tuple[int, str], int] = {}
    in_few_bits, read_plain, reasons = set[int](), dict[int, str](), dict[str, LeftAlone]()
    for graph in graphs:
        store = graph.graph.store
        for left in (left for report in graph.pass_reports for left in report.left):
            reasons.setdefault(left.path, left)
        for source in graph.executable.sources:
            originals = [(name, id(store.bound(name))) for name in store.sources(source.symbol)]
            if isinstance(source, PackedWeight):
                packed[id(store), source.symbol] = store.packed_bytes(source.symbol)
                in_few_bits |= {identity for _, identity in originals}
            else:
                read_plain |= {identity: name for name, identity in originals}
    groups: dict[tuple[FloatKind, str], list[tuple[str, int]]] = {}
    for identity, (name, parameter) in parameters.items():
        for kind, reason in _kept(parameter, read_plain.get(identity), identity in in_few_bits, reasons):
            groups.setdefault((kind, reason), []).append((parameter_path(name), _bytes(parameter)))
    floating = [
        KeptInFloat(kind, reason, sum(size for _, size in items), tuple(path for path, _ in items))
        for (kind, reason), items in groups.items()
    ]
    return WeightAccount(
        before=sum(_bytes(p) for _, p in parameters.values()),
        low_bit_before=sum(_bytes(p) for identity, (_, p) in parameters.items() if identity in in_few_bits),
        low_bit=sum(packed.values()),
        floating=tuple(sorted(floating, key=lambda kept: -kept.bytes)),
    )


def _kept(
    parameter: nn.Parameter, symbol: str | None, in_few_bits: bool, reasons: dict[str, LeftAlone]
) -> Iterator[tuple[FloatKind, str]]:
    """Kind and reason of a parameter that stays in floating point; `symbol`: what a graph reads it as, if one does."""
    if symbol is None:
        if not in_few_bits:
            yield "not read", _UNREAD
    elif parameter.dim() < 2:
        yield "vector", _VECTORS
    else:
        left = reasons.get(parameter_path(symbol))
        yield ("other", _NOT_ASKED) if left is None else (left.kind, left.reason)


def _bytes(parameter: Any) -> int:
    """Also of one whose values were released, which shares memory with all others of these."""
    return parameter.numel() * parameter.element_size()


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def some(paths: Sequence[str]) -> str:
    """The first few of `paths`, and how many more there are."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
