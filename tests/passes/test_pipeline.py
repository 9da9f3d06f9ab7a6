"""Running a recipe: what always runs first and last, phases, conditions, selectors, dumps, reports, verification."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from lutra.ir.errors import LutraError, SelectorError
from lutra.ir.selection import Candidate
from lutra.passes.base import ALL_PHASES, PassContext
from lutra.passes.pipeline import run_passes
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe

TEXT = """
func.func @main(%x: !torch.vtensor<[3,64],f32>) -> !torch.vtensor<[3,16],f32> {
  %none = torch.constant.none
  %w = "lutra.param"() {sym = "a.weight"} : () -> !torch.vtensor<[16,64],f32>
  %r = torch.aten.linear %x, %w, %none {lutra.path = "a"}
      : !torch.vtensor<[3,64],f32>, !torch.vtensor<[16,64],f32>, !torch.none -> !torch.vtensor<[3,16],f32>
  return %r : !torch.vtensor<[3,16],f32>
}"""


@dataclass(frozen=True)
class Offer:
    """Offers two candidates and does nothing with them."""

    name: ClassVar[str] = "offer"
    phases: ClassVar = ALL_PHASES

    def run(self, graph: Any, context: PassContext) -> None:
        context.select([Candidate("a", "linear"), Candidate("b", "linear")])


@dataclass(frozen=True)
class DecodeOnly(Offer):
    """As `Offer`, for one phase."""

    name: ClassVar[str] = "decode-only"
    phases: ClassVar = ("decode",)


@dataclass(frozen=True)
class Break:
    """Leaves an invalid module behind."""

    name: ClassVar[str] = "break"
    phases: ClassVar = ALL_PHASES

    def run(self, graph: Any, context: PassContext) -> None:
        for op in graph.operations:
            if op.operation.name == "lutra.linear":
                op.operation.operands[1] = op.operation.operands[0]


PASSES = {**available_passes(), **{cls.name: cls for cls in (Offer, DecodeOnly, Break)}}


def steps(*entries: Any) -> Any:
    return load_recipe({"lutra": 1, "name": "r", "passes": list(entries)}, PASSES).steps


def names(reports: Any) -> list[str]:
    """Of what the recipe's entries reported."""
    assert reports[0].name == "raise"
    return [report.name for report in reports[1:]]


def test_operations_are_recognised_whatever_the_recipe_says(parse: Callable[[str], Any]):
    graph = parse(TEXT).graph
    (report,) = run_passes(graph, steps())
    assert (report.name, report.changed) == ("raise", {"linear": 1})
    assert "lutra.linear" in str(graph.module)
    (report,) = run_passes(graph, steps())
    assert report.changed == {}


def test_fuse_runs_last_and_the_others_in_their_order_and_reports_say_where_they_were_written(
    parse: Callable[[str], Any],
):
    graph = parse(TEXT).graph
    recipe = (
        "lutra: 1\nname: r\npasses:\n  - fuse: {}\n  - quantize-weights: {group_size: 32}\n  - symmetrize-tables: {}\n"
    )
    reports = run_passes(graph, load_recipe(recipe, PASSES).steps)
    assert names(reports) == ["quantize-weights", "symmetrize-tables", "fuse"]
    assert [r.origin for r in reports] == ["", "recipe text:5", "recipe text:6", "recipe text:4"]
    assert [r.changed for r in reports] == [{"linear": 1}, {"quantize": 1}, {"table_linear": 1}, {}]
    assert [r.matched for r in reports] == [0, 1, 1, 0]


def test_steps_run_only_in_their_phases(parse: Callable[[str], Any]):
    graph = parse(TEXT).graph
    assert graph.phase == "encode"
    entries = steps({"offer": {"phase": "decode"}}, {"offer": {"phase": ["prefill", "encode"]}}, {"decode-only": {}})
    assert names(run_passes(graph, entries)) == ["offer"]
    graph.phase = "decode"
    assert names(run_passes(graph, entries)) == ["offer", "decode-only"]


def test_conditions_decide_on_the_facts(parse: Callable[[str], Any]):
    graph, entries = parse(TEXT).graph, steps({"offer": {"when": "batch <= 4 and avx2"}})
    assert names(run_passes(graph, entries, {"batch": 4, "avx2": 1})) == ["offer"]
    assert names(run_passes(graph, entries, {"batch": 5, "avx2": 1})) == []
    assert names(run_passes(graph, entries, {"avx2": 1})) == []


def test_a_selector_without_a_match_is_an_error_that_says_what_there_is(parse: Callable[[str], Any]):
    graph = parse(TEXT).graph
    with pytest.raises(SelectorError) as error:
        run_passes(graph, steps({"offer": {"select": {"modules": "c"}}}))
    for part in ("{'modules': 'c'}", "'offer'", "modules there: a, b", "allow_empty: true"):
        assert part in str(error.value)
    _, report = run_passes(graph, steps({"offer": {"select": {"modules": "c"}, "allow_empty": True}}))
    assert report.matched == 0


def test_the_module_after_each_pass_is_dumped(parse: Callable[[str], Any]):
    seen: list[tuple[str, str]] = []
    run_passes(parse(TEXT).graph, steps({"fuse": {}}, {"offer": {}}), dump=lambda name, text: seen.append((name, text)))
    assert [name for name, _ in seen] == ["after-raise.mlir", "after-offer.mlir", "after-fuse.mlir"]
    assert all("lutra.linear" in text for _, text in seen)


def test_an_invalid_module_is_an_error_that_names_the_pass(parse: Callable[[str], Any]):
    with pytest.raises(LutraError, match="not valid after 'break'"):
        run_passes(parse(TEXT).graph, steps({"fuse": {}}, {"break": {}}))
