"""`lutra.json` of a packed folder: what may stand in it, and the reading of one that somebody else wrote.

Everything in it is data: each value is of a known set or within bounds that the folder's own files give, before
anything is made of it.
"""

import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...codegen.select import Family
from ...codegen.targets.registry import TARGETS
from ...ir.errors import LutraError, PackedModelError, QuantizationError, did_you_mean
from ...ir.weights.formats import Scheme, WeightFormat
from ...passes.fuse.merging import names_in
from ...passes.registry import available_passes
from ...recipes.loading import load_recipe
from .stored_files import FileName, StoredFile, read_small

MANIFEST, PACKED, PLAIN, CONFIG = "lutra.json", "packed.safetensors", "plain.safetensors", "config.json"
GENERATION_CONFIG = "generation_config.json"
_MOST_BYTES = 1 << 25
"""Of a manifest: some 60,000 tensors."""

_Name = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^\P{C}+$")]
"""A tensor, symbol or rule: no control characters, which a message would print."""
_Size = Annotated[int, Field(ge=0, lt=1 << 48)]
_Float = Literal["float64", "float32", "float16", "bfloat16"]
_Other = Literal["float8_e4m3fn", "float8_e5m2", "complex64", "bool"]
_Integer = Literal["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StoredTensor(_Part):
    """A parameter or buffer: `symbol` in the graphs, and whether its values are in the plain file, rows of a derived
    tensor there (`rows_of`, from `first_row`), or packed only."""

    symbol: _Name | None
    shape: Annotated[list[_Size], Field(max_length=64)]
    dtype: Literal[_Float, _Other, _Integer]
    where: Literal["plain", "rows", "packed"]
    rows_of: str = ""
    first_row: _Size = 0

    @model_validator(mode="after")
    def _is_consistent(self) -> "StoredTensor":
        if math.prod(self.shape) >= 1 << 48:
            raise ValueError(f"shape {self.shape} has more elements than any memory")
        if self.where != "plain" and self.symbol is None:
            raise ValueError(f"where = {self.where!r} needs a symbol")
        if (self.where == "rows") != bool(self.rows_of) or (self.first_row and not self.rows_of):
            raise ValueError("rows_of and first_row go with where = 'rows', and with nothing else")
        if self.where == "rows" and not self.shape:
            raise ValueError("a number has no rows")
        return self

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` of torch."""
        return getattr(torch, self.dtype)


def _known_target(name: str) -> str:
    if name not in TARGETS:
        raise ValueError(f"target {name!r} is unknown: {did_you_mean(name, TARGETS)}")
    return name


def _known_format(value: tuple[int, int, Scheme]) -> tuple[int, int, Scheme]:
    try:
        WeightFormat(*value)
    except QuantizationError as error:
        raise ValueError(str(error)) from None
    return value


def _whole_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    if recipe.get("extends") is not None:  # it would be read from wherever that points to
        raise ValueError("a packed recipe is whole: it extends no other")
    try:
        load_recipe(recipe, available_passes(imports=False))
    except (LutraError, RecursionError, ValueError) as error:
        raise ValueError(str(error)) from None
    return recipe


_Choice = tuple[_Name, _Name, _Name, Annotated[tuple[int, int, Scheme], AfterValidator(_known_format)]]


class Manifest(_Part):
    """`lutra`: the version; 3 has a choice for each weight, 2 had one for weights that were merged. `choices`: rule,
    tensor, quantised form and its format (bits, group size, scheme), which passes keep to. `model`: the class of
    Transformers, or "" for another module. `files`: all others of the folder. `checksum`: of all this."""

    lutra: Literal[2, 3]
    model: Annotated[str, Field(pattern=r"^([A-Z][A-Za-z0-9_]{0,199})?$")]
    dtype: _Float
    recipe: Annotated[dict[str, Any], AfterValidator(_whole_recipe)]
    target: Annotated[str, AfterValidator(_known_target)]
    kernel_family: Literal["auto", Family]
    tensors: dict[_Name, StoredTensor]
    choices: list[_Choice]
    files: dict[FileName, StoredFile]
    checksum: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _has_its_files(self) -> "Manifest":
        needed = [PACKED, PLAIN, *([CONFIG] if self.model else [])]
        if missing := [name for name in needed if name not in self.files]:
            raise ValueError(f"files lacks {', '.join(missing)}")
        return self

    def choices_by_weight(self) -> Iterator[_Choice]:
        """The choices as passes know them, whatever the version."""
        own = {tensor.symbol for tensor in self.tensors.values()}
        for rule, symbol, name, format in self.choices:
            merged = self.lutra == 2 and symbol not in own and name.startswith(symbol)
            for part in (names_in(symbol) if merged else ()) or (symbol,):
                yield rule, part, part + name[len(symbol) :] if merged else name, format

    def write(self, folder: Path) -> None:
        """Write `lutra.json`, with its checksum."""
        text = self.model_copy(update={"checksum": self._sum()}).model_dump_json(indent=1) + "\n"
        if len(text) > _MOST_BYTES:
            raise PackedModelError(f"{folder}: {MANIFEST} would take {len(text)} bytes: {_MOST_BYTES} can be read")
        (folder / MANIFEST).write_text(text, encoding="utf-8")

    def _sum(self) -> int:
        return zlib.crc32(json.dumps(self.model_dump(mode="json", exclude={"checksum"}), sort_keys=True).encode())

    @property
    def is_whole(self) -> bool:
        """True when nothing was changed since it was written."""
        return self.checksum == self._sum()


def is_packed(folder: Path | str) -> bool:
    """True when `folder` holds what `pack` wrote."""
    return os.path.exists(Path(folder) / MANIFEST)  # also what is no file: reading it says so


def first_problem(error: ValidationError) -> str:
    """Field and message of the first problem."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")]))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`; raises `PackedModelError`."""
    path = folder / MANIFEST
    if not is_packed(folder):
        raise PackedModelError(
            f"{folder} holds no packed model ({MANIFEST} is missing): write one with `lutra pack MODEL -o {folder}`"
        )
    try:
        manifest = Manifest.model_validate_json(read_small(path, _MOST_BYTES))
    except ValidationError as error:
        raise PackedModelError(f"{path}: {first_problem(error)}: pack the model again") from None
    if not manifest.is_whole:
        raise PackedModelError(f"{path} was changed since it was written (its checksum differs): pack the model again")
    return manifest
