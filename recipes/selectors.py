"""Selectors: which operations of a model a pass entry may touch.

`select:` holds any of these keys; all that are given must hold, and a list means any of its members, be it a value or
the whole of `select:`.

* `modules`: glob over the whole dotted module path (`*` crosses dots), or `re:` and a regular expression, full match,
  in the syntax of RE2, which takes linear time whatever the expression (no lookaround, no backreferences);
* `operators`: operator kinds (`linear`, `attention`, ...), globs;
* `shape`: weight shape pattern such as `["*", 2048]`;
* `layers`: a layer number, an inclusive range `4..-4`, negative counted from the last layer, or `outside`: in no
  numbered layer of a model that has some (its head, for one);
* `not`: a selector whose matches are left out.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import re2

from ..ir.errors import SelectorError, did_you_mean, shortened, shown
from ..ir.selection import Candidate

KEYS = ("modules", "operators", "shape", "layers", "not")
OUTSIDE = "outside"
MAX_CHARACTERS = 1000
"""Of a pattern."""
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_RANGE = re.compile(r"\s*(-?\d{1,9})\s*(?:\.\.\s*(-?\d{1,9})\s*)?", re.ASCII)


def layer_index(path: str) -> int | None:
    """The first integer component of a module path: `model.layers.7.mlp` -> 7."""
    found = _LAYER.search(path)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Selector:
    """A parsed `select:`; an empty one selects everything. Raises `SelectorError` for unknown keys and wrong values."""

    source: Mapping[str, Any] | Sequence[Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in _members(self.source):
            if not isinstance(part, Mapping):
                raise SelectorError(f"select takes a mapping with any of the keys {', '.join(KEYS)}, got {shown(part)}")
            for key, value in part.items():
                if key not in KEYS:
                    raise SelectorError(f"select has no key {shown(key)}: {did_you_mean(str(key), KEYS)}")
                _CHECKS[key](value)

    def select(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates that match; `layers` counts from the end over the layers present among all candidates."""
        candidates = list(candidates)
        count = max((i for c in candidates if (i := layer_index(c.path)) is not None), default=-1) + 1
        return [c for c in candidates if self.matches(c, count)]

    def matches(self, candidate: Candidate, layer_count: int = 0) -> bool:
        """True when `candidate`, of a model with `layer_count` layers, satisfies every key."""
        return _any_matches(self.source, candidate, layer_count)

    def __str__(self) -> str:
        return shortened(str(self.source)) if self.source else "everything"


def _members(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _any_matches(source: Any, candidate: Candidate, layer_count: int) -> bool:
    parts = _members(source)
    return not parts or any(_matches(part, candidate, layer_count) for part in parts)


def _matches(source: Mapping[str, Any], candidate: Candidate, layer_count: int) -> bool:
    tests = {
        "modules": lambda value: any(_path_matches(p, candidate.path) for p in _members(value)),
        "operators": lambda value: any(fnmatch.fnmatchcase(candidate.operator, p) for p in _members(value)),
        "shape": lambda value: _shape_matches(value, candidate.shape),
        "layers": lambda value: any(
            _layer_matches(p, layer_index(candidate.path), layer_count) for p in _members(value)
        ),
        "not": lambda value: not _any_matches(value, candidate, layer_count),
    }
    return all(tests[key](value) for key, value in source.items())


def _path_matches(pattern: str, path: str) -> bool:
    if pattern.startswith("re:"):
        return _expression(pattern).fullmatch(path) is not None
    return fnmatch.fnmatchcase(path, pattern)


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> Any:
    """The regular expression behind `re:`."""
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern.removeprefix("re:"), options)
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0].decode(errors="replace") if isinstance(error, re2.error) else "it is no Unicode text"
        hint = ": leave modules out with `not`" if "(?" in why else ""
        raise SelectorError(f"select.modules: {pattern!r} is not a regular expression of RE2: {why}{hint}") from None


def _layer_matches(pattern: Any, index: int | None, count: int) -> bool:
    if pattern == OUTSIDE:
        return index is None and count > 0
    if index is None:
        return False
    first, last = (n + count if n < 0 else n for n in _layer_range(pattern))
    return first <= index <= last


def _layer_range(pattern: Any) -> tuple[int, int]:
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        return pattern, pattern
    found = _RANGE.fullmatch(pattern) if isinstance(pattern, str) else None
    if not found:
        raise SelectorError(
            f"select.layers takes a number, a range such as 4..-4, or {OUTSIDE!r}, got {shown(pattern)}"
        )
    return int(found[1]), int(found[2] if found[2] is not None else found[1])


def _shape_matches(pattern: Sequence[Any], shape: tuple[int, ...]) -> bool:
    return len(pattern) == len(shape) and all(p in ("*", n) for p, n in zip(pattern, shape, strict=True))


def _check_modules(value: Any) -> None:
    for pattern in _members(value):
        _check_pattern(pattern, "select.modules takes globs or 're:...' strings")
        if pattern.startswith("re:"):
            _expression(pattern)


def _check_operators(value: Any) -> None:
    for pattern in _members(value):
        _check_pattern(pattern, "select.operators takes globs over operator kinds")


def _check_pattern(pattern: Any, what: str) -> None:
    if not isinstance(pattern, str):
        raise SelectorError(f"{what}, got {shown(pattern)}")
    if len(pattern) > MAX_CHARACTERS:
        raise SelectorError(f"{what} of at most {MAX_CHARACTERS} characters, got {len(pattern)}: {shown(pattern)}")


def _check_shape(value: Any) -> None:
    sizes = value if isinstance(value, list | tuple) else [None]
    if not all(size == "*" or (isinstance(size, int) and not isinstance(size, bool)) for size in sizes):
        raise SelectorError(f"select.shape takes a list such as ['*', 2048], got {shown(value)}")


def _check_layers(value: Any) -> None:
    for pattern in _members(value):
        if pattern == OUTSIDE:
            continue
        first, last = _layer_range(pattern)
        if last < first and (first < 0) == (last < 0):  # what counts from different ends depends on the model
            raise SelectorError(f"select.layers: {pattern!r} holds no layer: did you mean '{last}..{first}'?")


_CHECKS = {
    "modules": _check_modules,
    "operators": _check_operators,
    "shape": _check_shape,
    "layers": _check_layers,
    "not": Selector,
}
