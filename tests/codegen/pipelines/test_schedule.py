"""Elementwise functions run on all cores where that pays."""

from collections.abc import Callable
from typing import Any

import pytest
import tvm
from lutra.codegen.kernels.cpu.function import kernel
from lutra.codegen.pipelines.schedule import ScheduleKnobs, elementwise_schedule
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

LARGE = ScheduleKnobs().parallel_from


def scheduled(function: tirx.PrimFunc, **knobs: Any) -> str:
    module = tvm.IRModule({"main": function})
    return elementwise_schedule(ScheduleKnobs(**knobs))(module)["main"].script()


def twice_and_one(x: Any) -> Any:
    return x + x + tirx.const(1.0, "float32")


def chain(size: Any, steps: int = 1, element: Callable[[Any], Any] = twice_and_one) -> tirx.PrimFunc:
    """`steps` functions after each other, each of which is `element` of what the one before gives."""

    def step(before: Any, number: int) -> Any:
        return te.compute((size,), lambda i: element(before[i]), name=f"step{number}")

    x = value = te.placeholder((size,), "float32", name="x")
    for number in range(steps):
        value = step(value, number)
    return te.create_prim_func([x, value])


@pytest.mark.parametrize(("size", "parallel"), [(LARGE - 1, False), (LARGE, True), ("n", True)])
def test_many_elements_are_spread_over_cores_and_few_are_not(size: Any, parallel: bool):
    size = te.var("n", "int64") if size == "n" else size
    assert ("T.parallel" in scheduled(chain(size))) == parallel


def test_knobs_say_how_many_are_many_and_how_they_are_shared_out():
    assert "T.parallel(4)" in scheduled(chain(64), parallel_from=64, chunk=16)
    assert "T.parallel" not in scheduled(chain(LARGE), parallel_from=2 * LARGE)


def test_a_chain_becomes_one_loop_until_its_expression_is_too_large():
    assert scheduled(chain(64, steps=3)).count('T.sblock("step') == 1
    assert scheduled(chain(64, steps=3), largest_expression=1).count('T.sblock("step') == 3
    # Each step reads twice what the step before reads: of the 2**12 reads of twelve steps, 256 at most are one loop's.
    assert scheduled(chain(64, steps=12)).count('T.sblock("step') == 2


@pytest.mark.parametrize(
    "twice",
    [
        lambda x: x * x,
        lambda x: tirx.exp(x) + tirx.tanh(x),
        lambda x: tirx.Select(x > 0, x, -x),
        lambda x: tirx.if_then_else(x > 0, x, tirx.abs(x)),
        lambda x: x.astype("int32").astype("float32") - tirx.max(x, tirx.const(0.0, "float32")),
        lambda x: tirx.Select(tirx.Not(x > 0), tirx.const(0.0, "float32"), x),
    ],
    ids=["product", "functions", "select", "if_then_else", "casts", "not"],
)
def test_reads_are_counted_wherever_they_stand(twice: Any):
    """What is read twice is written twice: 2**20 reads in one expression would keep LLVM busy for hours."""
    assert len(scheduled(chain(64, steps=20, element=twice))) < 50_000


def test_reductions_are_spread_over_what_is_left():
    x = te.placeholder((LARGE, 8), "float32", name="x")
    k = te.reduce_axis((0, 8), name="k")
    total = te.compute((LARGE,), lambda i: te.sum(x[i, k], axis=k), name="total")
    assert f"T.parallel({LARGE})" in scheduled(te.create_prim_func([x, total]))


def test_kernels_that_stand_as_they_are_are_left_alone():
    def body(x: Any, out: Any) -> None:
        with T.serial(0, LARGE) as i:
            T.buffer_store(out, x[i], [i])

    function = kernel([((LARGE,), "float32"), ((LARGE,), "float32")], body)
    assert scheduled(function) == function.script()
