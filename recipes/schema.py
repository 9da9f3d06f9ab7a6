"""What a recipe file may contain (`lutra: 1`), as pydantic models, and what it resolves to."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from ..ir.errors import RecipeError
from .conditions import Condition
from .selectors import Selector

Phase = Literal["prefill", "decode", "encode"]


def _whole(value: Any) -> Any:
    if type(value) is not int:  # True and 1.0 equal 1
        raise PydanticCustomError("literal_error", "Input should be 1")
    return value


class Recipe(BaseModel):
    """A recipe as written. `passes`: a list of `pass-name: {parameters and common keys}`, run in this order."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, strict=True)

    version: Annotated[Literal[1], BeforeValidator(_whole)] = Field(alias="lutra")
    name: str
    description: str = ""
    extends: str | None = None
    vars: dict[str, Any] = {}
    passes: list[dict[str, dict[str, Any] | None]] = []


class CommonKeys(BaseModel):
    """Keys that every pass entry accepts beside the parameters of its pass."""

    model_config = ConfigDict(extra="forbid", strict=True)

    select: dict[str, Any] | list[dict[str, Any]] | None = None
    phase: Phase | list[Phase] | None = None
    when: str | None = None
    allow_empty: bool = False


@cache
def parameters(pass_type: type) -> TypeAdapter[Any]:
    """What validates the parameters of a pass and writes them out."""
    return TypeAdapter(pass_type)


@dataclass(frozen=True)
class Step:
    """One scheduled pass. `name`: what the recipe calls it. `origin` says where it was written (`w4.yaml:7`)."""

    name: str
    pass_: Any
    selector: Selector
    phases: tuple[Phase, ...]
    when: Condition | None
    allow_empty: bool
    origin: str

    def applies(self, facts: Mapping[str, int]) -> bool:
        """True when its condition, if it has one, holds; raises `RecipeError` for a division by zero."""
        try:
            return self.when is None or self.when.holds(facts)
        except RecipeError as error:
            raise RecipeError(f"{self.origin}: {error}") from None

    def to_data(self) -> dict[str, Any]:
        """The entry in recipe form, every default written out."""
        body = parameters(type(self.pass_)).dump_python(self.pass_, mode="json")
        if self.selector.source:
            body["select"] = self.selector.source
        if self.phases:
            body["phase"] = list(self.phases)
        if self.when is not None:
            body["when"] = self.when.text
        if self.allow_empty:
            body["allow_empty"] = True
        return {self.name: body}


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with `extends` and `vars` worked in and every pass validated: what a compilation runs."""

    name: str
    description: str
    steps: tuple[Step, ...]

    def to_yaml(self) -> str:
        """Text that loads to the same steps; saved with whatever is made from the recipe."""
        data = {
            "lutra": 1,
            "name": self.name,
            "description": self.description,
            "passes": [step.to_data() for step in self.steps],
        }
        return yaml.safe_dump(data, sort_keys=False)

    def fingerprint(self) -> str:
        """Hash of what the recipe does, independent of names, comments and defaults left out."""
        steps = json.dumps([step.to_data() for step in self.steps], sort_keys=True)
        return hashlib.sha256(steps.encode()).hexdigest()[:16]
