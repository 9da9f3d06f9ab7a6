"""Which implementation computes what: problems, what a target has for each of them, and why one of these is chosen.

    choice = choose(LinearProblem(phase="decode", rows=1, features=64, columns=128, ...), target)
    choice.implementation.name      "packed lookup"
    choice.slower                   {"packed dot": Reason("weights of 2 bits are faster looked up", "Zen 1: ...")}
    choice.unable                   {"dense": "its weight is quantised", ...}

An implementation refuses what it cannot compute (`why_not`), and says where another that can is known to be faster
(`rather`). What was measured on the device itself, in a `Database`, outweighs the latter and not the former.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol

from ..ir.errors import LoweringError
from ..ir.graph import Phase
from ..ir.rewriting import LinearActivations
from ..ir.weights.formats import WeightFormat

Family = Literal["lookup", "triples", "dot"]
"""Kernels, and what a weight is packed for: lookups of bit planes in tables over 4 columns, lookups of ternary weights
in tables over 3 columns, or products of codes with int8 activations."""


# What is to be computed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """All that a choice may depend on. Sizes that are known at run time only are None; dtypes are TVM's names."""

    operation: ClassVar[str]
    phase: Phase

    @property
    @abstractmethod
    def kind(self) -> str:
        """What reports call it: without the sizes of its weight."""

    @property
    def key(self) -> str:
        """What a database calls it: equal for equal problems alone, in any process."""
        return f"{self.operation}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields(self))})"


@dataclass(frozen=True, kw_only=True)
class LinearProblem(Problem):
    """`round(x W^T + bias) + residual` for x `[rows, columns]` in `dtype` and W `[features, columns]`.

    weight: its format, or its dtype when it is not quantised. parts: rows of each of the parameters that W is stacked
    of; none where W is computed. activations: what the model says of x (`ir.rewriting.activations_of`). family: what
    the weight has to be packed for, by the user's option; None leaves it to the target. bias: its dtype."""

    operation = "linear"
    rows: int | None
    features: int | None
    columns: int | None
    dtype: str
    weight: WeightFormat | str
    parts: tuple[int, ...] = ()
    activations: LinearActivations | None = None
    family: Family | None = None
    bias: str | None = None
    residual: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Of a weight whose sizes are known, as those of parameters are."""
        assert self.features is not None and self.columns is not None, "a parameter"
        return self.features, self.columns

    @property
    def format(self) -> WeightFormat | None:
        """The format of a quantised weight."""
        return None if isinstance(self.weight, str) else self.weight

    @property
    def kind(self) -> str:
        rows = "any number of rows" if self.rows is None else f"{self.rows} row{'s' * (self.rows != 1)}"
        kept = {"float": ", as they are", "integers": " of whole numbers", None: ""}[self.activations]
        weight = self.weight if isinstance(self.weight, str) else self.weight.describe()
        return f"{self.operation} {weight}, {rows} of {self.dtype}{kept}"


@dataclass(frozen=True, kw_only=True)
class GroupedLinearProblem(LinearProblem):
    """Each row of x times the matrix of its group: `groups` matrices `[features / groups, columns]` below each other.

    offsets: the dtype of the numbers that say where groups end."""

    operation = "grouped_linear"
    groups: int
    offsets: str


@dataclass(frozen=True)
class Mask:
    """A mask `[B or 1, H or 1, 1, L]`: its dtype, and whether batch and heads have sizes of their own. `regular` is
    False for any other shape."""

    dtype: str
    per_batch: bool
    per_head: bool
    regular: bool = True


@dataclass(frozen=True, kw_only=True)
class AttentionProblem(Problem):
    """`softmax(q k^T * scale + mask) v` for q `[B, heads, queries, head]`, v `[B, kv_heads, L, value_head]`."""

    operation = "attention"
    queries: int | None
    heads: int | None
    kv_heads: int | None
    head: int | None
    value_head: int | None
    dtype: str
    causal: bool = False
    mask: Mask | None = None

    @property
    def kind(self) -> str:
        queries = (
            "any number of queries"
            if self.queries is None
            else f"{self.queries} quer{'y' if self.queries == 1 else 'ies'}"
        )
        masked = ", causal" * self.causal + ", masked" * (self.mask is not None)
        return f"attention, {queries} of {self.dtype}{masked}"


# What can compute it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reason:
    """Why something is not chosen, in a clause; `measured`: the figures behind it, and where they are from."""

    why: str
    measured: str = ""

    def __str__(self) -> str:
        return f"{self.why} ({self.measured})" if self.measured else self.why


@dataclass(frozen=True)
class Knobs:
    """What may be turned about an implementation without another result: whole positive numbers with defaults.

    Raises `LoweringError` for any other value: a database may say anything."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if type(value) is not int or value < 1:
                raise LoweringError(f"the knob {f.name} is {value!r}: it must be a whole number above 0")


@dataclass(frozen=True, kw_only=True)
class Implementation(ABC):
    """One way to compute the problems of one operation."""

    knobs: Knobs = field(default_factory=Knobs)

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique among those of an operation."""

    @abstractmethod
    def why_not(self, problem: Any) -> str | None:
        """Why it cannot compute `problem`; None when it can."""

    def rather(self, problem: Any) -> Reason | None:
        """Why it is left for another that can compute `problem` too; None where it is the best that is known."""
        del problem
        return None

    @abstractmethod
    def emit(self, low: Any, problem: Any, operands: Any, knobs: Any) -> Any:
        """Write it into the Relax function that `low` (`lowering.builder.Lowering`) builds; the variable of the
        result."""


class HasImplementations(Protocol):
    """What choosing asks of a target."""

    @property
    def name(self) -> str:
        """As users know it."""
        ...

    @property
    def implementations(self) -> Mapping[str, Sequence[Implementation]]:
        """By operation; among equals the first is taken."""
        ...


@dataclass(frozen=True)
class Tuned:
    """What was measured to be the fastest for a problem: an implementation by name, and knobs that are not defaults."""

    implementation: str
    knobs: Mapping[str, Any] = field(default_factory=dict)


Database = Mapping[str, Tuned]
"""`Problem.key` -> what was measured. Weights are packed for what is chosen: entries for the phases of one model should
name implementations of one family, or weights are kept twice."""


@dataclass(frozen=True)
class Choice:
    """What computes `problem`, and why not the others, by name: those that are `slower` and those that are `unable`.

    tuned: a database said so."""

    problem: Problem
    implementation: Implementation
    knobs: Knobs
    slower: Mapping[str, Reason]
    unable: Mapping[str, str]
    tuned: bool = False


def choose(problem: Problem, target: HasImplementations, database: Database | None = None) -> Choice:
    """What `database` says, where that can compute `problem`; else the first of the target's implementations that can
    and knows of none that is faster. Raises `LoweringError` when nothing can."""
    unable: dict[str, str] = {}
    able: dict[str, Implementation] = {}
    for implementation in target.implementations.get(problem.operation, ()):
        why = implementation.why_not(problem)
        if why is None:
            able[implementation.name] = implementation
        else:
            unable[implementation.name] = why
    if not able:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in unable.items())
        raise LoweringError(f"target {target.name!r} has nothing for {problem.key}{reasons}")
    tuned = database.get(problem.key) if database else None
    if tuned is not None and (knobs := _turned(able.get(tuned.implementation), tuned)) is not None:
        reason = Reason(f"{tuned.implementation} was measured to be faster here")
        slower = {name: reason for name in able if name != tuned.implementation}
        return Choice(problem, able[tuned.implementation], knobs, slower, unable, tuned=True)
    reasons = {name: implementation.rather(problem) for name, implementation in able.items()}
    first = next((name for name, reason in reasons.items() if reason is None), next(iter(able)))
    later = Reason(f"{first} comes first on {target.name}")
    slower = {name: reason or later for name, reason in reasons.items() if name != first}
    return Choice(problem, able[first], able[first].knobs, slower, unable)


def _turned(implementation: Implementation | None, tuned: Tuned) -> Knobs | None:
    """The knobs as they were tuned; None for an implementation that cannot, or that has no such knobs or values."""
    if implementation is None or not tuned.knobs.keys() <= {f.name for f in fields(implementation.knobs)}:
        return None
    try:
        return replace(implementation.knobs, **tuned.knobs)
    except LoweringError:
        return None
