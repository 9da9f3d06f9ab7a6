"""`options=` of `torch.compile`, validated: every error says what would be right."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from ..ir.errors import OptionError, did_you_mean, shown
from ..passes.calibration import Calibration
from ..recipes.reading import Bounds, Place
from ..recipes.schema import Recipe

_BESIDE_WEIGHTS = ("strict", "dump", "training_backend", "cache", "cache_dir", "progress")
"""What does not change how weights are packed."""
_ENVIRONMENT = {"dump": "LUTRA_DUMP", "cache_dir": "LUTRA_CACHE_DIR"}
"""What stands in for an option that is not given."""


def _named(value: Any) -> Any:
    """Not the working directory for want of a name."""
    if isinstance(value, str | Path) and (not str(value) or "\0" in str(value)):
        raise ValueError("it names no folder; leave it out for the default, or give '.' for the working directory")
    return value


Folder = Annotated[Path, BeforeValidator(_named)]


class Options(BaseModel):
    """Options of the lutra backend."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    recipe: str | Path | dict[str, Any] | Recipe = Field(
        "none", description="library name, path, YAML text, dict or Recipe"
    )
    vars: dict[str, Any] = Field({}, description="overrides of the recipe's variables")
    calibration: Calibration | None = Field(
        None, exclude=True, description="what lutra.calibrate returned, for passes that need it"
    )
    strict: StrictBool = Field(False, description="what cannot be compiled, or not as the recipe says, is an error")
    dump: Folder | None = Field(
        None, description="folder for FX, MLIR after each pass, Relax and TIR (also LUTRA_DUMP)"
    )
    release_weights: StrictBool = Field(False, description="free originals that every graph reads in packed form")
    training_backend: str = Field("inductor", description="torch.compile backend for graphs that need gradients")
    target: str = Field("auto", description="auto, amx, avx512, avx2, neon or portable")
    kernel_family: Literal["auto", "lookup", "triples", "dot"] = Field("auto", description="kernels of low-bit linears")
    cache: StrictBool = Field(True, description="keep compiled executables on disk")
    cache_dir: Folder | None = Field(None, description="where (also LUTRA_CACHE_DIR); default ~/.cache/lutra")
    progress: StrictBool | None = Field(None, description="progress bars on stderr; default: where it is a terminal")

    @field_validator("recipe", "vars", "target", "training_backend")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Raises `RecipeError` for what no recipe may hold."""

        def where(place: Place) -> str:
            return ".".join(map(str, (info.field_name, *place)))

        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("Input should be Unicode text") from None
        if isinstance(value, Recipe):
            Bounds().copy(vars(value), where)
            return value
        return Bounds().copy(value, where) if isinstance(value, dict) else value

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> "Options":
        """Validate; raises `OptionError` naming the option and the nearest valid name or value."""
        known = list(cls.model_fields)
        for name in options:
            if name not in known:
                raise OptionError(f"lutra has no option {shown(name)}: {did_you_mean(str(name), known)}")
        given = dict(options)
        origins: dict[str, str] = {}
        for name, variable in _ENVIRONMENT.items():
            if given.get(name) is None and variable in os.environ:
                given[name], origins[name] = os.environ[variable], variable
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            problems = {str(p["loc"][0]): p for p in error.errors()}
            lines = (
                f"{origins.get(name, f'option {name!r}')} is {shown(given[name])}: "
                f"{problem['msg'].removeprefix('Value error, ')} ({cls.model_fields[name].description})"
                for name, problem in problems.items()
            )
            raise OptionError("; ".join(lines)) from None

    def cache_directory(self) -> Path:
        """Where executables are kept: the option, or the user's cache folder; raises `OptionError` when there is no
        home folder."""
        try:
            if self.cache_dir is not None:
                return self.cache_dir.expanduser()
            caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
            return (caches if caches.is_absolute() else Path.home() / ".cache") / "lutra"
        except RuntimeError:
            raise OptionError(
                f"no cache folder: there is no home folder for {str(self.cache_dir or '~')!r}; give the option "
                "'cache_dir' or LUTRA_CACHE_DIR in full"
            ) from None

    def fingerprint(self) -> str:
        """Equal for options that give the same weights: graphs of one model compiled under it share them packed."""
        data = self.model_dump(mode="json", exclude=set(_BESIDE_WEIGHTS)) | {"calibration": repr(self.calibration)}
        return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
