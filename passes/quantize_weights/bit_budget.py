"""How many bits each layer gets when only their average is given."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from ...ir.errors import QuantizationError
from ...ir.weights.formats import BITS

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class BitBudget:
    """`average` bits a weight over all selected layers, each of which gets one of `choices`. Scales are not counted."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # recipes: a misspelt key is an error

    average: float
    choices: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        wrong = [bits for bits in self.choices if bits not in BITS]
        if wrong or len(self.choices) < 2:
            known = ", ".join(map(str, BITS))
            raise QuantizationError(f"choices = {list(self.choices)} must be two or more different widths of {known}")
        if not min(self.choices) <= self.average <= max(self.choices):
            raise QuantizationError(f"an average of {self.average} bits is outside the choices {sorted(self.choices)}")

    def allocate(self, errors: Mapping[Key, Mapping[int, float]], sizes: Mapping[Key, int]) -> dict[Key, int]:
        """Widths with a small sum of `errors[layer][bits]` within the budget; `sizes`: weights of each layer.

        Greedy: all layers start at the smallest width, and the step that saves the most error for each added bit is
        taken until none fits (optimal up to the last step where errors fall convexly)."""
        widths = dict.fromkeys(errors, min(self.choices))
        left = (self.average - min(self.choices)) * sum(sizes[key] for key in errors) * (1 + 1e-9)
        while True:
            best, best_rate = None, 0.0
            for key, bits in widths.items():
                for wider in self.choices:
                    cost = (wider - bits) * sizes[key]
                    if 0 < cost <= left and (rate := (errors[key][bits] - errors[key][wider]) / cost) > best_rate:
                        best, best_rate = (key, wider, cost), rate
            if best is None:
                return widths
            key, wider, cost = best
            widths[key] = wider
            left -= cost
