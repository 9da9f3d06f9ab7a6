"""The interpreter on graphs from text; whole models stand in `test_fx_import.py`."""

from collections.abc import Callable

import pytest
import torch
from lutra.ir.errors import CaptureError
from lutra.ir.graph import Graph
from lutra.ir.interpreter import evaluate, interpret
from lutra.ir.weights.formats import QuantizedWeight, WeightFormat, dequantize

X = "!torch.vtensor<[3,4],f32>"
W = '!lutra.quantized<5 : i64, 4 : i64, 4 : i64, 0 : i64, "symmetric">'
Y = "!torch.vtensor<[3,5],f32>"
LINEAR = f"""
    %w = "lutra.param"() {{sym = "w@s4gc"}} : () -> {W}
    %y = "lutra.linear"(%x, %w) {{operandSegmentSizes = array<i32: 1, 1, 0, 0>, lutra.path = "mlp.up"}}
        : ({X}, {W}) -> {Y}
    return %y : {Y}
"""


def codes(weight: torch.Tensor) -> QuantizedWeight:
    """Any quantised weight that depends on `weight`."""
    q = (weight.abs() * 4).clamp(max=15).to(torch.uint8)
    return QuantizedWeight(q, torch.full((len(q), 1), 0.25).half(), None, WeightFormat(4, 0))


def test_torch_and_lutra_operations_mix(parse: Callable[..., Graph]):
    graph = parse(
        f"""
        %one = torch.constant.int 1
        %two = torch.constant.int 2
        %zero = torch.constant.int 0
        %a = torch.aten.add.Scalar %x, %n, %two : {X}, !torch.int, !torch.int -> {X}
        %b = "lutra.split"(%a) {{start = 1 : i64}} : ({X}) -> !torch.vtensor<[3,2],f32>
        %c = torch.aten.transpose.int %b, %one, %zero : !torch.vtensor<[3,2],f32>, !torch.int, !torch.int
            -> !torch.vtensor<[2,3],f32>
        %s = torch.prim.ListConstruct %n, %two : (!torch.int, !torch.int) -> !torch.list<int>
        %d = torch.aten.view %c, %s : !torch.vtensor<[2,3],f32>, !torch.list<int> -> !torch.vtensor<[?,2],f32>
        return %d, %n : !torch.vtensor<[?,2],f32>, !torch.int
        """,
        f"%x: {X}, %n: !torch.int",
        "!torch.vtensor<[?,2],f32>, !torch.int",
    )
    x = torch.randn(3, 4)
    # A view of a transposed tensor: values in the IR have no strides.
    torch.testing.assert_close(interpret(graph, [x, 3]), [(x + 6)[:, 1:3].T.reshape(3, 2), 3])


def test_derived_parameters_are_computed_from_the_store(parse: Callable[..., Graph]):
    graph, weight, x = parse(LINEAR, f"%x: {X}", Y), torch.randn(5, 4), torch.randn(3, 4)
    graph.store.bind("w", weight)
    graph.store.derive("w@s4gc", ["w"], codes)
    (got,) = interpret(graph, [x])
    torch.testing.assert_close(got, x @ dequantize(codes(weight)).T)


def test_results_that_are_written_to_arguments_come_as_values(parse: Callable[..., Graph]):
    kv, new = "!torch.vtensor<[1,2,4,2],f32>", "!torch.vtensor<[1,2,1,2],f32>"
    graph = parse(
        f'%r = "lutra.kv_update"(%c, %n, %p) : ({kv}, {new}, !torch.vtensor<[1],si64>) -> {kv}\nreturn %r : {kv}',
        f"%c: {kv}, %n: {new}, %p: !torch.vtensor<[1],si64>",
        kv,
    )
    graph.mutations = {0: 0}
    cache = torch.randn(1, 2, 4, 2)
    before = cache.clone()
    (got,) = interpret(graph, [cache, torch.ones(1, 2, 1, 2), torch.tensor([2])])
    assert torch.equal(cache, before)
    assert (got[:, :, 2] == 1).all()


def test_every_argument_and_result_is_shown_once_in_order(parse: Callable[..., Graph]):
    graph = parse(
        f"""
        %zero = torch.constant.int 0
        %no = torch.constant.bool false
        %a, %i = torch.aten.max.dim %x, %zero, %no : {X}, !torch.int, !torch.bool
            -> !torch.vtensor<[4],f32>, !torch.vtensor<[4],si64>
        return %a : !torch.vtensor<[4],f32>
        """,
        f"%x: {X}",
        "!torch.vtensor<[4],f32>",
    )
    x, seen = torch.randn(3, 4), []
    evaluate(graph, [x], on_value=lambda value, result: seen.append((str(value.type), result)))
    assert [kind for kind, _ in seen] == [
        X,
        "!torch.int",
        "!torch.bool",
        "!torch.vtensor<[4],f32>",
        "!torch.vtensor<[4],si64>",
    ]
    torch.testing.assert_close([result for _, result in seen], [x, 0, False, *x.max(0)])


def test_operators_without_semantics_are_named_with_their_place(parse: Callable[..., Graph]):
    graph = parse(
        f"""
        %r = torch.operator "torch.acme.frobnicate"(%x) {{lutra.path = "model.layers.0"}} : ({X}) -> {X}
        return %r : {X}
        """,
        f"%x: {X}",
        X,
    )
    with pytest.raises(CaptureError, match=r"'acme.frobnicate' is not an operator .*in module 'model.layers.0'"):
        interpret(graph, [torch.randn(3, 4)])


def test_operands_that_do_not_fit_are_reported_with_the_operation(parse: Callable[..., Graph]):
    graph = parse(LINEAR, f"%x: {X}", Y)
    graph.store.bind("w", torch.randn(5, 4))
    graph.store.derive("w@s4gc", ["w"], codes)
    with pytest.raises(CaptureError, match=r"lutra.linear failed on .*\(in module 'mlp.up'\)"):
        interpret(graph, [torch.randn(3, 7)])


def test_a_wrong_number_of_arguments_is_reported(parse: Callable[..., Graph]):
    graph = parse(f"return %x : {X}", f"%x: {X}", X)
    with pytest.raises(CaptureError, match="the graph takes 1 arguments, 2 were given"):
        interpret(graph, [torch.randn(3, 4)] * 2)
