"""Progress bars: on a terminal, and nowhere else unless somebody asks for them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.torch_plugin.inspect.progress import ProgressBar
from torch import nn


class Terminal(StringIO):
    """It keeps what was written to it."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """stderr is one."""
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stderr", screen := Terminal())
        yield screen


def test_the_first_call_and_packing_show_bars_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    torch._dynamo.reset()
    model, options = nn.Linear(64, 64), {"cache_dir": tmp_path / "cache", "recipe": "w4"}
    fast = torch.compile(model, backend="lutra", options=options)
    with torch.no_grad(), terminal(monkeypatch) as screen:
        fast(torch.randn(2, 64))
        assert "lutra: compile encode" in screen.getvalue()
        lutra.pack(fast, tmp_path / "packed")
        assert f"lutra: write {tmp_path}"[:20] in screen.getvalue()
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("wanted", "shown"), [(None, False), (True, True), (False, False)])
def test_where_there_is_no_terminal_bars_are_on_request(
    wanted: bool | None, shown: bool, capfd: pytest.CaptureFixture[str]
):
    with ProgressBar("wait", wanted) as progress:
        progress.step("weights", 2, 3)
    out, err = capfd.readouterr()
    assert out == "" and ("lutra: wait" in err) == shown


def test_a_bar_says_how_far_it_is_and_that_something_failed(monkeypatch: pytest.MonkeyPatch):
    def fail() -> Any:
        with ProgressBar("wait", None, still=True) as progress:
            progress.step("weights", 2, 3)
            raise ValueError

    with terminal(monkeypatch) as screen:
        with pytest.raises(ValueError):
            fail()
        text = screen.getvalue()
    assert "weights 2/3" in text and "failed" in text
