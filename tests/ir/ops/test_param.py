"""Parameters and numbers: what the verifiers refuse, what they stand for."""

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from lutra.ir.errors import CaptureError
from lutra.ir.graph import Graph
from lutra.ir.interpreter import interpret
from lutra.ir.operator_call import OperatorCall
from lutra.ir.ops import NumberOp, ParamOp
from lutra.ir.weights.store import ParameterStore
from lutra.tests.support.operations import quantized, read_back, refusal, tensor, written


@pytest.mark.parametrize(
    "text",
    [
        written("param", sym="a.weight", out=tensor(8, 4)),
        written("param", sym="a.weight@s4g32", out=quantized(8, 64)),
        written("number", expression="2*s0", out="!torch.int"),
        written("number", expression="1/s0", out="!torch.float"),
    ],
)
def test_valid_operations_are_read_back_as_they_were(text: str):
    read_back(text)


@pytest.mark.parametrize(
    ("name", "fields", "complaint"),
    [
        ("param", {"sym": "", "out": tensor(8)}, "sym is empty"),
        ("param", {"sym": "a", "out": "!torch.int"}, "a parameter is a tensor or a quantised weight, got !torch.int"),
        ("number", {"expression": "", "out": "!torch.int"}, "expression is empty"),
        ("number", {"expression": "s0", "out": tensor()}, "a number is an int or a float, got !torch.vtensor"),
    ],
)
def test_what_they_cannot_be_is_refused(name: str, fields: dict[str, Any], complaint: str):
    assert f"lutra.{name}: {complaint}" in refusal(written(name, **fields))


def test_a_parameter_is_what_the_store_has_under_its_name(parse: Callable[..., Graph]):
    store, weight = ParameterStore(), torch.randn(3)
    store.bind("a", weight)
    assert torch.equal(ParamOp.reference(store, sym="a"), weight)
    graph = parse(f'%w = "lutra.param"() {{sym = "a"}} : () -> {tensor(3)}\nreturn %w : {tensor(3)}', "", tensor(3))
    graph.store = store
    assert torch.equal(interpret(graph, [])[0], weight)


def test_a_number_is_its_expression_in_the_sizes():
    size = sympy.Symbol("s0", integer=True, positive=True)
    assert NumberOp.reference({size: 7}, expression=2 * size + 1) == 15
    assert NumberOp.reference({size: 4}, expression=sympy.Float(1) / size) == 0.25


@pytest.mark.parametrize("cls", [ParamOp, NumberOp])
def test_no_call_without_a_graph_stands_for_them(cls: Any):
    with pytest.raises(CaptureError, match=f"'{cls.OPERATION_NAME}' is not an operator"):
        OperatorCall(cls.OPERATION_NAME)()
