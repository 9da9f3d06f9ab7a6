"""`lutra recipes`, `passes`, `targets`: what there is."""

import json
from dataclasses import MISSING, fields
from typing import Annotated

import typer

from ..passes.registry import available_passes, explained
from ..recipes.loading import library, load_recipe
from ..recipes.reading import parse_variables
from .app import Variables, app, print_indented, show, table


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="library name or path; all of the library when left out")] = None,
    var: Variables = None,
) -> None:
    """List the recipes of the library, or print one with everything that it extends and every default written out."""
    passes = available_passes()
    if name is not None:
        print(load_recipe(name, passes, vars=parse_variables(var or [])).to_yaml(), end="")
        return
    found = table("recipe", "passes", "description")
    for each in library():
        recipe = load_recipe(each, passes)
        names = dict.fromkeys(step.pass_.name for step in recipe.steps)
        found.add_row(each, ", ".join(names), recipe.description)
    show(found)


@app.command()
def passes() -> None:
    """List the passes that a recipe can name, and what each of their parameters means, with its default."""
    for name, cls in sorted(available_passes().loaded().items()):
        summary, meanings = explained(cls)
        print(f"{name} ({cls.kind})")
        print_indented(summary, 2)
        for field in fields(cls):
            default = "" if field.default is MISSING else f": {json.dumps(field.default, default=str)}"
            print_indented(field.name + default, 4)
            print_indented(meanings.get(field.name, "not explained"), 8)


@app.command()
def targets() -> None:
    """List the targets that code is generated for, and which of them this machine can run."""
    from ..codegen.targets.registry import TARGETS  # loads TVM, which no other command needs

    found = table("target", "this machine")
    for target in TARGETS.values():
        found.add_row(target.name, "yes" if target.available() else "no")
    show(found)
