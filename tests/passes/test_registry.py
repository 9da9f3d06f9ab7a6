"""Passes of third parties, through the entry-point group `lutra.passes`."""

import logging
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from lutra.passes.registry import BUILT_IN, available_passes, explained
from lutra.recipes.loading import load_recipe

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class DoNothing:
    """Leaves everything as it is."""

    name: ClassVar[str] = "do-nothing"
    kind: ClassVar[str] = "fusion"
    phases: ClassVar[tuple[str, ...]] = ("prefill", "decode", "encode")
    strength: float = 0.5

    def run(self, graph, context):
        context.report.count("nothing")
'''


def install(folder: Path, entries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution as pip would leave it, on the path."""
    info = folder / "third_party_passes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-passes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lutra.passes]\n{entries}\n")
    (folder / "third_party_passes.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(folder))


def test_a_third_party_pass_can_be_named_in_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path, "do-nothing = third_party_passes:DoNothing", monkeypatch)
    recipe = {"lutra": 1, "name": "r", "passes": [{"do-nothing": {"strength": 0.25, "phase": "decode"}}]}
    step = load_recipe(recipe, available_passes()).steps[0]
    assert (type(step.pass_).__name__, step.pass_.strength, step.phases) == ("DoNothing", 0.25, ("decode",))


@pytest.mark.parametrize(
    ("entry", "message"),
    [("fuse = third_party_passes:DoNothing", "the name is taken"), ("other = third_party_passes:Missing", "not load")],
)
def test_a_pass_that_cannot_be_used_is_left_out_and_logged(
    entry: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    install(tmp_path, entry, monkeypatch)
    with caplog.at_level(logging.WARNING, "lutra"):
        assert available_passes() == {cls.name: cls for cls in BUILT_IN}
    assert message in caplog.text


def test_every_pass_documents_itself_and_is_frozen():
    for name, cls in available_passes().items():
        summary, meanings = explained(cls)
        assert summary and list(meanings) == [field.name for field in fields(cls)]  # each, once, in order
        assert all(len(meaning.split()) > 2 for meaning in meanings.values())
        assert cls.__doc__ and cls.run.__doc__
        assert cls.name == name and cls.phases
        assert cls.__dataclass_params__.frozen


@dataclass(frozen=True)
class Thin:
    """Fewer weights (of rate: many).

    rate: how many, in rate: percent. A sentence more. seed:
    of chance. other: is no parameter."""

    rate: float
    seed: int = 0
    silent: bool = False


def test_meanings_of_parameters_are_read_off_the_docstring():
    assert explained(Thin) == (
        "Fewer weights (of rate: many).",
        {"rate": "how many, in rate: percent. A sentence more.", "seed": "of chance. other: is no parameter."},
    )
