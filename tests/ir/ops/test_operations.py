"""Every operation says all there is to say about it, and every verifier answers whatever it is asked."""

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lutra.codegen.lowering.registry import LOWERINGS
from lutra.ir import ops
from lutra.ir.context import make_context
from lutra.ir.graph import Graph
from lutra.ir.ops import OPERATIONS, NumberOp, Op, quantized_format
from lutra.ir.weights.formats import WeightFormat
from lutra.tests.support.assets import ROOT
from lutra.tests.support.fuzzing import random
from lutra.tests.support.operations import quantized, tensor, written
from torch_mlir import ir

DOCUMENT = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
every = pytest.mark.parametrize("cls", OPERATIONS.values(), ids=lambda cls: cls.OPERATION_NAME)


@every
def test_an_operation_has_formula_verifier_reference_cost_and_documentation(cls: type[Op]):
    own, fields = vars(cls), cls.SIGNATURE
    assert {"check", "reference", "cost"} <= own.keys()
    assert re.search(r"^.+\.\n\n    \S", inspect.cleandoc(cls.__doc__ or "")), "one line, then the formula, indented"
    assert cls.cost.__doc__, "says in words what it costs"
    section = DOCUMENT.split(f"\n## {cls.OPERATION_NAME}\n")[1].split("\n## ")[0]
    assert inspect.cleandoc(cls.__doc__ or "") in section
    assert all(f"`{field.name}`" in section for field in (*fields.operands, *fields.attributes, *fields.results))
    assert set(cls.OVERWRITES) <= {field.name for field in fields.operands}
    assert set(cls.OVERWRITES.values()) <= {field.name for field in fields.results}


@every
def test_a_reference_takes_operands_in_order_and_attributes_by_name(cls: type[Op]):
    parameters = inspect.signature(cls.reference).parameters.values()
    places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if cls.NEEDS_GRAPH:  # which comes first
        places = places[1:]
    assert [p.name for p in places] == [field.name for field in cls.SIGNATURE.operands]
    assert [p.default is None for p in places] == [field.optional for field in cls.SIGNATURE.operands]
    assert keywords == {f.name for f in cls.SIGNATURE.attributes} | cls.from_result(tensor(2, 3)).keys()


def test_every_file_of_operations_is_read():
    files = {path.stem for path in Path(ops.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert {cls.__module__.rpartition(".")[2] for cls in OPERATIONS.values()} == files


def test_lowerings_are_for_operations_that_exist_and_for_all_but_numbers_which_are_sizes():
    import lutra.codegen.lowering  # noqa: F401  (registers them)

    lowered = {name for name in LOWERINGS if name.startswith("lutra.")}
    assert lowered == OPERATIONS.keys() - {NumberOp.OPERATION_NAME}


SIZES = st.sampled_from([0, 1, 2, 3, 4, 7, 8, 16, 64, "?"])
TYPES = st.one_of(
    st.builds(
        lambda shape, dtype: tensor(*shape, dtype=dtype),
        st.lists(SIZES, max_size=5),
        st.sampled_from(["f32", "bf16", "si64", "i1"]),
    ),
    st.builds(
        quantized,
        *[st.sampled_from([0, 8, 64])] * 2,
        st.sampled_from([0, 2, 4, 5]),
        st.sampled_from([0, 32, 48]),
        st.sampled_from(["symmetric", "ternary", "odd"]),
    ),
    st.sampled_from(["!torch.int", "!torch.float", "!torch.list<int>", "!torch.vtensor", "!torch.vtensor<*,f32>"]),
)
VALUES = {
    "integer": st.integers(-2, 9),
    "float": st.sampled_from([0.0, -1.0, 1e-5, 1e300]),
    "string": st.sampled_from(["", "halves", "adjacent", "silu", "a.weight", "s0 +"]),
}


@st.composite
def texts(draw: st.DrawFn, cls: type[Op]) -> str:
    """The operation, mostly of parts that do not fit; an attribute may be missing."""
    fields = cls.SIGNATURE
    drawn = {field.name: draw(TYPES) for field in (*fields.operands, *fields.results)}
    for field in fields.operands:
        if field.optional and draw(st.booleans()):
            del drawn[field.name]
    given = [field for field in fields.attributes if draw(st.integers(0, 9))]
    return written(cls._op_name, **drawn, **{field.name: draw(VALUES[field.kind or ""]) for field in given})


@every
def test_a_verifier_takes_an_operation_or_says_why_not(cls: type[Op]):
    context = make_context()

    @random(150, seconds=None)
    @given(texts(cls))
    def answers(text: str) -> None:
        try:
            ir.Module.parse(text, context)
        except ir.MLIRError as refused:
            assert cls.OPERATION_NAME in str(refused) or "lutra.param" in str(refused)

    answers()


def test_the_type_of_a_quantised_weight_names_its_format():
    with make_context():
        type_ = ir.Type.parse(quantized(8, 96, 2, 32, "ternary"))
        assert quantized_format(type_) == (8, 96, WeightFormat(2, 32, "ternary"))
        assert quantized_format(ir.Type.parse(tensor(8, 96))) is None


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
