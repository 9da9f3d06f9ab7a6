"""From a name, a path, YAML text, a mapping or a `Recipe` to a `ResolvedRecipe`.

Every error names file, line and what would be right.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..ir.errors import LutraError, RecipeError, did_you_mean
from .conditions import Condition
from .schema import CommonKeys, Recipe, ResolvedRecipe, Step
from .selectors import Selector

_COMMON = tuple(CommonKeys.model_fields)
_SUFFIXES = (".yaml", ".yml")
_VARIABLE = re.compile(r"\$\{(\w+)\}")

RecipeSource = str | Path | Mapping[str, Any] | Recipe


@dataclass
class _Document:
    """Parsed data and where each part of it stands."""

    data: Any
    label: str
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Equal for two ways to spell the same file."""
        return str(Path(self.label).resolve()) if Path(self.label).suffix in _SUFFIXES else self.label

    def where(self, path: tuple[str | int, ...]) -> str:
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.label}:{self.lines[path]}" if path in self.lines else self.label


def library() -> dict[str, Path]:
    """Recipes that ship with Lutra: name -> file."""
    folder = Path(str(resources.files(f"{__package__}.library")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(
    source: RecipeSource, passes: Mapping[str, type], vars: Mapping[str, Any] | None = None
) -> ResolvedRecipe:
    """Load and validate.

    `passes`: pass name -> frozen dataclass whose fields are its parameters; `vars` override the recipe's.
    Raises `RecipeError`."""
    recipe, document, entries = _with_parents(source, ())
    values = {**recipe.vars, **(vars or {})}
    for name in vars or {}:
        if name not in recipe.vars:
            raise RecipeError(f"{document.label}: there is no variable {name!r}: {did_you_mean(name, recipe.vars)}")
    steps = tuple(_step(doc, path, entry, values, passes) for doc, path, entry in entries)
    return ResolvedRecipe(recipe.name, recipe.description, steps)


def _with_parents(
    source: RecipeSource, seen: tuple[str, ...]
) -> tuple[Recipe, _Document, list[tuple[_Document, int, Any]]]:
    """The recipe with the variables of its parents, and all entries, parents' first."""
    document = _document(source)
    if document.identity in seen:
        raise RecipeError(f"{document.label}: extends itself through {' -> '.join(seen)}")
    recipe = source if isinstance(source, Recipe) else _validate(document)
    entries = [(document, index, entry) for index, entry in enumerate(recipe.passes)]
    if recipe.extends is None:
        return recipe, document, entries
    base = Path(document.label).parent / recipe.extends
    parent_source: RecipeSource = base if base.suffix in _SUFFIXES and base.is_file() else recipe.extends
    try:
        parent, _, inherited = _with_parents(parent_source, (*seen, document.identity))
    except RecipeError as error:
        raise RecipeError(f"{document.where(('extends',))}: extends {recipe.extends!r}: {error}") from None
    return recipe.model_copy(update={"vars": {**parent.vars, **recipe.vars}}), document, inherited + entries


def _document(source: RecipeSource) -> _Document:
    if isinstance(source, Recipe):
        return _Document(source.model_dump(by_alias=True), f"recipe {source.name!r}")
    if isinstance(source, Mapping):
        return _Document(dict(source), "recipe")
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        return _parse(source, "recipe text")
    path = Path(source)
    if isinstance(source, str) and source in library():
        path = library()[source]
    elif path.suffix not in _SUFFIXES and not os.path.isfile(path):  # Path.is_file raises on names that are too long
        raise RecipeError(f"there is no recipe {str(source)!r} in the library: {did_you_mean(str(source), library())}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe file {str(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"recipe file {str(path)!r} is not UTF-8 text") from None
    return _parse(text, str(path))


def _parse(text: str, label: str) -> _Document:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{label}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None
    document = _Document(data, label)
    if root is not None:
        _record_lines(root, (), document)
    return document


def _record_lines(node: yaml.Node, path: tuple[str | int, ...], document: _Document) -> None:
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line, place = key.start_mark.line + 1, (*path, key.value)
            if place in document.lines:
                raise RecipeError(f"{document.label}:{line}: key {key.value!r} is given twice")
            document.lines[place] = line
            _record_lines(value, place, document)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _record_lines(value, (*path, index), document)


def _validate(document: _Document) -> Recipe:
    if not isinstance(document.data, Mapping):
        raise RecipeError(f"{document.label}: a recipe is a mapping with the keys lutra, name and passes")
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(
            _explain(error, document, (), [f.alias or n for n, f in Recipe.model_fields.items()])
        ) from None


def _explain(error: ValidationError, document: _Document, prefix: tuple[str | int, ...], known: list[str]) -> str:
    """One line per problem, with its place and, for an unknown key, the nearest valid one."""
    messages = []
    for problem in error.errors():
        path = (*prefix, *problem["loc"])
        key = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            messages.append(f"{document.where(path)}: unknown key {key!r}: {did_you_mean(key, known)}")
        else:
            dotted = ".".join(str(part) for part in problem["loc"])
            got = "" if problem["type"] == "missing" else f" (got {problem['input']!r})"
            messages.append(f"{document.where(path)}: {dotted}: {problem['msg']}{got}")
    return "\n".join(messages)


def _step(
    document: _Document, index: int, entry: Mapping[str, Any], values: Mapping[str, Any], passes: Mapping[str, type]
) -> Step:
    where: tuple[str | int, ...] = ("passes", index)
    if len(entry) != 1:
        raise RecipeError(f"{document.where(where)}: an entry names one pass, got {', '.join(entry) or 'none'}")
    (name, body), *_ = entry.items()
    origin = document.where((*where, name))
    if name not in passes:
        raise RecipeError(f"{origin}: there is no pass {name!r}: {did_you_mean(name, passes)}")
    body = _substitute(dict(body or {}), values, origin)
    common = {key: body.pop(key) for key in _COMMON if key in body}
    known = [*(f.name for f in fields(passes[name])), *_COMMON]
    for key in body:
        if key not in known:
            place = document.where((*where, name, key))
            raise RecipeError(f"{place}: pass {name!r} has no parameter {key!r}: {did_you_mean(str(key), known)}")
    part: tuple[str, ...] = ()
    try:
        keys = CommonKeys.model_validate(common)
        instance = TypeAdapter(passes[name]).validate_python(body)
        part = ("select",)
        selector = Selector(keys.select or {})
        part = ("when",)
        when = Condition.parse(keys.when) if keys.when is not None else None
    except ValidationError as error:
        raise RecipeError(_explain(error, document, (*where, name), known)) from None
    except LutraError as error:
        raise RecipeError(f"{document.where((*where, name, *part))}: pass {name!r}: {error}") from None
    phases = tuple(keys.phase) if isinstance(keys.phase, list) else (keys.phase,) if keys.phase else ()
    return Step(instance, selector, phases, when, keys.allow_empty, origin)


def _substitute(value: Any, variables: Mapping[str, Any], origin: str) -> Any:
    """Replace `${name}`; a scalar that is nothing but one variable takes its type."""
    if isinstance(value, Mapping):
        return {key: _substitute(item, variables, origin) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, variables, origin) for item in value]
    if not isinstance(value, str):
        return value

    def lookup(name: str) -> Any:
        if name not in variables:
            raise RecipeError(f"{origin}: variable {name!r} has no value: {did_you_mean(name, variables)}")
        return variables[name]

    whole = _VARIABLE.fullmatch(value)
    return lookup(whole[1]) if whole else _VARIABLE.sub(lambda found: str(lookup(found[1])), value)
