"""Roots of values, from text: whose memory they may share, and which updates may be in place."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from lutra.ir.analysis.aliases import aliases
from lutra.ir.graph import Graph

CACHE, NEW = "!torch.vtensor<[1,2,10,16],f32>", "!torch.vtensor<[1,2,1,16],f32>"
ARGUMENTS = f"%a: {CACHE}, %p: !torch.vtensor<[1],si64>, %n: {NEW}"
UPDATE = f'%b = "lutra.kv_update"({{}}, %n, %p) : ({CACHE}, {NEW}, !torch.vtensor<[1],si64>) -> {CACHE}'
NONE = "%none = torch.constant.none"


def unary(name: str, result: str, operand: str) -> str:
    return f"{result} = torch.aten.{name} {operand} : {CACHE} -> {CACHE}"


@pytest.fixture
def updates(parse: Callable[..., Graph]) -> Callable[..., tuple[bool, set[int]]]:
    """`updates(*lines, results=..., mutated=...)`: is the (last) update in place, and which results are lent?"""

    def run(*lines: str, results: str = "%b", mutated: bool = True) -> tuple[bool, set[int]]:
        count = results.count("%")
        types = ", ".join([CACHE] * count)
        body = "\n".join([NONE, *lines, f"return {results} : {types}"])
        graph = parse(body, ARGUMENTS, types)
        graph.inputs[0] = replace(graph.inputs[0], mutated=mutated)
        if mutated:
            graph.mutations = {count - 1: 0}
        found = aliases(graph)
        updates = [op for op in graph.operations if op.operation.name == "lutra.kv_update"]
        return updates[-1].operation.results[0] in found.in_place, set(found.lent)

    return run


def test_an_argument_that_the_graph_updates_is_written_and_another_is_not(updates):
    assert updates(UPDATE.format("%a")) == (True, set())
    assert updates(UPDATE.format("%a"), mutated=False) == (False, set())


CLONE = f"%v = torch.aten.clone %a, %none : {CACHE}, !torch.none -> {CACHE}"
DETACH = unary("detach", "%v", "%a")
EXP = unary("exp", "%v", "%a")


@pytest.mark.parametrize(
    ("lines", "results", "in_place"),
    [
        ([DETACH, UPDATE.format("%v")], "%b", True),  # a view of what the graph updates
        ([CLONE, UPDATE.format("%v")], "%b", True),  # nobody else reads it
        ([EXP, UPDATE.format("%v")], "%b", True),  # memory of its own
        ([EXP, UPDATE.format("%v")], "%v, %b", False),
        ([EXP, UPDATE.format("%a")], "%v, %b", False),  # the read may be moved behind the update
        ([UPDATE.format("%a"), EXP], "%v, %b", False),
        ([CLONE, UPDATE.format("%a")], "%v, %b", False),
        ([UPDATE.format("%a"), DETACH], "%v, %b", False),
        ([UPDATE.format("%a"), unary("exp", "%v", "%b")], "%v, %b", True),
        ([UPDATE.format("%a").replace("%b", "%v"), UPDATE.format("%v")], "%b", True),
        ([UPDATE.format("%a").replace("%b", "%v"), UPDATE.format("%v")], "%v, %b", False),
        ([UPDATE.format("%a").replace("%b", "%v"), UPDATE.format("%a")], "%b", False),
    ],
)
def test_memory_is_overwritten_where_only_the_update_reads_it(updates, lines, results, in_place):
    assert updates(*lines, results=results)[0] is in_place


@pytest.mark.parametrize("name", ["clone", "detach"])
def test_what_may_share_an_argument_is_not_written(updates, name):
    line = CLONE if name == "clone" else DETACH
    assert updates(line, UPDATE.format("%v"), mutated=False) == (False, set())


def test_constants_and_parameters_are_not_written(updates):
    literal = f"%v = torch.vtensor.literal(dense<0.0> : tensor<1x2x10x16xf32>) : {CACHE}"
    param = f'%v = "lutra.param"() {{sym = "w"}} : () -> {CACHE}'
    for line in (literal, param):
        assert updates(line, UPDATE.format("%v"), mutated=False)[0] is False
        viewed = line + "\n" + unary("detach", "%w", "%v")
        assert updates(viewed, UPDATE.format("%w"), mutated=False)[0] is False
        assert updates(line, UPDATE.format("%a"), results="%v, %b")[1] == {0}


def test_results_that_torch_copies_are_lent_and_views_of_one_another_are_not(updates):
    made, copy = EXP, f"%w = torch.aten.clone %v, %none : {CACHE}, !torch.none -> {CACHE}"
    assert updates(made, copy, UPDATE.format("%a"), results="%v, %w, %b")[1] == {1}
    view = unary("detach", "%w", "%v")
    assert updates(made, view, UPDATE.format("%a"), results="%v, %w, %b")[1] == set()
    assert updates(made, UPDATE.format("%a"), results="%v, %v, %b")[1] == {1}
    assert updates(CLONE, UPDATE.format("%a"), results="%v, %b")[1] == {0}
