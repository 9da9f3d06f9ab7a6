"""From a name, a path, YAML text, a mapping or a `Recipe` to a `ResolvedRecipe`.

Every error names file, line and what would be right.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import PydanticUndefinedAnnotation, PydanticUserError, ValidationError

from ..ir.errors import LutraError, RecipeError, did_you_mean, shortened, shown
from . import selectors
from .conditions import Condition
from .reading import Bounds, Place, parse_yaml, read_text
from .schema import CommonKeys, Recipe, ResolvedRecipe, Step, parameters

MAX_PASSES = 1000
MAX_PARENTS = 10

_TOP = tuple(info.alias or name for name, info in Recipe.model_fields.items())
_COMMON = tuple(CommonKeys.model_fields)
_SUFFIXES = (".yaml", ".yml")
_TOLD_AT_ONCE = 8

RecipeSource = str | Path | Mapping[str, Any] | Recipe
Passes = Mapping[str, type]


@dataclass
class _Document:
    """Plain data and where each part of it stands. `path`: of the file that it is from."""

    data: Any
    label: str
    path: Path | None = None
    lines: dict[Place, int] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        while place and place not in self.lines:
            place = place[:-1]
        return f"{self.label}:{self.lines[place]}" if place in self.lines else self.label


def library() -> dict[str, Path]:
    """Recipes that ship with Lutra: name -> file."""
    folder = Path(str(resources.files(f"{__package__}.library")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(source: RecipeSource, passes: Passes, vars: Mapping[str, Any] | None = None) -> ResolvedRecipe:
    """Load and validate, within the limits of `reading.py`, at most `MAX_PARENTS` recipes that extend each other and
    `MAX_PASSES` entries in all.

    `passes`: pass name -> frozen dataclass whose fields are its parameters, taken as they are written ("4" is no
    number, true is none either); `vars` override the recipe's. Raises `RecipeError`."""
    recipe, document, entries = _with_parents(source, passes, ())
    if len(entries) > MAX_PASSES:
        raise RecipeError(
            f"{document.label}: with what it extends it has {len(entries)} passes, at most {MAX_PASSES} run"
        )
    if not isinstance(vars or {}, Mapping):
        raise RecipeError(f"vars are a mapping of names to values, got {shown(vars)}")
    given = Bounds().copy(vars or {}, lambda place: ".".join(["vars", *map(str, place)]))
    for name in given:
        if name not in recipe.vars:
            raise RecipeError(
                f"{document.label}: there is no variable {shown(name)}: {did_you_mean(name, recipe.vars)}"
            )
    bounds, values = Bounds(), {**recipe.vars, **given}
    steps = tuple(_step(doc, index, entry, values, passes, bounds) for doc, index, entry in entries)
    Bounds().copy([step.to_data() for step in steps], lambda _: f"{document.label}, every default written out")
    return ResolvedRecipe(recipe.name, recipe.description, steps)


def _with_parents(
    source: RecipeSource, passes: Passes, children: tuple[_Document, ...]
) -> tuple[Recipe, _Document, list[tuple[_Document, int, Any]]]:
    """The recipe with the variables of its parents, and all entries, parents' first."""
    document = _document(source)
    for child in children:
        if document.path is not None and child.path is not None and document.path.resolve() == child.path.resolve():
            names = " -> ".join(each.label for each in (*children, document))
            raise RecipeError(f"{document.label}: extends itself through {names}")
    if len(children) > MAX_PARENTS:
        raise RecipeError(f"more than {MAX_PARENTS} recipes extend each other")
    recipe = _validate(document, passes)
    entries = [(document, index, entry) for index, entry in enumerate(recipe.passes)]
    if recipe.extends is None:
        return recipe, document, entries
    base = (document.path.parent if document.path else Path()) / recipe.extends
    parent_source: RecipeSource = base if base.suffix in _SUFFIXES and os.path.lexists(base) else recipe.extends
    try:
        parent, _, inherited = _with_parents(parent_source, passes, (*children, document))
    except RecipeError as error:
        raise RecipeError(f"{document.where(('extends',))}: extends {shown(recipe.extends)}: {error}") from None
    return recipe.model_copy(update={"vars": {**parent.vars, **recipe.vars}}), document, inherited + entries


def _document(source: RecipeSource) -> _Document:
    if isinstance(source, Recipe):
        given = vars(source)  # what `model_construct` was given is not validated
        data = {info.alias or name: given.get(name) for name, info in Recipe.model_fields.items()}
        return _plain(data, f"recipe {shown(given.get('name'))}")
    if isinstance(source, Mapping):
        return _plain(source, "recipe")
    if not isinstance(source, str | Path):
        raise RecipeError(f"a recipe is a name, a path, YAML text, a mapping or a Recipe, got {shown(source)}")
    if isinstance(source, str) and ("\n" in source or source.lstrip().startswith("{")):
        return _parsed(source, "recipe text")
    path = Path(source)
    if isinstance(source, str) and source in library():
        path = library()[source]
    elif path.suffix not in _SUFFIXES and not os.path.isfile(path):  # Path.is_file raises on names that are too long
        name = str(source)
        raise RecipeError(f"there is no recipe {shown(name)} in the library: {did_you_mean(name, library())}")
    return _parsed(read_text(path), str(path), path)


def _parsed(text: str, label: str, path: Path | None = None) -> _Document:
    data, lines = parse_yaml(text, label)
    return _plain(data, label, path, lines)


def _plain(data: Any, label: str, path: Path | None = None, lines: dict[Place, int] | None = None) -> _Document:
    document = _Document(None, label, path, lines or {})
    document.data = Bounds().copy(data, document.where)
    return document


def _validate(document: _Document, passes: Passes) -> Recipe:
    if not isinstance(document.data, Mapping):
        raise RecipeError(f"{document.label}: a recipe is a mapping with the keys lutra, name and passes")
    try:
        return Recipe.model_validate(document.data)
    except ValidationError as error:
        raise RecipeError(_explain(error, document, (), _TOP, passes)) from None


def _explain(error: ValidationError, document: _Document, prefix: Place, known: Collection[str], passes: Passes) -> str:
    """One line per problem, with its place and, for a key that does not belong there, where it does or the nearest
    that would."""
    problems = error.errors()
    messages = []
    for problem in problems[:_TOLD_AT_ONCE]:
        place = (*prefix, *problem["loc"])
        match place:
            case ("passes", int(), str(key)) if key not in passes:  # not indented enough
                message = f"there is no pass {shown(key)}: {_belongs(key, passes, passes)}"
            case (*above, key) if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                inside = len(above) > len(prefix)
                hint = f"{above[-1]} takes no such key" if inside else _belongs(str(key), known, passes)
                message = f"unknown key {shown(key)}: {hint}"
            case _:
                dotted = ".".join(str(part) for part in problem["loc"])
                got = "" if problem["type"] == "missing" else f" (got {shown(problem['input'])})"
                message = f"{dotted}: {problem['msg']}{got}"
        messages.append(f"{document.where(place)}: {message}")
    if len(problems) > _TOLD_AT_ONCE:
        messages.append(f"and {len(problems) - _TOLD_AT_ONCE} more")
    return "\n".join(messages)


def _belongs(key: str, known: Collection[str], passes: Passes) -> str:
    """Where `key` would be right: a key of another level, or the nearest of `known`."""
    owners = [name for name in passes if key in _parameters_of(name, passes)]
    if key in _TOP:
        return "it belongs to the top of the recipe"
    if key in passes:
        return "it is a pass: make it an entry of passes"
    if owners:
        return f"it is a parameter of {', '.join(owners)}: put it under the name of the pass"
    if key in _COMMON:
        return "it is a key of every pass: put it under the name of one"
    if key in selectors.KEYS:
        return "it is a key of selectors: put it under select"
    return did_you_mean(key, known)


def _parameters_of(name: str, passes: Passes) -> set[str]:
    """None for a pass that does not load: that is not what is being told."""
    try:
        return {field.name for field in fields(passes[name])}
    except LutraError:
        return set()


def _step(
    document: _Document, index: int, entry: Mapping[str, Any], values: Mapping[str, Any], passes: Passes, bounds: Bounds
) -> Step:
    where: Place = ("passes", index)
    if len(entry) != 1:
        stray = next((key for key in entry if key not in passes), None)
        hint = "" if stray is None else f"; {shown(stray)}: {_belongs(stray, passes, passes)}"
        names = shortened(", ".join(entry)) or "none"
        raise RecipeError(f"{document.where(where)}: an entry names one pass, got {names}{hint}")
    (name, body), *_ = entry.items()
    where = (*where, name)
    origin = document.where(where)
    if name not in passes:
        raise RecipeError(f"{origin}: there is no pass {shown(name)}: {_belongs(name, passes, passes)}")
    try:
        cls = passes[name]
        schema = parameters(cls)
    except LutraError as error:
        raise RecipeError(f"{origin}: {error}") from None
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        raise RecipeError(f"{origin}: pass {name!r}: a recipe cannot give its parameters: {error}") from None
    body = bounds.copy(body or {}, lambda place: document.where((*where, *place)), variables=values)
    common = {key: body.pop(key) for key in _COMMON if key in body}
    known = [*(f.name for f in fields(cls)), *_COMMON]
    for key in body:
        if key not in known:
            hint = _belongs(key, known, passes)
            raise RecipeError(f"{document.where((*where, key))}: pass {name!r} has no parameter {shown(key)}: {hint}")
    part: Place = ()
    try:
        keys = CommonKeys.model_validate(common)
        instance = schema.validate_json(json.dumps(body), strict=True)  # Python's lists are no tuples
        part = ("select",)
        selector = selectors.Selector(keys.select or {})
        part = ("when",)
        when = Condition.parse(keys.when) if keys.when is not None else None
    except ValidationError as error:
        raise RecipeError(_explain(error, document, where, known, passes)) from None
    except LutraError as error:
        raise RecipeError(f"{document.where((*where, *part))}: pass {name!r}: {error}") from None
    phases = tuple(keys.phase) if isinstance(keys.phase, list) else (keys.phase,) if keys.phase else ()
    return Step(name, instance, selector, phases, when, keys.allow_empty, origin)
