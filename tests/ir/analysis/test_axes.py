"""Axes: small graphs from text for the rules, and architectures in miniature for what the analysis is for."""

from collections.abc import Callable

import pytest
from lutra.ir.analysis.axes import Axes, axes
from lutra.ir.graph import Graph
from lutra.tests.support.architectures import ARCHITECTURES, Sizes
from lutra.tests.support.studied import STAGES, Dim, StudiedGraph, study


def tensor(*shape: int, dtype: str = "f32") -> str:
    return f"!torch.vtensor<[{','.join(map(str, shape))}],{dtype}>"


# Text: a linear and attention say what axes are, and views carry it ---------------------------------------------------


def last(graph: Graph) -> tuple[Axes, list]:
    """Axes, and the results of `@main`."""
    found = axes(graph)
    return found, list(list(graph.operations)[-1].operation.operands)


ATTENTION = (
    '%a = "lutra.attention"(%q, %k, %v) {scale = 1.0 : f64, causal = 0 : i64, merge_heads = 0 : i64, '
    "operandSegmentSizes = array<i32: 1, 1, 1, 0>} : "
)


@pytest.fixture
def attended(parse: Callable[..., Graph]) -> Callable[..., tuple[Axes, list]]:
    """`attended(B, H, G, S, L, D)`: `lutra.attention` on three arguments, and its result."""

    def run(b: int, h: int, g: int, s: int, length: int, d: int) -> tuple[Axes, list]:
        q, k = tensor(b, h, s, d), tensor(b, g, length, d)
        body = f"{ATTENTION}({q}, {k}, {k}) -> {q}\nreturn %a : {q}"
        graph = parse(body, f"%q: {q}, %k: {k}, %v: {k}", q)
        return last(graph)[0], [*graph.function.regions[0].blocks[0].arguments, *last(graph)[1]]

    return run


def test_attention_says_what_its_operands_are(attended):
    found, (q, k, v, out) = attended(2, 4, 4, 3, 5, 8)
    assert found.kinds(q) == ("batch", "head", "sequence", "head_size")
    assert found.kinds(k) == ("batch", "head", "key", "head_size")
    assert found.of(q)[0] == found.of(k)[0] == found.of(v)[0]
    assert found.of(k)[2] == found.of(v)[2] != found.of(q)[2]
    assert found.of(out) == (*found.of(q)[:3], found.of(v)[3])


def test_query_heads_are_key_heads_times_queries_of_each(attended):
    found, (q, k, *_) = attended(2, 4, 2, 3, 5, 8)
    assert found.kinds(q)[1] == "head*head"
    assert found.of(q)[1][0] == found.of(k)[1][0]


@pytest.mark.parametrize("size", [1, 4])
def test_equal_sizes_are_not_taken_for_one_axis(attended, size: int):
    found, (q, k, *_) = attended(size, size, size, size, size, size)
    assert found.kinds(q) == ("batch", "head", "sequence", "head_size")
    assert found.kinds(k) == ("batch", "head", "key", "head_size")
    assert len({axis for dimension in (*found.of(q), *found.of(k)) for axis in dimension}) == 5


def linear(rows: tuple[int, ...], k: int, n: int) -> str:
    return (
        f'%w = "lutra.param"() {{sym = "w"}} : () -> {tensor(n, k)}\n'
        f"%none = torch.constant.none\n"
        f"%y = torch.aten.linear %x, %w, %none : {tensor(*rows, k)}, {tensor(n, k)}, !torch.none -> {tensor(*rows, n)}"
    )


def test_what_is_not_anchored_is_unknown(parse):
    x, y = tensor(4, 4), tensor(4, 4)
    found, (out,) = last(parse(f"{linear((4,), 4, 4)}\nreturn %y : {y}", f"%x: {x}", y))
    assert found.kinds(out) == ("unknown", "feature")


def reshaped(parse, before: tuple[int, ...], *shapes: tuple[int, ...]) -> tuple[Axes, list]:
    """A value through views of those shapes: all of them."""
    lines, source, results = [], "%x", []
    for number, shape in enumerate(shapes):
        sizes = [f"%s{number}_{i} = torch.constant.int {size}" for i, size in enumerate(shape)]
        names = ", ".join(f"%s{number}_{i}" for i in range(len(shape)))
        types = ", ".join(["!torch.int"] * len(shape))
        lines += [*sizes, f"%l{number} = torch.prim.ListConstruct {names} : ({types}) -> !torch.list<int>"]
        old = before if number == 0 else shapes[number - 1]
        view = f"torch.aten.view {source}, %l{number} : {tensor(*old)}, !torch.list<int> -> {tensor(*shape)}"
        source = f"%v{number}"
        lines.append(f"{source} = {view}")
        results.append(source)
    types = ", ".join(tensor(*shape) for shape in shapes)
    body = "\n".join([*lines, f"return {', '.join(results)} : {types}"])
    graph = parse(body, f"%x: {tensor(*before)}", types)
    found, values = last(graph)
    return found, [graph.function.regions[0].blocks[0].arguments[0], *values]


@pytest.mark.parametrize(
    ("before", "merged"),
    [((2, 3, 5), (6, 5)), ((4, 4, 4), (16, 4)), ((2, 1, 5), (2, 5)), ((1, 3, 5), (3, 5)), ((1, 1, 5), (1, 5))],
)
def test_merged_and_split_again_axes_are_the_same(parse, before, merged):
    found, (x, rows, again) = reshaped(parse, before, merged, before)
    assert found.of(rows) == ((*found.of(x)[0], *found.of(x)[1]), found.of(x)[2])
    assert found.of(again) == found.of(x)


def test_a_split_refines_an_axis_wherever_it_occurs(parse):
    found, (x, heads, merged) = reshaped(parse, (3, 8), (3, 2, 4), (6, 4))
    assert [len(dimension) for dimension in found.of(x)] == [1, 2]
    assert found.of(x) == (found.of(heads)[0], (*found.of(heads)[1], *found.of(heads)[2]))
    assert found.of(merged) == ((*found.of(x)[0], found.of(x)[1][0]), (found.of(x)[1][1],))


def test_a_view_that_does_not_come_out_even_follows_from_all_that_it_mixes(parse):
    found, (x, mixed) = reshaped(parse, (4, 6), (6, 4))
    assert found.kinds(mixed) == ("unknown", "unknown")
    numbers = {axis.number for dimension in found.of(x) for axis in dimension}
    assert all(axis.made_of == numbers for dimension in found.of(mixed) for axis in dimension)


def test_a_joined_axis_is_another_and_is_made_of_its_parts(parse):
    old, new, joined = tensor(2, 5, 4), tensor(2, 3, 4), tensor(2, 8, 4)
    body = f"""%one = torch.constant.int 1
    %l = torch.prim.ListConstruct %x, %y : ({old}, {new}) -> !torch.list<vtensor>
    %c = torch.aten.cat %l, %one : !torch.list<vtensor>, !torch.int -> {joined}
    return %c : {joined}"""
    graph = parse(body, f"%x: {old}, %y: {new}", joined)
    found, (out,) = last(graph)
    x, y = (found.of(value) for value in graph.function.regions[0].blocks[0].arguments)
    assert found.of(out)[0] == x[0] == y[0] and found.of(out)[2] == x[2] == y[2]
    assert found.of(out)[1][0].made_of == {x[1][0].number, y[1][0].number}


def test_contradictions_are_reported_and_what_they_are_about_is_unknown(parse):
    """Attention over transposed queries: one axis would be the batch and the sequence."""
    q = tensor(4, 4, 4, 4)
    body = f"""%zero = torch.constant.int 0
    %two = torch.constant.int 2
    {ATTENTION}({q}, {q}, {q}) -> {q}
    %t = torch.aten.transpose.int %a, %zero, %two : {q}, !torch.int, !torch.int -> {q}
    %b = torch.aten.add.Tensor %a, %t, %two : {q}, {q}, !torch.int -> {q}
    return %b : {q}"""
    found, _ = last(parse(body, f"%q: {q}, %k: {q}, %v: {q}", q))
    assert found.contradictions
    assert "batch" in found.contradictions[0].what and "sequence" in found.contradictions[0].what


def test_scores_that_are_written_out_are_attention(parse):
    q, t, s = tensor(2, 4, 3, 8), tensor(2, 4, 8, 5), tensor(2, 4, 3, 5)
    v = tensor(2, 4, 5, 8)
    body = f"""%last = torch.constant.int -1
    %no = torch.constant.bool false
    %s = torch.aten.matmul %q, %k : {q}, {t} -> {s}
    %w = torch.aten._softmax %s, %last, %no : {s}, !torch.int, !torch.bool -> {s}
    %o = torch.aten.matmul %w, %v : {s}, {v} -> {q}
    return %o, %w : {q}, {s}"""
    found, (out, weights) = last(parse(body, f"%q: {q}, %k: {t}, %v: {v}", f"{q}, {s}"))
    assert found.kinds(out) == ("batch", "head", "sequence", "head_size")
    assert found.kinds(weights) == ("batch", "head", "sequence", "key")


def test_one_generated_value_serves_axes_of_equal_size(parse):
    """`arange(4)` as positions and as numbers of sequences: equal operations are one after clean-up."""
    q, a = tensor(4, 4, 4, 4), tensor(4, dtype="si64")
    body = f"""%none = torch.constant.none
    %n = torch.constant.int 4
    %zero = torch.constant.int 0
    %w = "lutra.param"() {{sym = "w"}} : () -> {q}
    %i = torch.aten.arange %n, %none, %none, %none, %none : !torch.int, !torch.none, !torch.none, !torch.none, !torch.none -> {a}
    {ATTENTION}({q}, {q}, {q}) -> {q}
    %two = torch.constant.int 2
    %x = torch.aten.index_select %a, %zero, %i : {q}, !torch.int, {a} -> {q}
    %y = torch.aten.index_select %a, %two, %i : {q}, !torch.int, {a} -> {q}
    %b = torch.aten.add.Tensor %a, %x, %two : {q}, {q}, !torch.int -> {q}
    %c = torch.aten.add.Tensor %a, %y, %two : {q}, {q}, !torch.int -> {q}
    return %b, %c : {q}, {q}"""  # noqa: E501
    found, (b, c) = last(parse(body, f"%q: {q}, %k: {q}, %v: {q}", f"{q}, {q}"))
    assert not found.contradictions
    assert found.of(b) == found.of(c)


def test_carriers_are_all_values_with_that_axis(attended):
    found, (q, _, _, out) = attended(2, 4, 4, 3, 5, 8)
    (sequence,) = found.all("sequence")
    assert found.carriers(sequence) == [(q, 2), (out, 2)]


# Architectures --------------------------------------------------------------------------------------------------------


def grown(one: StudiedGraph, other: StudiedGraph) -> list[tuple[str, Dim, Dim]]:
    """Dimensions of two graphs that differ in batch and sequence, beside each other."""
    assert [name for name, _ in one.values] == [name for name, _ in other.values]
    return [
        (name, before, after)
        for (name, dims), (_, others) in zip(one.values, other.values, strict=True)
        for before, after in zip(dims, others, strict=True)
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_called_batch_or_sequence_grows_with_it_and_nothing_else_does(name: str):
    small, large = study(name, 3, 7), study(name, 5, 6)
    for stage in STAGES:
        for one, other in zip(small.graphs[stage], large.graphs[stage], strict=True):
            assert not one.contradictions, (stage, one.contradictions)
            if not one.stacks:  # a part of a model that torch compiles on its own, where nothing says what is what
                continue
            growing = {"batch"} if ARCHITECTURES[name].patches & set(one.stacks) else {"batch", "sequence"}
            for operation, before, after in grown(one, other):
                place = (stage, operation, before, after)
                assert before.kinds == after.kinds, place
                changes = before.follows & growing
                if "unknown" in before.kinds:  # a part of a sequence may have a fixed size
                    assert before.size == after.size or changes or operation == "argument", place
                elif changes == {"batch"}:
                    assert before.size * 5 == after.size * 3, place
                else:
                    assert (before.size != after.size) == bool(changes), place


EQUAL = Sizes(heads=8, head_size=8, features=64)
"""With a batch of 8 and 8 positions every size of a model is 8 or 64, the vocabulary too."""


@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral", "bert", "t5"])
def test_equal_sizes_give_the_answers_of_distinct_sizes(name: str):
    distinct, equal = study(name, 3, 7), study(name, 8, 8, EQUAL)
    for stage in STAGES:
        for one, other in zip(distinct.graphs[stage], equal.graphs[stage], strict=True):
            assert not other.contradictions, (stage, other.contradictions)
            assert one.stacks == other.stacks, stage
