"""The `lutra` dialect: what its verifiers refuse, and that its text is read back as it was written."""

import sys
from collections.abc import Callable

import pytest
from lutra.ir.context import make_context
from lutra.ir.dialect import quantized_format
from lutra.ir.graph import Graph
from lutra.ir.weights.formats import WeightFormat
from torch_mlir import ir


def tensor(*shape: int | str, dtype: str = "f32") -> str:
    return f"!torch.vtensor<[{','.join(map(str, shape))}],{dtype}>"


def quantized(n: int, k: int, bits: int = 4, group_size: int = 32, scheme: str = "symmetric") -> str:
    return f'!lutra.quantized<{n} : i64, {k} : i64, {bits} : i64, {group_size} : i64, "{scheme}">'


def module(name: str, operands: list[str], attributes: dict[str, str], *results: str) -> str:
    """A module with one `lutra` operation on operands of the given types; it returns the first result."""
    tensors = [(f"%{i}", type_) for i, type_ in enumerate(operands)]
    params = "\n".join(f'{v} = "lutra.param"() {{sym = "p"}} : () -> {t}' for v, t in tensors if t.startswith("!lutra"))
    arguments = ", ".join(f"{v}: {t}" for v, t in tensors if not t.startswith("!lutra"))
    listed = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    values = ", ".join(v for v, _ in tensors)
    call = (
        f'%r:{len(results)} = "lutra.{name}"({values}) {{{listed}}} : ({", ".join(operands)}) -> ({", ".join(results)})'
    )
    return f"func.func @main({arguments}) -> {results[0]} {{\n{params}\n{call}\nreturn %r#0 : {results[0]}\n}}"


def segments(*present: int) -> dict[str, str]:
    return {"operandSegmentSizes": f"array<i32: {', '.join(map(str, present))}>"}


X, SHORT = tensor(2, "?", 64), tensor(2, "?", 8)
ATTENTION = {"scale": "1.0 : f64", "causal": "0 : i64", "merge_heads": "1 : i64", **segments(1, 1, 1, 0)}
Q, KV = tensor(2, 4, "?", 8), tensor(2, 2, 16, 8)
ODD = tensor(1, 1, 1, 7)
STEP = [tensor(2, "?", heads, 8) for heads in (4, 2, 2)]  # q, k and v of `lutra.rope_kv_update`
TABLES, PLACES = [tensor(1, "?", 8)] * 2, tensor("?", dtype="si64")
ENDS = tensor(4, dtype="si32")  # of the groups of `lutra.grouped_linear`
HALVES = {"pairs": '"halves"'}
NORM = {"eps": "1.0e-6 : f64", "round_before_weight": "1 : i64"}
VALID = {
    "linear": ([X, tensor(8, 64)], segments(1, 1, 0, 0), SHORT),
    "linear quantised, with bias and residual": (
        [X, quantized(8, 64), tensor(8), SHORT],
        segments(1, 1, 1, 1),
        SHORT,
    ),
    "table": ([tensor(3, 10)], {"half": "1 : i64"}, tensor(3, 3, 8)),
    "table_linear": ([tensor(2, 16, 16), quantized(8, 64)], segments(1, 1, 0, 0), tensor(2, 8)),
    "grouped_linear": ([tensor("?", 64), quantized(32, 64), ENDS], {}, tensor("?", 8)),
    "rms_norm": ([X, tensor(64)], NORM, X),
    "layer_norm": ([X, tensor(64), tensor(64)], {"eps": "1.0e-6 : f64", **segments(1, 1, 1)}, X),
    "rope": ([Q, tensor(1, "?", 8), tensor(1, "?", 8)], HALVES, Q),
    "rope of adjacent columns": ([Q, tensor(1, "?", 8), tensor(1, "?", 8)], {"pairs": '"adjacent"'}, Q),
    "gated_mlp": ([X], {"activation": '"silu"', **segments(1, 0)}, tensor(2, "?", 32)),
    "split": ([X], {"start": "16 : i64"}, tensor(2, "?", 48)),
    "kv_update": ([KV, tensor(2, 2, 1, 8), tensor(1, dtype="si64")], {}, KV),
    "rope_kv_update": ([*STEP, *TABLES, KV, KV, PLACES], {}, Q, KV, KV),
    "attention": ([Q, KV, KV], ATTENTION, tensor(2, "?", 32)),
}
REFUSED = [
    ("linear", [X, tensor(8, 63)], segments(1, 1, 0, 0), SHORT, "x has 64 features but the weight takes 63"),
    ("linear", [X, quantized(8, 32)], segments(1, 1, 0, 0), SHORT, "x has 64 features but the weight takes 32"),
    ("linear", [X, tensor(8, 64)], segments(1, 1, 0, 0), X, "result has 64 features but the weight gives 8"),
    ("linear", [X, tensor(64)], segments(1, 1, 0, 0), SHORT, "weight must be [N, K], got rank 1"),
    ("linear", [X, tensor(8, 64), tensor(7)], segments(1, 1, 1, 0), SHORT, "bias must be [8], got [7]"),
    ("linear", [X, tensor(8, 64), X], segments(1, 1, 0, 1), SHORT, "residual must end in 8 features"),
    ("table", [X], {"half": "0 : i64"}, tensor(2, "?", 16, 8), "result must end in 16 entries, got 8"),
    ("table", [tensor(3, 10)], {"half": "1 : i64"}, tensor(3, 2, 8), "10 columns make 3 tables, got 2"),
    ("table", [X], {}, tensor(2, "?", 16, 8), "attribute"),
    ("table_linear", [X, tensor(8, 64)], segments(1, 1, 0, 0), SHORT, "weight must be !lutra.quantized"),
    (
        "table_linear",
        [tensor(2, 15, 8), quantized(8, 64)],
        segments(1, 1, 0, 0),
        tensor(2, 8),
        "weight takes 64 columns but there are 15 tables of 4",
    ),
    ("grouped_linear", [X, quantized(32, 64), ENDS], {}, SHORT, "x must be [S, K] and offsets [E]"),
    ("grouped_linear", [tensor(9, 32), quantized(32, 64), ENDS], {}, tensor(9, 8), "x has 32 features but the weight"),
    (
        "grouped_linear",
        [tensor(9, 64), quantized(32, 64), ENDS],
        {},
        tensor(9, 32),
        "4 groups of 32 features need as many rows, the weight has 32",
    ),
    ("grouped_linear", [tensor(9, 64), tensor(32, 64), ENDS], {}, tensor(9, 8), "weight must be !lutra.quantized"),
    ("rms_norm", [X, tensor(32)], NORM, X, "weight must be [64], got [32]"),
    ("rms_norm", [X, tensor(64)], {**NORM, "eps": "-1.0 : f64"}, X, "eps must not be negative"),
    (
        "layer_norm",
        [X, tensor(1, 64)],
        {"eps": "0.0 : f64", **segments(1, 1, 0)},
        X,
        "weight must be [64], got [1, 64]",
    ),
    ("rope", [Q, KV, KV], HALVES, Q, "got ranks 4 and 4"),
    ("rope", [Q, tensor(1, "?", 4), tensor(1, "?", 4)], HALVES, Q, "does not fit x"),
    ("rope", [Q, tensor(1, "?", 8), tensor(1, "?", 4)], HALVES, Q, "does not fit x"),
    ("rope", [ODD, tensor(1, 1, 7), tensor(1, 1, 7)], HALVES, ODD, "head size must be even"),
    ("rope", [Q, tensor(1, "?", 8), tensor(1, "?", 8)], {"pairs": '"odd"'}, Q, "pairs 'odd' is not one of halves"),
    ("rope", [Q, tensor(1, "?", 8), tensor(1, "?", 8)], {}, Q, "attribute"),
    ("gated_mlp", [X], {"activation": '"tanh"', **segments(1, 0)}, X, "activation 'tanh' is not one of silu"),
    ("gated_mlp", [X], {"activation": '"silu"', **segments(1, 0)}, X, "gate has 64 features, the result 64"),
    ("split", [X], {"start": "60 : i64"}, SHORT, "[60, 68) is not inside the 64 features of x"),
    ("split", [X], {"start": "-1 : i64"}, SHORT, "[-1, 7) is not inside"),
    ("kv_update", [X, X, tensor(1, dtype="si64")], {}, X, "cache and new must be [B, G, L, D]"),
    ("kv_update", [KV, tensor(2, 2, 1, 8, dtype="bf16"), tensor(1, dtype="si64")], {}, KV, "the new entries are"),
    ("kv_update", [KV, KV, tensor(1, dtype="si64")], {}, tensor(2, 2, 9, 8), "cache and result types differ"),
    ("rope_kv_update", [X, *STEP[1:], *TABLES, KV, KV, PLACES], {}, (Q, KV, KV), "q, k, v must be [B, S, heads, D]"),
    ("rope_kv_update", [*STEP, *TABLES, Q, KV, PLACES], {}, (Q, Q, KV), "do not fit a cache [2, 4, None, 8]"),
    ("rope_kv_update", [*STEP, X, X, KV, KV, PLACES], {}, (Q, KV, KV), "cos [2, None, 64] does not fit q"),
    ("rope_kv_update", [*STEP, *TABLES, KV, KV, X], {}, (Q, KV, KV), "positions must be [S]"),
    ("rope_kv_update", [*STEP, *TABLES, KV, KV, PLACES], {}, (Q, KV, X), "cache and result types differ"),
    (
        "rope_kv_update",
        [*STEP, *TABLES, KV, tensor(2, 2, 16, 8, dtype="bf16"), PLACES],
        {},
        (Q, KV, tensor(2, 2, 16, 8, dtype="bf16")),
        "must have one dtype",
    ),
    ("attention", [X, KV, KV], ATTENTION, X, "q, k and v must have rank 4"),
    ("attention", [tensor(2, 4, 3, 6), KV, KV], ATTENTION, X, "q has head size 6, k 8"),
    ("attention", [tensor(2, 3, 3, 8), KV, KV], ATTENTION, X, "2 key/value heads do not divide 3 query heads"),
    ("attention", [Q, KV, KV], ATTENTION, Q, "result must have rank 3"),
]


@pytest.mark.parametrize("name", VALID)
def test_valid_operations_are_read_back_from_their_text_as_they_were(name: str):
    parsed = ir.Module.parse(module(name.split()[0], *VALID[name]), make_context())
    parsed.operation.verify()
    text = str(parsed)
    assert str(ir.Module.parse(text, make_context())) == text


@pytest.mark.parametrize(("name", "operands", "attributes", "results", "complaint"), REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(
    name: str, operands: list[str], attributes: dict[str, str], results: str | tuple[str, ...], complaint: str
):
    with pytest.raises(ir.MLIRError) as refused:
        given = (results,) if isinstance(results, str) else results
        ir.Module.parse(module(name, operands, attributes, *given), make_context())
    assert f"lutra.{name}: " in str(refused.value)
    assert complaint in str(refused.value)


def test_the_type_of_a_quantised_weight_names_its_format():
    with make_context():
        type_ = ir.Type.parse(quantized(8, 96, 2, 32, "ternary"))
        assert quantized_format(type_) == (8, 96, WeightFormat(2, 32, "ternary"))
        assert quantized_format(ir.Type.parse(tensor(8, 96))) is None


def test_symbolic_sizes_fit_everything(parse: Callable[..., Graph]):
    any_ = tensor("?", "?", "?", "?")
    listed = ", ".join(f"{key} = {value}" for key, value in ATTENTION.items())
    body = f'%r = "lutra.attention"(%q, %q, %q) {{{listed}}} : ({any_}, {any_}, {any_}) -> {tensor("?", "?", "?")}'
    parse(f"{body}\nreturn %r : {tensor('?', '?', '?')}", f"%q: {any_}", tensor("?", "?", "?"))


def test_reading_operations_looks_for_no_module(parse: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch):
    """The bindings search their own package for our dialect whenever an operation is read, if they may."""
    asked: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            asked.append(name)

    graph = parse(f'%w = "lutra.param"() {{sym = "p"}} : () -> {tensor(8)}\nreturn %w : {tensor(8)}', "", tensor(8))
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert [op.operation.name for op in graph.operations] == ["lutra.param", "func.return"]
    assert not [name for name in asked if "lutra" in name]
