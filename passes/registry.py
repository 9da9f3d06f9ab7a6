"""The passes that recipes can name: ours, those that `register_pass` was given, those of installed distributions (entry
points `lutra.passes`), and any other class as `module:Class`. A pass is imported when it is asked for."""

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args

from ..ir.errors import PassError, did_you_mean, shown
from .base import ALL_PHASES, Kind

BUILT_IN: Mapping[str, str] = {
    "fuse": f"{__package__}.fuse.fuse:Fuse",
    "given-weights": f"{__package__}.given_weights:GivenWeights",
    "quantize-weights": f"{__package__}.quantize_weights.quantize_weights:QuantizeWeights",
    "symmetrize-tables": f"{__package__}.symmetrize_tables:SymmetrizeTables",
}
logger = logging.getLogger("lutra")
_registered: dict[str, type] = {}
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
Class = TypeVar("Class", bound=type)


class Passes(Mapping[str, type]):
    """Pass name -> class, loaded when it is asked for, which raises `PassError`. Iteration gives names; `module:Class`
    is a key besides, for every class of any module.

    imports: whether `module:Class` may import a module, or only finds what is imported already."""

    def __init__(self, sources: Mapping[str, Callable[[], type]], imports: bool) -> None:
        self._sources = sources
        self._imports = imports

    def __getitem__(self, name: str) -> type:
        if name in self._sources:
            return self._sources[name]()
        if _PATH.fullmatch(name):
            return _load(name, self._imports)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._sources or _PATH.fullmatch(name) is not None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def loaded(self) -> dict[str, type]:
        """All that load, by name; the others are logged."""
        found: dict[str, type] = {}
        for name in self:
            try:
                found[name] = self[name]
            except PassError as error:
                logger.warning("pass %r is left out: %s", name, error)
        return found


def available_passes(imports: bool = True) -> Passes:
    """The passes of today. A distribution's that takes a name of ours, or of `register_pass`, is left out and logged.

    imports: False for recipes that came with data (packed models), which must not import modules by their name."""
    sources: dict[str, Callable[[], type]] = {name: partial(_load, path) for name, path in BUILT_IN.items()}
    sources |= {name: partial(_registered.__getitem__, name) for name in _registered}
    for entry in entry_points(group="lutra.passes"):
        if entry.name in sources:
            logger.warning("pass %r of %s is left out: the name is taken", entry.name, entry.value)
            continue
        sources[entry.name] = partial(_load, f"{entry.module}:{entry.attr}")
    return Passes(sources, imports)


def register_pass(cls: Class) -> Class:
    """Make the pass `cls` known under its `name` to every recipe of this process; returns it, as a decorator does.

    A pass is a frozen dataclass whose fields are its parameters (`passes/base.py`). A class of the same module and name
    takes the place of one before it: notebooks run a cell twice. Raises `PassError`."""
    where = f"{cls.__module__}:{cls.__qualname__}" if isinstance(cls, type) else shown(cls)
    name = _check(cls, where).name
    other = _registered.get(name)
    again = other is not None and (other.__module__, other.__qualname__) == (cls.__module__, cls.__qualname__)
    if name in BUILT_IN or (other is not None and not again):
        owner = BUILT_IN[name] if other is None else f"{other.__module__}:{other.__qualname__}"
        raise PassError(f"{where}: the name {name!r} is taken by {owner}: give it another")
    _registered[name] = cls
    return cls


def explained(cls: Any) -> tuple[str, dict[str, str]]:
    """What the pass `cls` does, and what each of its parameters means, as its docstring says: the text up to the first
    `parameter: `, and what follows each of these up to the next. What is not explained is left out."""
    text = " ".join((cls.__doc__ or "").split())
    names = "|".join(re.escape(field.name) for field in fields(cls))
    summary, *rest = re.split(rf"(?:^|(?<=\. ))({names}): ", text) if names else [text]
    return summary.strip(), dict(zip(rest[::2], map(str.strip, rest[1::2]), strict=True))


def _load(path: str, imports: bool = True) -> type:
    """The pass `module:Class`."""
    module_name, _, attributes = path.partition(":")
    if not imports and module_name not in sys.modules:
        raise PassError(f"{path}: what comes with data imports no module: import {module_name} first, if you trust it")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        what = "there is no such module" if f"{module_name}.".startswith(f"{missing}.") else f"it needs {missing}"
        raise PassError(f"{path}: module {module_name} cannot be imported: {what}") from error
    except (Exception, SystemExit) as error:  # whatever a foreign module raises
        raise PassError(f"{path}: module {module_name} cannot be imported: {type(error).__name__}: {error}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise PassError(f"{path}: there is no {attribute} in it: {did_you_mean(attribute, _classes(found))}")
        found = getattr(found, attribute)
    return _check(found, path)


def _classes(module: Any) -> list[str]:
    return [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]


def _check(cls: Any, where: str) -> Any:
    """`cls`; raises `PassError` unless it is a pass."""
    name, kind, phases = (getattr(cls, attribute, None) for attribute in ("name", "kind", "phases"))
    if not isinstance(cls, type) or not is_dataclass(cls) or not getattr(cls, "__dataclass_params__").frozen:  # noqa: B009
        problem = "a pass is a frozen dataclass, and this is none"
    elif not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        problem = f"its `name` is to be a ClassVar, a word like 'skip-layers', and is {shown(name)}"
    elif kind not in get_args(Kind):
        problem = f"its `kind` is to be one of {', '.join(get_args(Kind))}, and is {shown(kind)}"
    elif not isinstance(phases, tuple) or not phases or not set(phases) <= set(ALL_PHASES):
        problem = f"its `phases` are to be some of {', '.join(ALL_PHASES)}, and are {shown(phases)}"
    elif not callable(getattr(cls, "run", None)):
        problem = "it has no method run(graph, context)"
    else:
        return cls
    raise PassError(f"{where} is not a pass: {problem}")
