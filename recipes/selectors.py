"""Selectors: which operations of a model a pass entry may touch.

`select:` holds any of these keys; all that are given must hold, and a list means any of its members:

* `modules`: glob over the whole dotted module path (`*` crosses dots), or `re:` and a regular expression, full match;
* `operators`: operator kinds (`linear`, `attention`, ...), globs;
* `shape`: weight shape pattern such as `["*", 2048]`;
* `layers`: an inclusive range of layer numbers, `4..-4`, negative counted from the last layer;
* `not`: a selector whose matches are left out.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ir.errors import SelectorError, did_you_mean
from ..ir.selection import Candidate

KEYS = ("modules", "operators", "shape", "layers", "not")
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def layer_index(path: str) -> int | None:
    """The first integer component of a module path: `model.layers.7.mlp` -> 7."""
    found = _LAYER.search(path)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Selector:
    """A parsed `select:` mapping; an empty one selects everything."""

    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in self.source:
            if key not in KEYS:
                raise SelectorError(f"select has no key {key!r}: {did_you_mean(key, KEYS)}")
        for pattern in self._list("modules"):
            _path_matcher(pattern)
        for pattern in self._list("layers"):
            _layer_range(pattern)
        if "not" in self.source:
            Selector(self.source["not"])

    def select(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates that match; `layers` counts from the end over the layers present among all candidates."""
        candidates = list(candidates)
        count = max((i for c in candidates if (i := layer_index(c.path)) is not None), default=-1) + 1
        return [c for c in candidates if self.matches(c, count)]

    def matches(self, candidate: Candidate, layer_count: int = 0) -> bool:
        """True when `candidate` satisfies every key."""
        checks: list[Callable[[], bool]] = []
        if "modules" in self.source:
            checks.append(lambda: any(_path_matcher(p)(candidate.path) for p in self._list("modules")))
        if "operators" in self.source:
            checks.append(lambda: any(fnmatch.fnmatchcase(candidate.operator, p) for p in self._list("operators")))
        if "shape" in self.source:
            checks.append(lambda: _shape_matches(self.source["shape"], candidate.shape))
        if "layers" in self.source:
            checks.append(lambda: self._layer_matches(candidate.path, layer_count))
        if "not" in self.source:
            checks.append(lambda: not Selector(self.source["not"]).matches(candidate, layer_count))
        return all(check() for check in checks)

    def _layer_matches(self, path: str, count: int) -> bool:
        index = layer_index(path)
        if index is None:
            return False
        for pattern in self._list("layers"):
            first, last = (n + count if n < 0 else n for n in _layer_range(pattern))
            if first <= index <= last:
                return True
        return False

    def _list(self, key: str) -> list[Any]:
        value = self.source.get(key, [])
        return list(value) if isinstance(value, list | tuple) else [value]

    def __str__(self) -> str:
        return str(dict(self.source)) if self.source else "everything"


def _path_matcher(pattern: Any) -> Callable[[str], bool]:
    if not isinstance(pattern, str):
        raise SelectorError(f"select.modules takes globs or 're:...' strings, got {pattern!r}")
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise SelectorError(f"select.modules: {pattern!r} is not a regular expression: {error}") from None
        return lambda path: expression.fullmatch(path) is not None
    return lambda path: fnmatch.fnmatchcase(path, pattern)


def _layer_range(pattern: Any) -> tuple[int, int]:
    found = re.fullmatch(r"\s*(-?\d+)\s*(?:\.\.\s*(-?\d+)\s*)?", str(pattern))
    if not found:
        raise SelectorError(f"select.layers takes a number or a range such as 4..-4, got {pattern!r}")
    return int(found[1]), int(found[2] if found[2] is not None else found[1])


def _shape_matches(pattern: Any, shape: tuple[int, ...]) -> bool:
    if not isinstance(pattern, list | tuple):
        raise SelectorError(f"select.shape takes a list such as ['*', 2048], got {pattern!r}")
    return len(pattern) == len(shape) and all(p in ("*", n) for p, n in zip(pattern, shape, strict=True))
