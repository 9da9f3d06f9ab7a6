"""Recipes as text and data, read within bounds: whoever wrote them may have meant harm.

What is larger, deeper or holds more than the limits below is a `RecipeError` before it costs memory or time. YAML's
aliases and merge keys count as what they stand for. Values are plain: text, whole numbers of 64 bits, finite numbers,
true, false, null, lists, and mappings whose keys are text.
"""

import math
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..ir.errors import RecipeError, did_you_mean, shortened, shown

MAX_BYTES = 1 << 20
"""Of a file or text."""
MAX_DEPTH = 32
"""Lists and mappings inside each other."""
MAX_VALUES = 20_000
"""Of a recipe, keys included."""
MAX_CHARACTERS = 128 * 1024
"""Of all texts, with variables put in."""

Place = tuple[str | int, ...]
"""Keys and indices from the top of a recipe to a value."""

_TOO_LARGE = f"is larger than {MAX_BYTES >> 10} KiB"
_TOO_DEEP = f"is nested more than {MAX_DEPTH} levels deep, or holds itself"
_TOO_MANY = f"holds more than {MAX_VALUES} values"
_LONGEST_NUMBER = 100
_TEXT_TAG = "tag:yaml.org,2002:str"
_VARIABLE = re.compile(r"\$\{(\w+)\}")

# libyaml's where PyYAML was built with it, as its wheels are: ten times as fast.
_FastestLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FastestLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, OverflowError, LookupError, AttributeError) as error:  # `0x_`, `!!bool 3`, `2024-13-45`
            what = f"{shown(node.value)} is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error


def read_text(path: Path) -> str:
    """The text of a recipe file; raises `RecipeError` for what is no regular file (a pipe or device might never end),
    too large or not UTF-8."""
    name = f"recipe file {shown(str(path))}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecipeError(f"{name} cannot be read: it is not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{name} cannot be read: {error}") from None  # a NUL in its name
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{name} {_TOO_LARGE}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError(f"{name} is not UTF-8 text") from None


def parse_yaml(text: str, label: str) -> tuple[Any, dict[Place, int]]:
    """The data of `text` and the line of every key and value; raises `RecipeError` that begins with `label:line`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RecipeError(f"{label} is not Unicode text: it holds half of a surrogate pair") from None
    if size > MAX_BYTES:
        raise RecipeError(f"{label} {_TOO_LARGE}")
    loader = None
    try:
        _check_size(text, label)
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, {}
        lines = _lines(root, label)
        return loader.construct_document(root), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        told = [told for each in ("context", "problem") if (told := getattr(error, each, None))]
        problem = ", ".join(told) or str(error).partition("\n")[0]
        if "nesting depth" in problem:  # libyaml has a limit of its own, and reads ahead
            raise RecipeError(f"{label}{line}: the text {_TOO_DEEP}") from None
        raise RecipeError(f"{label}{line}: not valid YAML: {shortened(problem)}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(text: str, label: str) -> None:
    """Depth and number of values, before anything recursive is done with them."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        values += isinstance(event, yaml.NodeEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH or values > MAX_VALUES:
            why = _TOO_DEEP if depth > MAX_DEPTH else _TOO_MANY
            raise RecipeError(f"{label}:{event.start_mark.line + 1}: the text {why}")


def _lines(root: yaml.Node, label: str) -> dict[Place, int]:
    lines: dict[Place, int] = {}
    values = 0

    def visit(node: yaml.Node, place: Place) -> None:
        nonlocal values
        values += 1
        line = lines.setdefault(place, node.start_mark.line + 1)
        if len(place) > MAX_DEPTH or values > MAX_VALUES:
            why = _TOO_DEEP if len(place) > MAX_DEPTH else _TOO_MANY
            raise RecipeError(f"{label}:{line}: the text, aliases worked in, {why}")
        if isinstance(node, yaml.ScalarNode):
            if node.tag != _TEXT_TAG and len(node.value) > _LONGEST_NUMBER:
                raise RecipeError(f"{label}:{line}: a number of {len(node.value)} characters")
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                visit(value, (*place, index))
        else:
            for key, value in node.value:
                line, inner = key.start_mark.line + 1, (*place, str(key.value))
                if not isinstance(key, yaml.ScalarNode):
                    raise RecipeError(f"{label}:{line}: a key is text, not a list or mapping")
                if inner in lines:
                    raise RecipeError(f"{label}:{line}: key {shown(key.value)} is given twice")
                lines[inner] = line
                visit(key, inner)
                visit(value, inner)

    visit(root, ())
    return lines


class Bounds:
    """Copies values to plain ones and counts them: the limits hold for everything that one object copied."""

    def __init__(self) -> None:
        self._values = self._characters = 0

    def copy(
        self, value: Any, where: Callable[[Place], str], place: Place = (), variables: Mapping[str, Any] | None = None
    ) -> Any:
        """`value` with `variables` put in for `${name}`; a text that is nothing but one variable takes its type.

        `where` names a place below which `value` stands at `place`. Raises `RecipeError`."""
        self._values += 1
        if len(place) > MAX_DEPTH or self._values > MAX_VALUES:
            raise RecipeError(f"{where(place)}: this {_TOO_DEEP if len(place) > MAX_DEPTH else _TOO_MANY}")
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value, where, place, variables)
            case int() if -(2**63) <= value < 2**63:
                return int(value)
            case float() if math.isfinite(value):
                return float(value)
            case int() | float():
                raise RecipeError(f"{where(place)}: {shown(value)} is no finite number of 64 bits")
            case Mapping():
                return {
                    self._key(key, where, place): self.copy(item, where, (*place, key), variables)
                    for key, item in value.items()
                }
            case list() | tuple():
                return [self.copy(item, where, (*place, index), variables) for index, item in enumerate(value)]
        raise RecipeError(
            f"{where(place)}: {shown(value)} is of type {type(value).__name__}: a recipe holds text (in quotes where "
            f"it looks like something else), numbers, true, false, null, lists and mappings"
        )

    def _key(self, key: Any, where: Callable[[Place], str], place: Place) -> str:
        if not isinstance(key, str):
            raise RecipeError(f"{where(place)}: key {shown(key)} is no text: quote it")
        self._values += 1
        return self._plain(key, where, place)

    def _text(self, text: str, where: Callable[[Place], str], place: Place, variables: Mapping[str, Any] | None) -> Any:
        if variables is None:
            return self._plain(text, where, place)

        def value_of(name: str) -> Any:
            if name not in variables:
                raise RecipeError(f"{where(place)}: variable {name!r} has no value: {did_you_mean(name, variables)}")
            return variables[name]

        whole = _VARIABLE.fullmatch(text)
        if whole:
            return self.copy(value_of(whole[1]), where, place)
        parts = _VARIABLE.split(text)  # what stands between variables, and their names in turns
        return "".join(
            self._plain(str(value_of(part)) if index % 2 else part, where, place) for index, part in enumerate(parts)
        )

    def _plain(self, text: str, where: Callable[[Place], str], place: Place) -> str:
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise RecipeError(f"{where(place)}: with this, texts have more than {MAX_CHARACTERS} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise RecipeError(f"{where(place)}: {shown(text)} is not Unicode text") from None
        return str.__str__(text)


def parse_variables(pairs: Iterable[str]) -> dict[str, Any]:
    """NAME=VALUE of a command line, the value as in YAML; raises `RecipeError`."""
    variables = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise RecipeError(f"--var takes NAME=VALUE, got {shown(pair)}")
        label = f"variable {shown(name)}"
        variables[name] = Bounds().copy(parse_yaml(value, label)[0], lambda place, label=label: label)
    return variables
