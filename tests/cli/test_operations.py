"""`lutra ops`: everything that an operation's class says, at any width."""

import re
from inspect import cleandoc

import pytest
from lutra.cli.main import app
from lutra.ir.errors import LutraError
from lutra.ir.ops import OPERATIONS
from typer.testing import CliRunner


def words(*arguments: str, columns: int = 200) -> str:
    result = CliRunner().invoke(app, ["ops", *arguments], env={"COLUMNS": str(columns)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("columns", [60, 200])
def test_every_operation_is_printed_with_its_formula_fields_and_cost(columns: int):
    printed = words(columns=columns)
    for name, cls in OPERATIONS.items():
        fields = cls.SIGNATURE
        (formula,) = re.findall(r"^    (.*)$", cleandoc(cls.__doc__ or ""), re.MULTILINE)[:1]
        for said in (name, formula, cls.cost.__doc__ or "", *(f.name for f in (*fields.operands, *fields.attributes))):
            assert " ".join(said.split()).replace("`", "") in printed


@pytest.mark.parametrize("name", ["kv_update", "lutra.kv_update"])
def test_one_operation_is_printed_by_its_name(name: str):
    printed = words(name)
    assert printed.startswith("lutra.kv_update Write new keys or values into a cache.")
    assert "memory: out may take the place of cache" in printed
    assert "lutra.linear" not in printed


def test_a_name_that_no_operation_has_is_an_error_with_the_nearest():
    with pytest.raises(LutraError, match=r"there is no operation 'lutra\.tabel': did you mean 'table'"):
        CliRunner().invoke(app, ["ops", "lutra.tabel"], catch_exceptions=False)
