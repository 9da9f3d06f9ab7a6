"""Stored results: what is written is read back, and what is no result is named."""

import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SETTING = {"shape": "tiny", "rounds": 2, "module guards": True}
RUN: dict[str, Any] = {
    "benchmark": "peers",
    "machine": {"processor": "a processor", "cores": 2, "instruction_set": "avx2"},
    "date": "2026-11-28",
    "commit": None,
    "command": None,
    "setting": SETTING,
    "columns": [{"name": "engine"}, {"name": "decode", "unit": "tokens/s", "digits": 1}],
    "rows": [["w4", 12.5], ["eager", None]],
}


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("results")


def test_a_saved_run_says_what_it_ran_on_and_how(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "sys.argv", ["/x/benchmarks/peers.py", "--rounds", "2", "--save", "a.json", "--engines", "w4,a b"]
    )
    columns = [results.Column(name="engine"), results.Column(name="decode", unit="tokens/s", digits=1)]
    results.save(tmp_path / "new" / "a.json", "peers", SETTING, columns, [["w4", 12.345], ["eager", None]])
    (run,) = results.load(tmp_path / "new")
    assert run.rows == (("w4", 12.3), ("eager", None)) and run.setting == SETTING
    assert run.command == "python benchmarks/peers.py --rounds 2 --engines 'w4,a b'"
    assert run.machine.cores == os.cpu_count() and run.machine.processor and run.machine.instruction_set
    assert run.date is not None and run.column("decode") == {"w4": 12.3, "eager": None}


def test_cells_are_printed_with_their_digits(results: ModuleType):
    column = results.Column(name="decode", unit="tokens/s", digits=2)
    assert [column.text(cell) for cell in (1, 0.125, "fast", None)] == ["1.00", "0.12", "fast", ""]
    assert column.heading == "decode, tokens/s" and results.Column(name="engine").heading == "engine"


def test_what_is_written_is_read_back_with_a_row_a_line(results: ModuleType, tmp_path: Path):
    run = results.Run.model_validate(RUN)
    text = results.as_json(run)
    (tmp_path / "a.json").write_text(text)
    assert results.load(tmp_path) == [run]
    assert '    ["w4", 12.5],\n' in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "peer"}, "benchmark: Input should be 'peers'"),
        ({"rows": [["w4"]]}, "row ['w4'] does not hold a name and 1 more cells"),
        ({"rows": [[1, 2]]}, "row [1, 2] does not hold a name and 1 more cells"),
        ({"rows": []}, "rows: Tuple should have at least 1 item"),
        ({"machine": {"processor": "", "cores": 2, "instruction_set": "avx2"}}, "machine.processor: String should"),
        ({"comment": "no field"}, "comment: Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_no_result_is_named(results: ModuleType, change: dict[str, Any], message: str, tmp_path: Path):
    (tmp_path / "bad.json").write_text(json.dumps(RUN | change))
    with pytest.raises(ValueError) as error:
        results.load(tmp_path)
    assert "bad.json: " in str(error.value) and message in str(error.value)


def test_a_file_that_is_no_json_is_named(results: ModuleType, tmp_path: Path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: the file: Invalid JSON"):
        results.load(tmp_path)
