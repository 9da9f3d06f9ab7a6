"""Calls of operators without MLIR handles: what they take from an operation, that JSON keeps them, that they run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra.ir.errors import CaptureError
from lutra.ir.graph import Graph
from lutra.ir.operator_call import OperatorCall, Slot
from lutra.ir.types import TensorType

X = torch.randn(3, 4)
CALLS: list[tuple[OperatorCall, tuple[Any, ...], tuple[Any, ...]]] = [
    (OperatorCall("aten.add.Tensor", (Slot(0), Slot(0), 2)), (X,), (X + 2 * X,)),
    (OperatorCall("aten.linear", (Slot(0), Slot(1), None)), (X, X), (X @ X.T,)),
    (OperatorCall("aten.cat", ((Slot(0), Slot(1)), -1)), (X, X), (torch.cat([X, X], -1),)),
    (OperatorCall("aten._to_copy", (Slot(0), 15, None, "cpu", None, False, 0)), (X,), (X.bfloat16(),)),
    (OperatorCall("aten.arange", (Slot(0), 6, 0, "cpu", False)), (5,), (torch.arange(5.0),)),
    (OperatorCall("aten.topk", (Slot(0), 2, -1, True, True)), (X,), tuple(torch.topk(X, 2))),
    (OperatorCall("aten.split.Tensor", (Slot(0), 2, 0)), (X,), (list(X.split(2)),)),
    (OperatorCall("aten.index_copy", (Slot(0), 0, Slot(1), Slot(0))), (X, torch.tensor([2, 0, 1])), (X[[1, 2, 0]],)),
    (OperatorCall("aten.index.Tensor", (Slot(0), (None, Slot(1)))), (X, torch.tensor([3])), (X[:, [3]],)),
    (OperatorCall("aten.view", (Slot(0), (2, -1))), (X.T,), (X.T.reshape(2, -1),)),
    (OperatorCall("aten.mul.Scalar", (Slot(0), float("-inf"))), (torch.ones(2),), (torch.full((2,), float("-inf")),)),
    (OperatorCall("aten.floordiv.int", (Slot(0), 4)), (11,), (2,)),
    (OperatorCall("aten.add.int", (Slot(0), 4)), (11,), (15,)),
    (OperatorCall("aten.size.int", (Slot(0), -1)), (X,), (4,)),
    (OperatorCall("aten.Int.Tensor", (Slot(0),)), (torch.tensor(7),), (7,)),
    (OperatorCall("aten.item", (Slot(0),)), (torch.tensor(0.5),), (0.5,)),
    (OperatorCall("prims.convert_element_type", (Slot(0), 5)), (X,), (X.half(),)),
    (OperatorCall("prim.NumToTensor.Scalar", (Slot(0),), {"dtype": torch.float32}), (2,), (torch.tensor(2.0),)),
    (OperatorCall("prim.ListUnpack", (Slot(0),)), ([1, X],), (1, X)),
    (OperatorCall("lutra.split", (Slot(0),), {"start": 1, "size": 2}), (X,), (X[:, 1:3],)),
    (
        OperatorCall("lutra.layer_norm", (Slot(0), Slot(1), None), {"eps": 1e-5}),
        (X, torch.ones(4)),
        (torch.nn.functional.layer_norm(X, (4,)),),
    ),
]


@pytest.mark.parametrize(
    ("call", "values", "expected"), CALLS, ids=lambda v: v.name if isinstance(v, OperatorCall) else ""
)
def test_calls_run_and_are_the_same_after_json(call: OperatorCall, values: tuple[Any, ...], expected: tuple[Any, ...]):
    again = OperatorCall.from_json(call.to_json())
    assert again == call
    for results in (call(*values), again(*values)):
        assert isinstance(results, tuple)
        torch.testing.assert_close(results, expected)


def test_an_operation_gives_literals_for_constants_and_slots_for_the_rest(parse: Callable[..., Graph]):
    graph = parse(
        """
        %one = torch.constant.int 1
        %half = torch.constant.int 5
        %none = torch.constant.none
        %no = torch.constant.bool false
        %cpu = torch.constant.device "cpu"
        %shape = torch.prim.ListConstruct %n, %one : (!torch.int, !torch.int) -> !torch.list<int>
        %a = torch.aten.view %x, %shape : !torch.vtensor<[3],f32>, !torch.list<int> -> !torch.vtensor<[?,1],f32>
        %b = torch.aten._to_copy %a, %half, %none, %cpu, %none, %no, %none : !torch.vtensor<[?,1],f32>, !torch.int,
            !torch.none, !torch.Device, !torch.none, !torch.bool, !torch.none -> !torch.vtensor<[?,1],f16>
        %c = torch.operator "torch.aten.index_copy"(%x, %one, %i, %x) : (!torch.vtensor<[3],f32>, !torch.int,
            !torch.vtensor<[3],si64>, !torch.vtensor<[3],f32>) -> !torch.vtensor<[3],f32>
        return %b : !torch.vtensor<[?,1],f16>
        """,
        "%x: !torch.vtensor<[3],f32>, %n: !torch.int, %i: !torch.vtensor<[3],si64>",
        "!torch.vtensor<[?,1],f16>",
    )
    x, n, i = graph.function.regions[0].blocks[0].arguments
    view, copy, index_copy = (op for op in graph.operations if len(op.operation.operands) > 2 or "view" in str(op))
    assert OperatorCall.of(view) == (OperatorCall("aten.view", (Slot(0), (Slot(1), 1))), [x, n])
    call, values = OperatorCall.of(copy)
    assert call == OperatorCall("aten._to_copy", (Slot(0), 5, None, "cpu", None, False, None))
    assert values == [view.operation.results[0]]
    # A value that is used twice has one slot.
    expected = OperatorCall("aten.index_copy", (Slot(0), 1, Slot(1), Slot(0)))
    assert OperatorCall.of(index_copy) == (expected, [x, i])


def test_operands_of_lutra_operations_stand_in_the_order_of_their_names(parse: Callable[..., Graph]):
    graph = parse(
        """
        %r = "lutra.linear"(%x, %w, %y) {operandSegmentSizes = array<i32: 1, 1, 0, 1>, lutra.path = "a.b"}
          : (!torch.vtensor<[2,4],bf16>, !torch.vtensor<[3,4],bf16>, !torch.vtensor<[2,3],bf16>)
          -> !torch.vtensor<[2,3],bf16>
        %s = "lutra.split"(%r) {start = 1 : i64} : (!torch.vtensor<[2,3],bf16>) -> !torch.vtensor<[2,2],bf16>
        return %s : !torch.vtensor<[2,2],bf16>
        """,
        "%x: !torch.vtensor<[2,4],bf16>, %w: !torch.vtensor<[3,4],bf16>, %y: !torch.vtensor<[2,3],bf16>",
        "!torch.vtensor<[2,2],bf16>",
    )
    linear, split = list(graph.operations)[:2]
    assert OperatorCall.of(linear)[0] == OperatorCall("lutra.linear", (Slot(0), Slot(1), None, Slot(2)))
    assert OperatorCall.of(split)[0] == OperatorCall("lutra.split", (Slot(0),), {"start": 1, "size": 2})


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        ("dense<[1.0, 2.5]> : tensor<2xbf16>", torch.tensor([1.0, 2.5], dtype=torch.bfloat16)),
        (
            "dense<[[0xFF80, -0.0], [3.0, 0x7F80]]> : tensor<2x2xbf16>",
            torch.tensor([[float("-inf"), -0.0], [3.0, float("inf")]], dtype=torch.bfloat16),
        ),
        (f'dense<"0x{"803FC03F" * 64}"> : tensor<128xbf16>', torch.tensor([1.0, 1.5] * 64, dtype=torch.bfloat16)),
        ("dense<1.5> : tensor<2x3xbf16>", torch.full((2, 3), 1.5, dtype=torch.bfloat16)),
        ("dense<[[1.0, 2.5]]> : tensor<1x2xf16>", torch.tensor([[1.0, 2.5]], dtype=torch.float16)),
        ("dense<[true, false]> : tensor<2xi1>", torch.tensor([True, False])),
        ("dense<7> : tensor<si64>", torch.tensor(7)),
        ("dense<0xFF800000> : tensor<2xf32>", torch.full((2,), float("-inf"))),
    ],
)
def test_constant_tensors_keep_values_and_dtype(parse: Callable[..., Graph], literal: str, expected: torch.Tensor):
    type_ = str(TensorType(tuple(expected.shape), expected.dtype))
    graph = parse(f"%r = torch.vtensor.literal({literal}) : {type_}\nreturn %r : {type_}", results=type_)
    call, values = OperatorCall.of(next(iter(graph.operations)))
    assert values == []
    (got,) = OperatorCall.from_json(call.to_json())()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["aten.no_such_operator", "aten.add.NoSuchOverload", "nowhere.add", "lutra.nothing"])
def test_operators_that_do_not_exist_are_named(name: str):
    with pytest.raises(CaptureError, match=f"'{name}' is not an operator of torch nor of Lutra"):
        OperatorCall(name)()


def test_operators_whose_result_depends_on_data_say_so():
    reading = ["aten.nonzero", "aten.item", "aten.Int.Tensor", "aten.masked_select"]
    others = ["aten.add.Tensor", "aten.size.int", "lutra.linear", "prim.ListUnpack", "aten.view"]
    assert [OperatorCall(name).reads_data for name in (*reading, *others)] == [True] * 4 + [False] * 5
