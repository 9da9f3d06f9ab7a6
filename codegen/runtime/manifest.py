"""What the cache keeps of a compiled graph beside its library: which weights it reads, what its results are, and what
was chosen."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..select import Reason
from .torch_calls import TorchCall
from .weights import WeightSource, from_data, to_data
from .workspace import Workspace

VERSION = 2
"""Of this form; part of the key of an entry, so that one of another form is never read."""


@dataclass(frozen=True)
class TensorOutput:
    """A result of the graph that is tensor `index` of what the function returns, its sizes being the first."""

    index: int


@dataclass(frozen=True)
class SizeOutput:
    """A result that is number `index` of the sizes that the function returns."""

    index: int


@dataclass(frozen=True)
class LiteralOutput:
    """A result that is known."""

    value: Any


@dataclass(frozen=True)
class UpdatedInput:
    """A result that is the graph's input `index`, updated in place."""

    index: int


Output = TensorOutput | SizeOutput | LiteralOutput | UpdatedInput
_OUTPUTS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (TensorOutput, SizeOutput, LiteralOutput, UpdatedInput)
}


@dataclass(frozen=True)
class Chosen:
    """The implementation of `count` problems of one kind, and why it is none of the others: of those that are `slower`
    and of those that are `unable`, by name.

    weights: their names in the store; of a problem without weights there are none."""

    kind: str
    implementation: str
    count: int
    slower: tuple[tuple[str, Reason], ...]
    unable: tuple[tuple[str, str], ...]
    weights: tuple[str, ...] = ()

    def brief(self) -> list[str]:
        """What was chosen, then the reasons against those that are slower, without figures: a line each."""
        against: dict[str, list[str]] = {}
        for name, reason in self.slower:
            against.setdefault(reason.why, []).append(name)
        return [f"{self.kind}: {self.implementation}", *(f"not {', '.join(n)}: {why}" for why, n in against.items())]

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Chosen":
        """The inverse of `dataclasses.asdict` by way of JSON."""
        slower = tuple((name, Reason(**reason)) for name, reason in data["slower"])
        unable = tuple((name, why) for name, why in data["unable"])
        return Chosen(**{**data, "slower": slower, "unable": unable, "weights": tuple(data["weights"])})


@dataclass(frozen=True)
class Manifest:
    """weights: in the order of the library's parameters, before those of the workspace. outputs: for each result of the
    graph. kernels: calls of each. fallbacks: what torch runs for want of a lowering."""

    weights: tuple[WeightSource, ...]
    outputs: tuple[Output, ...]
    kernels: Mapping[str, int]
    fallbacks: tuple[TorchCall, ...]
    chosen: tuple[Chosen, ...]
    workspace: Workspace = field(default_factory=Workspace)

    def to_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "version": VERSION,
            "weights": [to_data(weight) for weight in self.weights],
            "outputs": [{"kind": type(output).__name__, **asdict(output)} for output in self.outputs],
            "kernels": dict(self.kernels),
            "fallbacks": [call.to_data() for call in self.fallbacks],
            "chosen": [asdict(choice) for choice in self.chosen],
            "workspace": self.workspace.to_data(),
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> "Manifest":
        """The inverse of `to_data`."""
        outputs = ({**output} for output in data["outputs"])
        return Manifest(
            weights=tuple(map(from_data, data["weights"])),
            outputs=tuple(_OUTPUTS[output.pop("kind")](**output) for output in outputs),
            kernels=data["kernels"],
            fallbacks=tuple(TorchCall(**call) for call in data["fallbacks"]),
            chosen=tuple(map(Chosen.from_data, data["chosen"])),
            workspace=Workspace.from_data(data["workspace"]),
        )
