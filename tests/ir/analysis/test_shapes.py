"""Symbolic shapes: whatever the arguments' sizes, the expressions give the sizes that a run really has."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
from lutra.ir.analysis.shapes import SymbolicValue, SymbolicValues, symbolic_values
from lutra.ir.graph import Graph
from lutra.ir.interpreter import evaluate
from lutra.ir.weights.formats import QuantizedWeight
from lutra.passes.base import PassContext, PassReport
from lutra.passes.fuse.fuse import Fuse
from torch import nn


def sizes_of(graph: Graph, arguments: list[Any]) -> dict[sympy.Symbol, int]:
    """What each symbol of the graph stands for in a call."""
    known: dict[sympy.Symbol, int] = {}
    for spec, shape, value in zip(graph.inputs, graph.input_shapes, arguments, strict=True):
        pairs = (
            [(spec.symbol, value)] if spec.symbol is not None else zip(shape, getattr(value, "shape", ()), strict=True)
        )
        known |= {s: int(n) for s, n in pairs if isinstance(s, sympy.Symbol)}
    return known


def check(symbolic: SymbolicValues, graph: Graph, arguments: list[Any]) -> None:
    """Every value of a run has the dtype and the sizes that were predicted."""
    known, run = sizes_of(graph, arguments), {}
    evaluate(graph, arguments, on_value=lambda value, result: run.update({value: result}))

    def compare(predicted: Any, actual: Any) -> None:
        if isinstance(predicted, tuple):
            for p, a in zip(predicted, actual, strict=True):
                compare(p, a)
        elif predicted is None:
            assert not isinstance(actual, torch.Tensor)
        elif predicted.number is not None:
            assert float(predicted.number.subs(known)) == pytest.approx(actual)
        else:
            assert predicted.dtype == actual.dtype
            assert tuple(int(d.subs(known)) for d in predicted.shape) == tuple(actual.shape)

    for value, predicted in symbolic.by_value(graph).items():
        if value in run:  # all but parameters
            compare(predicted, run[value])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_predictions_hold_for_models_before_and_after_fusion(
    name: str, make_model: Callable[[str], nn.Module], captured: Any
):
    model = make_model(name)
    compiled = torch.compile(model, backend=captured, dynamic=True, fullgraph=True)
    with torch.no_grad():
        for batch, length in ((2, 7), (3, 5)):
            tokens = torch.randint(3, 60, (batch, length))
            compiled(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    graph = captured.graph
    assert len(graph.symbol_ranges) == 2
    for stage in ("imported", "fused"):
        if stage == "fused":
            Fuse().run(graph, PassContext(PassReport("fuse")))
        symbolic = symbolic_values(graph)
        assert not symbolic.unbacked
        for call in captured.calls:
            check(symbolic, graph, call.arguments)


def run(captured: Any, function: Callable[..., Any], *arguments: Any) -> Graph:
    """Capture `function` with dynamic shapes; the graph."""
    with torch.no_grad():
        got = torch.compile(function, backend=captured, dynamic=True, fullgraph=True)(*arguments)
        torch.testing.assert_close(got, function(*arguments))
    return captured.graph


FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "a sum of sizes": (lambda x, y: torch.cat([x, y]), (torch.randn(5, 6), torch.randn(4, 6))),
    "a multiple": (lambda x: torch.arange(x.shape[0] * 4)[:: 2 * 2] + x[0, 0], (torch.randn(5, 6),)),
    "the smaller of two sizes": (lambda x, y: x[: y.shape[0]] + 1, (torch.randn(9, 2), torch.randn(3, 2))),
    "a size that must be a multiple of four": (lambda x: x.reshape(x.shape[0] // 4, 4, -1) + 1, (torch.randn(8, 3),)),
    "windows of even size": (lambda x: x.view(-1, x.shape[1] // 2) + 1, (torch.randn(5, 6),)),
    "padding by a symbolic amount": (
        lambda x, y: nn.functional.pad(x, (0, y.shape[0] - x.shape[0])),
        (torch.randn(3, 4), torch.randn(9)),
    ),
    "a list of tensors": (lambda x: torch.split(x, 2, 1)[1] + 1, (torch.randn(5, 6),)),
    "several results": (lambda x: torch.topk(x, 2), (torch.randn(5, 6),)),
    "upsampling": (lambda x: nn.functional.interpolate(x, scale_factor=2.0), (torch.randn(1, 3, 5, 6),)),
    "complex numbers": (lambda x: torch.fft.fft(x).real, (torch.randn(5, 6),)),
    "another tensor's size, which is larger": (
        lambda x, y: x[: y.shape[0]] * 2,
        (torch.randn(5, 4), torch.randn(10, 4)),
    ),
    "an argument's value": (lambda x, n: torch.arange(n)[: x.shape[0]] + x[0, 0], (torch.randn(5, 6), 9)),
    "a rounded part of a size": (lambda x: x[: math.ceil(x.shape[0] * 0.5)] + 1, (torch.randn(5, 4),)),
    "upsampling by a fraction": (lambda x: nn.functional.interpolate(x, scale_factor=1.5), (torch.randn(1, 3, 5, 6),)),
    "a number that is no size": (lambda x: x * (x.shape[0] ** 0.5) + x.shape[1] / 3, (torch.randn(5, 6),)),
    "the larger of two sizes": (
        lambda x, y: nn.functional.pad(x, (0, max(x.shape[0], y.shape[0]))),
        (torch.randn(3, 4), torch.randn(9)),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_predictions_hold_for_functions_of_sizes(name: str, captured: Any):
    function, arguments = FUNCTIONS[name]
    graph = run(captured, function, *arguments)
    symbolic = symbolic_values(graph)
    check(symbolic, graph, captured.arguments)
    assert not symbolic.unbacked


def test_sizes_that_depend_on_data_are_fresh_symbols(captured: Any):
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        graph = run(captured, lambda x: (x.nonzero(), (x > 0.5).nonzero(), x[x > 0] + 1), torch.randn(9))
    symbolic = symbolic_values(graph)
    results = next(op for op in graph.operations if op.operation.name == "func.return").operation.operands
    values = symbolic.by_value(graph)
    rows = [values[v].shape[0] for v in results if values[v] and values[v].shape]
    assert len({*rows}) == 3
    assert {*rows} == symbolic.unbacked


def test_arguments_whose_sizes_are_expressions_keep_them(parse: Callable[..., Graph]):
    s, t = sympy.symbols("s0 s1", integer=True, positive=True)
    x, y, z = "!torch.vtensor<[?,?],f32>", "!torch.vtensor<[?],f32>", "!torch.vtensor<[?,?],f32>"
    graph = parse(
        f"""
        %zero = torch.constant.int 0
        %one = torch.constant.int 1
        %l = torch.prim.ListConstruct %x, %x : ({x}, {x}) -> !torch.list<vtensor>
        %a = torch.aten.cat %l, %zero : !torch.list<vtensor>, !torch.int -> {z}
        %n = torch.aten.size.int %a, %zero : {z}, !torch.int -> !torch.int
        %m = torch.aten.add.int %n, %k : !torch.int, !torch.int -> !torch.int
        return %m : !torch.int
        """,
        f"%x: {x}, %y: {y}, %k: !torch.int",
        "!torch.int",
    )
    graph.input_shapes = [(4 * s, t + 1), (t,), ()]
    graph.symbol_ranges = {s: (2, 2**62), t: (2, 30)}
    object.__setattr__(graph.inputs[2], "symbol", t)
    symbolic = symbolic_values(graph)
    assert symbolic.arguments == (
        SymbolicValue((4 * s, t + 1), torch.float32),
        SymbolicValue((t,), torch.float32),
        SymbolicValue(number=t),
    )
    assert symbolic.results[3] == (SymbolicValue((8 * s, t + 1), torch.float32),)
    assert symbolic.results[5] == (SymbolicValue(number=8 * s + t),)
    assert not symbolic.unbacked


def test_quantised_parameters_are_not_computed(parse: Callable[..., Graph]):
    weight = '!lutra.quantized<6 : i64, 64 : i64, 3 : i64, 32 : i64, "asymmetric">'
    x, t, y = "!torch.vtensor<[?,64],bf16>", "!torch.vtensor<[?,16,8],f32>", "!torch.vtensor<[?,6],bf16>"
    graph = parse(
        f"""
        %w = "lutra.param"() {{sym = "w@a3g32"}} : () -> {weight}
        %t = "lutra.table"(%x) {{half = 1 : i64}} : ({x}) -> {t}
        %y = "lutra.table_linear"(%t, %w) {{operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({t}, {weight}) -> {y}
        %z = "lutra.linear"(%x, %w) {{operandSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({x}, {weight}) -> {y}
        return %y : {y}
        """,
        f"%x: {x}",
        y,
    )

    def never(*_: Any) -> QuantizedWeight:
        raise AssertionError("the weight was computed")

    graph.store.bind("w", torch.zeros(1))
    graph.store.derive("w@a3g32", ["w"], never)
    s = sympy.Symbol("s7", integer=True, positive=True)
    graph.input_shapes, graph.symbol_ranges = [(s, sympy.Integer(64))], {s: (2, 2**62)}
    results = symbolic_values(graph).results
    assert results[0] == (SymbolicValue((sympy.Integer(6), sympy.Integer(64))),)
    assert results[1] == (SymbolicValue((s, sympy.Integer(16), sympy.Integer(8)), torch.float32),)
    assert results[2] == results[3] == (SymbolicValue((s, sympy.Integer(6)), torch.bfloat16),)
