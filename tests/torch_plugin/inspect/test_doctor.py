"""`lutra doctor`: what is there, and what is wrong where something is."""

import os
import re
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from lutra.cli.main import app, main
from lutra.codegen.cache import entries
from lutra.torch_plugin.inspect.doctor import Finding, examine
from lutra.torch_plugin.options import Options
from typer.testing import CliRunner

QUICK = ["versions", "processor", "target", "threads", "cache folder", "C compiler"]
"""All but the self-test."""


def quick(folder: Path) -> dict[str, Finding]:
    found = {finding.subject: finding for finding in islice(examine(Options.parse({"cache_dir": folder})), len(QUICK))}
    assert list(found) == QUICK
    return found


def test_a_machine_that_can_run_this_has_nothing_wrong(tmp_path: Path):
    result = CliRunner().invoke(app, ["doctor", "--cache-dir", str(tmp_path / "new")], env={"COLUMNS": "300"})
    assert result.exit_code == 0, (result.output, result.exception)
    for part in (*QUICK, f"torch {torch.__version__}", "not made yet", "a linear of 4 bits", "nothing is wrong"):
        assert part in result.output
    assert not list(tmp_path.iterdir())


def test_all_that_is_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lutra", "doctor", "--cache-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_:
        main()
    told = capsys.readouterr().err
    assert exit_.value.code == 2 and told.count("\n") == 1
    assert told.startswith("lutra: C compiler: nothing can link compiled code: install gcc")
    assert "; self-test: " in told


def others_may_write(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (others_may_write, "not trusted, .*others may write to .*chmod go-w"),
        (Path.touch, "Not a directory"),
        (os.mkfifo, "Not a directory"),
        (lambda folder: folder.symlink_to(folder), "Too many levels of symbolic links"),
        (lambda folder: folder.symlink_to("/dev/null/cache"), "Not a directory"),
    ],
    ids=["others may write", "file", "pipe", "circle", "below a file"],
)
def test_a_cache_folder_that_will_not_be_used_is_told(make: Callable[[Path], None], message: str, tmp_path: Path):
    make(tmp_path / "cache")
    found = quick(tmp_path / "cache")
    assert [subject for subject, finding in found.items() if finding.wrong] == ["cache folder"]
    assert re.search(message, found["cache folder"].wrong)


def test_the_cache_folder_is_counted(tmp_path: Path):
    entries.make_private(folder := tmp_path / "cache")
    entries.write(folder, "0" * 32, {"graph": "g"}, entries.Stored("graph.so", {}, b"x" * 2_000_000))
    assert ", 1 entries of 2.0 MB, " in quick(folder)["cache folder"].found
    assert len(os.listdir(folder)) == 1


def test_libraries_of_other_versions_and_too_many_threads_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "torch_mlir-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-mlir\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads((os.cpu_count() or 1) + 1)
    try:
        found = quick(tmp_path / "cache")
    finally:
        torch.set_num_threads(before)
    assert found["versions"].wrong.startswith("torch-mlir is 1.0, this version of lutra is for ")
    assert "set OMP_NUM_THREADS=" in found["threads"].wrong


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "a small linear ended its process with SIGSEGV: try options="),
        ("echo ImportError: no torch >&2; exit 1", "ImportError: no torch"),
        ("exit 1", "it said nothing"),
        ("""echo '{"error": NaN, "warnings": []}'""", "its result is nan% off"),
        ("""echo '{"error": 0.005, "warnings": ["no launcher"]}'""", "no launcher"),
    ],
)
def test_a_self_test_that_fails_is_told(script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    (*_, finding) = examine(Options.parse({"cache_dir": tmp_path / "cache"}))
    assert finding.subject == "self-test" and message in finding.wrong
