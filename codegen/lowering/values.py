"""What stands for a value of the IR that is no tensor, number or constant, and for one that is not computed yet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import relax

from ..prologues import Prologue


@dataclass
class Deferred:
    """A tensor that is not computed yet: `emit()` computes it, unless its consumer computes `prologue` of `inputs()`
    itself. `name`: for the consumer's kernel."""

    name: str
    prologue: Prologue
    inputs: Callable[[], list[relax.Var]]
    emit: Callable[[], relax.Var]


@dataclass(frozen=True)
class Table:
    """The lookup tables of `x`, a value of the IR: what is precomputed depends on the kernels that read them."""

    x: Any


@dataclass(frozen=True)
class Split:
    """Slices of `source`, a value of the IR, along `axis`; `drops`: of size 1, and without that axis."""

    source: Any
    axis: int
    drops: bool


@dataclass(frozen=True)
class Values:
    """A list of values of the IR."""

    items: tuple[Any, ...]


@dataclass(frozen=True)
class Parameter:
    """A weight that its consumers ask for in the form that they read: packed, or part by part."""

    symbol: str
