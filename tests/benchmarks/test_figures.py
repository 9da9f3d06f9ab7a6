"""Generated documents: what is committed is what the stored results give."""

import importlib
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("figures")


def run(figures: ModuleType, benchmark: str, **changes: Any) -> Any:
    """A stored run with two rows."""
    run: dict[str, Any] = {
        "benchmark": benchmark,
        "machine": {"processor": "P", "cores": 2, "instruction_set": "avx2"},
        "date": "2026-11-28",
        "commit": "abc",
        "command": "python benchmarks/x.py",
        "setting": {"prompt": 8, "rounds": 3},
        "columns": [{"name": "engine"}, {"name": "decode", "unit": "tokens/s"}, {"name": "perplexity", "digits": 1}],
        "rows": [["eager", 1, 20.0], ["llama.cpp:Q4_0", None, 21.0]],
    }
    return figures.Run.model_validate(run | changes)


def test_the_committed_documents_are_those_of_the_stored_results(figures: ModuleType):
    written = {path: (ROOT / path).read_text(encoding="utf-8") for path in (figures.README, figures.RECIPES)}
    for path, text in figures.generated(figures.load(), written).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, f"{path} is out of date: `make figures`"


def test_runs_of_one_machine_are_one_table_the_widest_first(figures: ModuleType):
    narrow = run(figures, "peers", setting={"prompt": 512, "rounds": 1}, rows=[["w4", 5, None]])
    text = figures.performance([narrow, run(figures, "peers")])
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert tables == [
        "| run | prompt | engine | decode, tokens/s | perplexity |",
        "| --- | --- | --- | ---: | ---: |",
        "| 1 | 8 | eager | 1 | 20.0 |",
        "| 1 | 8 | llama.cpp:Q4_0 |  | 21.0 |",
        "| 2 | 512 | w4 | 5 |  |",
        "| run | command | commit | date | setting |",
        "| --- | --- | --- | --- | --- |",
        "| 1 | `python benchmarks/x.py` | abc | 2026-11-28 | rounds: 3 |",
        "| 2 | `python benchmarks/x.py` | abc | 2026-11-28 | rounds: 1 |",
    ]
    assert "### P, 2 cores, avx2\n" in text


def test_what_nobody_wrote_down_is_said(figures: ModuleType):
    text = figures.performance([run(figures, "packed", machine=None, commit=None, command=None, date=None)])
    assert "### Machine not recorded\n" in text
    assert "| 1 | not recorded | not recorded | not recorded | prompt: 8; rounds: 3 |" in text


def test_the_readme_shows_the_rows_whose_speed_was_measured(figures: ModuleType):
    old = f"a {figures.BEGIN.format('recipes')} old {figures.END} b"
    columns = [{"name": "recipe"}, {"name": "as it ships", "digits": 4}]
    sentences = run(figures, "sentences", columns=columns, rows=[["eager", 0.98765]])
    table = figures.recipes_table(run(figures, "recipes"), sentences)
    text = figures.between_markers(old, figures.README, "recipes", table)
    assert "| eager | 20.0 | 0.988 |" in text and "Q4_0" not in text and " old " not in text
    assert text.startswith("a ") and text.endswith(" b")
    with pytest.raises(ValueError, match=r"README\.md has not both"):
        figures.between_markers("nothing", figures.README, "recipes", "content")


def test_the_widest_run_is_shown_and_of_these_the_newest(figures: ModuleType):
    old, new = run(figures, "peers", date="2026-01-01"), run(figures, "peers")
    narrow = run(figures, "peers", date="2026-12-01", rows=[["eager", 1, None]])
    assert figures.widest([new, old, narrow], "peers").date == date(2026, 11, 28)
    with pytest.raises(LookupError, match="no run of 'recipes' is stored"):
        figures.widest([old], "recipes")


def test_the_plot_has_engines_with_a_speed_and_a_perplexity_and_is_the_same_twice(figures: ModuleType):
    speed_quality = importlib.import_module("speed_quality")
    speeds = run(figures, "peers", rows=[["inductor", 2, None], ["llama.cpp:Q4_0", 4, None], ["torchao-int4", 3, None]])
    quality = run(figures, "recipes")
    assert speed_quality.points(speeds, quality) == {"inductor": (2, 20), "llama.cpp:Q4_0": (4, 21)}
    svg = speed_quality.plot(speeds, quality)
    assert svg == speed_quality.plot(speeds, quality)
    assert ">inductor<" in svg and ">torchao-int4<" not in svg
    with pytest.raises(LookupError, match="no engine has both"):
        speed_quality.plot(run(figures, "peers", rows=[["w4", 1, None]]), quality)
