"""Sweeps: a case that raises, crashes or hangs is a result, the others run all the same, and a run can go on."""

import os
import time
from pathlib import Path

import pytest
from lutra.tests.sweeps.sweep import Outcome, Sweep, select, summarize


class Judge:
    def __init__(self, known: str) -> None:
        self._known = known

    def judge(self, name: str) -> tuple[Outcome, str]:
        if name == "raises":
            raise ValueError("no such thing")
        if name == "crashes":
            os.write(2, b"last words\n")
            os._exit(3)
        if name == "hangs":
            time.sleep(600)
        return "right", self._known


NAMES = ["first", "raises", "crashes", "hangs", "last"]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(Judge, ("known",), tmp_path, timeout=2)


def test_each_end_of_a_case_is_a_result(sweep: Sweep):
    results = sweep.run(NAMES)
    assert [r.name for r in results] == NAMES
    assert [r.outcome for r in results] == ["right", "ERROR", "CRASH", "HANG", "right"]
    assert "no such thing" in results[1].detail
    assert "exit code 3" in results[2].detail and "last words" in results[2].detail
    assert summarize(results, "all") == 1
    assert summarize([results[0], results[4]], "right ones") == 0


def test_what_is_stored_is_not_judged_again_unless_asked(sweep: Sweep):
    sweep.run(["first", "raises"])
    renewed = Sweep(Judge, ("renewed",), sweep.folder, timeout=2)
    assert [r.detail for r in renewed.run(["first", "last"])] == ["known", "renewed"]
    assert [r.detail for r in renewed.run(["first", "last"], again=["right"])] == ["renewed", "renewed"]


def test_slices_share_out_the_cases():
    assert select(NAMES, "0/2", []) == ["first", "crashes", "last"]
    assert select(NAMES, "1/2", ["rais"]) == ["raises"]
