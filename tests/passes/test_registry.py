"""Passes of third parties: entry points of installed distributions, classes that were registered, `module:Class`."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import lutra
import pytest
import torch
from lutra.ir.errors import PassError, RecipeError
from lutra.ir.operator_call import operation_name
from lutra.ir.rewriting import paths
from lutra.passes import registry
from lutra.passes.base import ALL_PHASES, PassContext
from lutra.passes.registry import BUILT_IN, available_passes, explained
from lutra.recipes.loading import load_recipe
from torch import nn

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


def test_a_pass_that_takes_a_name_of_ours_is_left_out_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    install(tmp_path, "fuse = third_party_passes:DoNothing", monkeypatch)
    with caplog.at_level(logging.WARNING, "lutra"):
        assert set(available_passes().loaded()) == set(BUILT_IN)
    assert "the name is taken" in caplog.text


def test_a_pass_that_does_not_load_is_an_error_of_the_recipe_that_names_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    install(tmp_path, "other = third_party_passes:Missing", monkeypatch)
    with caplog.at_level(logging.WARNING, "lutra"):
        assert set(available_passes().loaded()) == set(BUILT_IN)
    assert "there is no Missing in it" in caplog.text
    load_recipe("w4", available_passes())
    with pytest.raises(RecipeError, match=r"recipe: third_party_passes:Missing: .*did you mean|known: DoNothing"):
        load_recipe(entry("other"), available_passes())
    with pytest.raises(RecipeError, match="it is a parameter of quantize-weights"):  # hints load what they can
        load_recipe(entry("fuse", bits=4), available_passes())


def entry(name: str, **parameters: Any) -> dict[str, Any]:
    return {"lutra": 1, "name": "r", "passes": [{name: parameters}]}


def test_a_class_of_any_module_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "passes_beside.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = load_recipe(entry("passes_beside:DoNothing", strength=0.25), available_passes())
    assert recipe.steps[0].pass_.strength == 0.25
    again = load_recipe(recipe.to_yaml(), available_passes())
    assert again.steps[0].pass_ == recipe.steps[0].pass_ and again.fingerprint() == recipe.fingerprint()


def test_recipes_that_come_with_data_import_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "passes_of_others.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe, passes = entry("passes_of_others:DoNothing"), available_passes(imports=False)
    with pytest.raises(RecipeError, match="imports no module: import passes_of_others first, if you trust it"):
        load_recipe(recipe, passes)
    assert "passes_of_others" not in sys.modules
    load_recipe(recipe, available_passes())
    load_recipe(recipe, passes)


@dataclass(frozen=True)
class Count:
    """Counts the linears that it sees, by the paths of their modules."""

    name: ClassVar[str] = "count-linears"
    kind: ClassVar[str] = "weight-static"
    phases: ClassVar[tuple[str, ...]] = ALL_PHASES

    def run(self, graph: Any, context: PassContext) -> None:
        """Change nothing."""
        for op in graph.operations:
            if operation_name(op) == "lutra.linear":
                context.report.count("|".join(paths(op)))


@pytest.fixture
def registered() -> Iterator[type]:
    yield lutra.register_pass(Count)
    registry._registered.pop(Count.name)


class Attention(nn.Module):
    """Three projections of one input, which `fuse` merges."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)])


@pytest.mark.parametrize("written", ["count-linears", f"{__name__}:Count"])
def test_a_registered_pass_sees_operations_that_are_named_and_not_merged(
    written: str, registered: type, interpreted: Callable[..., Any]
):
    quantise = {"quantize-weights": {"bits": 4, "group_size": 64}}
    backend = interpreted({"fuse": {}}, {written: {}}, quantise, {written: {}})
    with torch.no_grad():
        torch.compile(Attention(), backend=backend)(torch.randn(2, 64))
    before, _, after, fused = backend.reports
    assert before.changed == after.changed == {"q": 1, "k": 1, "v": 1}
    assert fused.changed == {"merge_linears": 1} and backend.counts()["linear"] == 1


def other(**attributes: Any) -> Any:
    """A class like `Count` but for `attributes`."""
    return dataclass(frozen=True)(type("Other", (Count,), {"name": "other", **attributes}))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (3, "^3 is not a pass: a pass is a frozen dataclass"),
        (type("Plain", (), {}), ":Plain is not a pass: a pass is a frozen dataclass"),
        (dataclass(type("Thawed", (), {})), "a pass is a frozen dataclass"),
        (other(name=None), "`name` is to be a ClassVar, a word like 'skip-layers', and is None"),
        (other(name="a b"), "and is 'a b'"),
        (other(kind="magic"), "`kind` is to be one of fusion, .*, and is 'magic'"),
        (other(phases=("dance",)), "`phases` are to be some of prefill, decode, encode"),
        (other(run=None), r"it has no method run\(graph, context\)"),
        (other(name="fuse"), "the name 'fuse' is taken by lutra.passes.fuse.fuse:Fuse: give it another"),
        (other(name="count-linears"), "the name 'count-linears' is taken by .*:Count: give it another"),
    ],
)
def test_what_is_no_pass_is_refused(cls: Any, message: str, registered: type):
    with pytest.raises(PassError, match=message):
        lutra.register_pass(cls)


def test_a_class_that_was_written_anew_takes_the_place_of_the_old_one(registered: type):
    again = dataclass(frozen=True)(type("Count", (Count,), {"__module__": __name__}))
    assert lutra.register_pass(again) is available_passes()["count-linears"] is again


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Pass", "module no_such_module cannot be imported: there is no such module"),
        ("lutra.passes.nothing:Pass", "module lutra.passes.nothing cannot be imported: there is no such module"),
        ("needs_more:Pass", "module needs_more cannot be imported: it needs what_it_needs"),
        ("raises:Pass", "module raises cannot be imported: ZeroDivisionError: division by zero"),
        ("exits:Pass", "module exits cannot be imported: SystemExit: 3"),
        ("lutra.passes.fuse.fuse:Fues", "there is no Fues in it: did you mean 'Fuse'?"),
        ("json:JSONDecoder", "json:JSONDecoder is not a pass: a pass is a frozen dataclass"),
        ("a b:Pass", "there is no pass 'a b:Pass'"),
        (":Pass", "there is no pass ':Pass'"),
    ],
)
def test_a_path_that_leads_to_no_pass_is_an_error_of_the_recipe(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    texts = {"needs_more": "import what_it_needs", "raises": "1 / 0", "exits": "raise SystemExit(3)"}
    for module, text in texts.items():
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match=re.escape(message)) as error:
        load_recipe(entry(name), available_passes())
    assert str(error.value).startswith("recipe: ")


def test_parameters_that_no_recipe_can_give_are_an_error_of_the_recipe(registered: type):
    odd = other(name="odd", __annotations__={"model": nn.Module}, model=None)
    lutra.register_pass(odd)
    try:
        with pytest.raises(RecipeError, match=r"pass 'odd': a recipe cannot give its parameters: .*Module"):
            load_recipe(entry("odd"), available_passes())
    finally:
        registry._registered.pop("odd")


def test_the_registry_imports_no_pass():
    code = "import sys, lutra.passes.registry as r; p = r.available_passes(); assert 'w4' not in p and 'fuse' in p; "
    code += "print([m for m in sys.modules if m.startswith(('lutra.passes.fuse', 'lutra.passes.quant', 'torch_mlir'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_pass_documents_itself_and_is_frozen():
    for name, cls in available_passes().loaded().items():
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
