"""Choosing implementations: all have their problems, every refusal has a reason, and a database is obeyed."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lutra.codegen.compile import CodegenOptions, compile_graph
from lutra.codegen.lowering.graph import lower_graph
from lutra.codegen.select import (
    AttentionProblem,
    Choice,
    GroupedLinearProblem,
    Implementation,
    Knobs,
    LinearProblem,
    Mask,
    Problem,
    Tuned,
    choose,
)
from lutra.codegen.targets.cpu.implementations.dense import DenseKernel
from lutra.codegen.targets.registry import TARGETS, get_target
from lutra.ir.errors import LoweringError
from lutra.ir.weights.formats import PER_CHANNEL, WeightFormat
from lutra.tests.support.fuzzing import random
from torch import nn

FORMATS = [WeightFormat(bits, 64) for bits in (1, 2, 3, 4, 8)]
FORMATS += [WeightFormat(4, 32, "asymmetric"), WeightFormat(2, 128, "ternary"), WeightFormat(2, PER_CHANNEL, "ternary")]
DTYPES = ["float32", "bfloat16", "float64"]
LINEAR = LinearProblem(
    phase="decode", rows=1, features=96, columns=256, dtype="float32", weight=WeightFormat(4, 64), parts=(96,)
)
ATTENTION = AttentionProblem(
    phase="decode", queries=1, heads=4, kv_heads=2, head=64, value_head=64, dtype="float32", mask=None
)

phases = st.sampled_from(["decode", "prefill", "encode"])
rows = st.none() | st.integers(1, 300)
linears = st.builds(
    LinearProblem,
    phase=phases,
    rows=rows,
    features=st.just(96),
    columns=st.sampled_from([192, 200, 256]),
    dtype=st.sampled_from(DTYPES),
    weight=st.sampled_from([*FORMATS, *DTYPES]),
    parts=st.sampled_from([(96,), (32, 64), ()]),
    activations=st.sampled_from([None, "float", "integers"]),
    family=st.sampled_from([None, "lookup", "triples", "dot"]),
    bias=st.sampled_from([None, "float32"]),
    residual=st.booleans(),
).filter(lambda p: p.format is None or ((p.activations != "integers" or p.format.bits == 2) and len(p.parts) == 1))
grouped = st.builds(
    GroupedLinearProblem,
    phase=phases,
    rows=rows,
    features=st.just(384),
    columns=st.just(256),
    dtype=st.sampled_from(DTYPES),
    weight=st.sampled_from(FORMATS),
    parts=st.just((384,)),
    activations=st.sampled_from([None, "float"]),
    family=st.sampled_from([None, "lookup", "triples", "dot"]),
    groups=st.just(4),
    offsets=st.just("int32"),
)
attentions = st.builds(
    AttentionProblem,
    phase=phases,
    queries=st.sampled_from([None, 1, 7]),
    heads=st.sampled_from([4, None]),
    kv_heads=st.just(2),
    head=st.sampled_from([24, 64]),
    value_head=st.sampled_from([64, 32]),
    dtype=st.sampled_from(DTYPES),
    causal=st.booleans(),
    mask=st.sampled_from([None, Mask("bool", True, False), Mask("float32", False, False, regular=False)]),
)
problems = linears | grouped | attentions


@random(100)
@given(problems, st.sampled_from(sorted(TARGETS)))
def test_something_is_chosen_for_every_problem_and_all_others_have_a_reason(problem: Problem, name: str):
    target = TARGETS[name]
    choice = choose(problem, target)
    assert choice.implementation.why_not(problem) is None
    others = {*choice.slower, *choice.unable}
    assert {i.name for i in target.implementations[problem.operation]} == {choice.implementation.name, *others}
    assert all(reason.why for reason in choice.slower.values()) and all(choice.unable.values())
    assert choice.knobs == choice.implementation.knobs


@random(100)
@given(linears, st.sampled_from(sorted(TARGETS)), rows, phases)
def test_what_a_weight_is_packed_for_does_not_depend_on_rows_or_phase(problem: Any, name: str, rows: Any, phase: Any):
    """Prefill and decode share one packed form."""
    choices = [choose(p, TARGETS[name]) for p in (problem, replace(problem, rows=rows, phase=phase))]
    assert len({getattr(choice.implementation, "family", None) for choice in choices}) == 1


def names(operation: str) -> set[str]:
    return {i.name for target in TARGETS.values() for i in target.implementations[operation]}


def chosen(problem: Problem) -> set[str]:
    return {choose(problem, target).implementation.name for target in TARGETS.values()}


def test_every_implementation_is_chosen_for_some_problem():
    low_bit: list[dict[str, Any]] = [
        {"rows": rows, "family": family, "weight": weight, "activations": activations}
        for rows, family, weight, activations in product(
            (1, 200), (None, "dot", "lookup", "triples"), (FORMATS[3], FORMATS[6]), (None, "float")
        )
    ]
    groups: dict[str, Any] = {"features": 384, "groups": 4, "offsets": "int32"}
    common = {name: getattr(LINEAR, name) for name in ("phase", "columns", "dtype", "parts")}
    linear = [replace(LINEAR, **{**changes, "phase": "prefill"}) for changes in low_bit]
    linear += [replace(LINEAR, weight="float32", rows=rows) for rows in (1, 100)]
    assert set().union(*map(chosen, linear)) == names("linear")
    grouped_ = [GroupedLinearProblem(**{**common, **groups, **changes}) for changes in low_bit]
    assert set().union(*map(chosen, grouped_)) == names("grouped_linear")
    assert chosen(ATTENTION) | chosen(replace(ATTENTION, queries=5)) == names("attention")


@pytest.mark.parametrize(
    ("problem", "name", "reason"),
    [
        (replace(LINEAR, weight="float32", columns=200), "dense", "200 columns are no multiple of 32"),
        (replace(LINEAR, weight="float64"), "dense", "it sums up in float32, too little for float64"),
        (replace(LINEAR, weight="float32", parts=()), "dense", "its matrix is computed"),
        (LINEAR, "packed triples", "triples are ternary"),
        (replace(LINEAR, family="lookup"), "packed dot", "kernel_family asks for lookup"),
        (replace(LINEAR, activations="float"), "packed lookup", "activations are kept"),
        (replace(LINEAR, activations="float"), "packed dot", "the recipe keeps activations as they are"),
        (LINEAR, "torch", "its weight is quantised"),
        (replace(ATTENTION, queries=3), "decode", "it takes one query"),
        (replace(ATTENTION, head=24, value_head=24), "decode", "heads of 24 are no multiple of 16"),
        (replace(ATTENTION, causal=True), "decode", "its query would see the first key alone"),
    ],
    ids=str,
)
def test_what_an_implementation_cannot_do_is_said(problem: Problem, name: str, reason: str):
    assert choose(problem, TARGETS["avx2"]).unable[name].startswith(reason)


def test_what_is_slower_is_said_with_the_measurement():
    slower = choose(LINEAR, TARGETS["avx2"]).slower
    assert str(slower["packed lookup"]).startswith("weights of 4 bits are faster multiplied (Zen 1, two threads")
    assert "16 rows read the weight as it is packed" in slower["gemm of dot"].why


def test_what_nothing_can_compute_is_an_error_that_names_all_reasons():
    @dataclass(frozen=True)
    class Only:
        name = "only"
        implementations = {"linear": (DenseKernel(),)}

    with pytest.raises(LoweringError, match=r"(?s)'only' has nothing for linear.*dense: its weight is quantised"):
        choose(LINEAR, Only())
    with pytest.raises(LoweringError, match="'only' has nothing for attention"):
        choose(ATTENTION, Only())


# A database -----------------------------------------------------------------------------------------------------------


def tuned(problem: Problem, name: str, **knobs: Any) -> Choice:
    return choose(problem, TARGETS["avx2"], {problem.key: Tuned(name, knobs)})


@random(100)
@given(problems, st.data())
def test_a_database_is_obeyed_where_it_can_be(problem: Problem, data: st.DataObject):
    implementations: tuple[Implementation, ...] = TARGETS["avx2"].implementations[problem.operation]
    asked = data.draw(st.sampled_from(implementations))
    choice = tuned(problem, asked.name)
    able = asked.why_not(problem) is None
    assert choice.tuned == able
    assert choice.implementation.name == (asked.name if able else choose(problem, TARGETS["avx2"]).implementation.name)
    assert all(asked.name in reason.why for reason in choice.slower.values()) or not able


def test_a_database_turns_knobs_and_other_problems_are_none_of_its_business():
    choice = tuned(LINEAR, "packed dot", task_blocks=2)
    knobs: Any = choice.knobs
    assert (knobs.task_blocks, knobs.static_rows) == (2, 8)
    database = {LINEAR.key: Tuned("gemm of dot")}
    assert choose(replace(LINEAR, rows=2), TARGETS["avx2"], database).implementation.name == "packed dot"


@pytest.mark.parametrize(
    "entry",
    [
        Tuned("of the future"),
        Tuned("dense"),
        Tuned("packed dot", {"colour": 1}),
        Tuned("packed dot", {"task_blocks": 0}),
        Tuned("packed dot", {"task_blocks": "2"}),
        Tuned("packed dot", {"static_rows": True}),
    ],
    ids=str,
)
def test_what_a_database_cannot_mean_is_left(entry: Tuned):
    choice = choose(LINEAR, TARGETS["avx2"], {LINEAR.key: entry})
    assert not choice.tuned and choice.implementation.name == "packed dot" and choice.knobs != Knobs()


@pytest.mark.parametrize(("span", "obeyed"), [(1024, True), (100, False)])
def test_spans_are_whole_sixteens_or_keys_would_be_lost(span: int, obeyed: bool):
    assert tuned(ATTENTION, "decode", span=span).tuned == obeyed


def test_keys_tell_problems_apart():
    others = [replace(LINEAR, rows=2), replace(LINEAR, weight="float32"), replace(LINEAR, family="dot"), ATTENTION]
    assert len({problem.key for problem in (LINEAR, *others)}) == 5
    assert replace(LINEAR).key == LINEAR.key


def test_a_database_decides_what_is_compiled(graph_of: Any):
    torch.manual_seed(0)
    model, x = nn.Linear(128, 64, bias=False), torch.randn(3, 128)
    quantize = {"quantize-weights": {"bits": 4, "group_size": 64, "select": {"operators": "linear"}}}
    graph = graph_of(model, x, passes=[{"fuse": {}}, quantize])
    problem = replace(LINEAR, phase="encode", rows=3, features=64, columns=128, parts=(64,))
    target = get_target("portable")
    (first,) = lower_graph(graph, target).manifest.chosen
    database = {problem.key: Tuned("gemm of dot", {"panel_units": 2})}
    (second,) = lower_graph(graph, target, database=database).manifest.chosen
    assert (first.implementation, second.implementation) == ("packed dot", "gemm of dot")
    results = [compile_graph(graph, target, CodegenOptions(database=each))(x)[0] for each in ({}, database)]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
