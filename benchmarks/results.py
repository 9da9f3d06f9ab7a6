"""Stored results of benchmarks: one JSON file a run, from which `benchmarks/figures.py` makes every table and plot.

A benchmark's `--save FILE` writes one. What it ran on is looked up, so that no figure is ever typed.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import typer
from lutra.codegen.targets.registry import get_target
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "benchmarks" / "results"
_CPUINFO = Path("/proc/cpuinfo")

Cell = str | int | float | None
"""None: not measured."""
SaveOption = Annotated[Path | None, typer.Option("--save", help="write the result there, for `make figures`")]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Stored):
    """processor: its name. cores: those that the system shows. instruction_set: a target of lutra ("avx2")."""

    processor: str = Field(min_length=1)
    cores: int = Field(gt=0)
    instruction_set: str = Field(min_length=1)

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.instruction_set}"


class Column(_Stored):
    """unit: "" for names and ratios. digits: how many are printed after the point."""

    name: str = Field(min_length=1)
    unit: str = ""
    digits: int = Field(default=0, ge=0)

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def text(self, cell: Cell) -> str:
        """`cell` as it is printed."""
        if cell is None:
            return ""
        return cell if isinstance(cell, str) else f"{cell:.{self.digits}f}"


class Run(_Stored):
    """One run of a benchmark.

    machine, date, commit, command: None where nobody wrote them down. setting: what all rows share, units in the names.
    rows: cells by column; the first column is a name."""

    benchmark: Literal["peers", "decode", "packed", "cost", "quality", "recipes", "sentences", "demo"]
    machine: Machine | None
    date: date | None
    commit: str | None
    command: str | None
    setting: dict[str, str | bool | int | float]
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[tuple[Cell, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rectangular(self) -> "Run":
        for row in self.rows:
            if len(row) != len(self.columns) or not isinstance(row[0], str):
                raise ValueError(f"row {list(row)} does not hold a name and {len(self.columns) - 1} more cells")
        return self

    def column(self, name: str) -> dict[str, Cell]:
        """First cell of every row -> its cell of the column `name`; raises `KeyError` when there is none."""
        names = [column.name for column in self.columns]
        if name not in names:
            raise KeyError(name)
        return {str(row[0]): row[names.index(name)] for row in self.rows}


def printed(title: str | None, columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> Table:
    """Rows for people who wait for a benchmark."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        named = all(isinstance(row[index], str) for row in rows)
        table.add_column(column.heading, justify="left" if named else "right")
    for row in rows:
        table.add_row(*(column.text(cell) for column, cell in zip(columns, row, strict=True)))
    return table


def load(folder: Path = STORED) -> list[Run]:
    """All runs in `folder`, by name of file; raises `ValueError` that names a file which holds none."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        try:
            runs.append(Run.model_validate_json(path.read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"{path}: {where}: {first['msg']}") from None
    return runs


def save(
    path: Path,
    benchmark: str,
    setting: Mapping[str, str | bool | int | float],
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
) -> None:
    """Write a run of this command, on this machine, today."""
    run = Run.model_validate(
        {
            "benchmark": benchmark,
            "machine": this_machine(),
            "date": date.today(),
            "commit": _commit(),
            "command": _command(),
            "setting": setting,
            "columns": columns,
            "rows": [[_rounded(cell, column) for cell, column in zip(row, columns, strict=True)] for row in rows],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(run), encoding="utf-8")


def as_json(run: Run) -> str:
    """One line a key, a column and a row, as a table of figures is best compared."""

    def value(content: object) -> str:
        if not isinstance(content, list):
            return json.dumps(content, ensure_ascii=False)
        return "[\n" + ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in content) + "\n  ]"

    data = run.model_dump(mode="json", exclude_defaults=True)
    return "{\n" + ",\n".join(f'  "{name}": {value(content)}' for name, content in data.items()) + "\n}\n"


def this_machine() -> Machine:
    """Virtual machines often hide a processor's name, but not its family and model."""
    facts = {}
    if _CPUINFO.exists():
        lines = (line.partition(":") for line in _CPUINFO.read_text().split("\n\n")[0].splitlines())
        facts = {name.strip(): value.strip() for name, _, value in lines}
    name = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts and "model" in facts:
        name = f"{name} (family {facts['cpu family']}, model {facts['model']})"
    return Machine(processor=name, cores=os.cpu_count() or 1, instruction_set=get_target("auto").name)


def _commit() -> str | None:
    """Of this checkout, with "-dirty" behind it when files differ from it; None where git does not tell."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _command() -> str:
    """This process's, without `--save FILE`."""
    arguments = iter(sys.argv[1:])
    kept = []
    for argument in arguments:
        if argument == "--save":
            next(arguments, None)
        elif not argument.startswith("--save="):
            kept.append(argument)
    script = Path(sys.argv[0])
    return shlex.join(["python", f"{script.resolve().parent.name}/{script.name}", *kept])


def _rounded(cell: Cell, column: Column) -> Cell:
    """As printed: what a machine does in the fourth digit is noise."""
    return round(cell, column.digits) if isinstance(cell, float) else cell
