"""The comparison of kernels in miniature."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command with some arguments."""
    monkeypatch.syspath_prepend(str(FOLDER))
    command = typer.Typer()
    command.command()(importlib.import_module("linear").main)
    return lambda *arguments: CliRunner().invoke(command, arguments)


def test_every_kernel_that_can_multiply_is_timed_and_one_is_chosen(run: Any):
    done = run("--weights", "4,ternary", "--rows", "1,6", "--features", "128x384", "--rounds", "1")
    assert done.exit_code == 0, done.output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line]
    kernels = {(weights, count): [r for r in rows if r[:2] == [weights, count]] for weights, count, *_ in rows}
    assert [r[2] for r in kernels["4", "1"]] == ["packed dot", "packed lookup"]
    assert [r[2] for r in kernels["4", "6"]] == ["packed dot", "gemm of dot", "packed lookup", "gemm of lookup"]
    assert "packed triples" in [r[2] for r in kernels["ternary", "1"]]
    assert all([r[-1] for r in of].count("*") == 1 for of in kernels.values())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--target", "avx-512", "target 'avx-512' is unknown"),
        ("--weights", "4,5", "'5' is none of 8, 4, 3, 2, ternary, 1"),
        ("--rows", "1,0", "'1,0' are no positive integers like 8,16"),
        ("--features", "128", "'128' are no positive integers like 8x16"),
        ("--features", "128x100", "does not divide the weight's 100 input features"),
    ],
)
def test_options_that_make_no_sense_are_refused(run: Any, option: str, value: str, message: str):
    done = run(option, value)
    assert done.exit_code == 2
    assert message in done.output
