"""Rules of what moves, cuts, joins, reduces or looks up."""

from contextlib import suppress
from typing import Any

import sympy

from ..operator_call import operation_name
from ..rewriting import constant, defined_by, shape_of
from .axis_step import Computed, Step
from .axis_terms import Atom, Dim, Dims, quotient


def reshape(step: Step) -> list[Dims]:
    """The same elements in row-major order."""
    return [step.terms.reshaped(step.read(step.tensors[0]), step.shape)]


def permuted(step: Step) -> list[Dims]:
    """`transpose(x, dim0, dim1)`, `permute(x, dims)`, `t(x)`."""
    x = step.read(step.tensors[0])
    order = list(range(len(x)))
    dims = step.numbers("dims")
    if dims is not None:
        order = [dim % len(x) for dim in dims]
    elif len(x) > 1:
        one, other = step.number("dim0", 0) % len(x), step.number("dim1", 1) % len(x)
        order[one], order[other] = other, one
    return [tuple(x[index] for index in order)]


def unsqueeze(step: Step) -> list[Dims]:
    """A dimension of one entry more, which is there to be broadcast."""
    x = list(step.dims("self"))
    x.insert(step.number("dim") % (len(x) + 1), ())
    return [tuple(x)]


def squeeze(step: Step) -> list[Dims]:
    """Dimensions of one entry less."""
    x = step.dims("self")
    given = step.numbers("dim")
    chosen = range(len(x)) if given is None else [dim % len(x) for dim in given]
    gone = {index for index in chosen if step.terms.size(x[index]) == 1}
    return [tuple(dim for index, dim in enumerate(x) if index not in gone)]


def expand(step: Step) -> list[Dims]:
    """Dimensions of one entry become new ones."""
    x, shape = step.dims("self"), step.shape
    x = ((),) * (len(shape) - len(x)) + x
    sizes = zip(x, shape, strict=True)
    return [tuple(dim if step.terms.size(dim) == size else (Atom(size),) for dim, size in sizes)]


def repeat(step: Step) -> list[Dims]:
    """The whole again and again: a new axis outside of each that is repeated."""
    x, shape = step.read(step.tensors[0]), step.shape
    x = ((),) * (len(shape) - len(x)) + x
    return [tuple((*_times(step, dim, size), *dim) for dim, size in zip(x, shape, strict=True))]


def repeat_interleave(step: Step) -> list[Dims]:
    """Each entry again and again: a new axis inside."""
    x, shape = step.read(step.tensors[0]), step.shape
    if len(x) != len(shape):  # of all elements
        raise Computed
    return [tuple((*dim, *_times(step, dim, size)) for dim, size in zip(x, shape, strict=True))]


def _times(step: Step, dim: Dim, size: sympy.Expr) -> Dim:
    """An axis for how often `dim` is repeated, to make `size`."""
    times = quotient(size, step.terms.size(dim))
    if times is None:
        raise Computed
    return () if times == 1 else (Atom(times),)


def cut(step: Step) -> list[Dims]:
    """What keeps its size is what it was, the rest is cut from it, padded or repeated."""
    x = step.read(step.tensors[0])
    return [step.fitted(x, index) for index in range(len(step.results))]


def top(step: Step) -> list[Dims]:
    """As many entries of a dimension as asked for."""
    x = step.dims("self")
    dim = step.number("dim", -1) % len(x)
    return [(*x[:dim], (Atom(step.shape[dim]),), *x[dim + 1 :])] * len(step.results)


def without(step: Step) -> list[Dims]:
    """One entry of a dimension (`select`), or all of them apart (`unbind`)."""
    x = step.dims("self")
    dim = step.number("dim") % len(x)
    return [(*x[:dim], *x[dim + 1 :])] * len(step.results)


def cat(step: Step) -> list[Dims]:
    """Joined along one dimension, which follows from those of all parts."""
    parts = [step.read(value) for value in step.tensors if shape_of(value) != (0,)]
    dim = step.number("dim") % len(step.shape)
    if len(parts) == 1 and len(step.tensors) == 1:
        return parts
    joined = list(step.joined(*((*part[:dim], (), *part[dim + 1 :]) for part in parts)))
    joined[dim] = step.terms.derived(step.shape[dim], *(part[dim] for part in parts))
    return [tuple(joined)]


def stack(step: Step) -> list[Dims]:
    """Beside each other, in a new dimension."""
    joined = list(step.joined(*map(step.read, step.tensors)))
    dim = step.number("dim") % len(step.shape)
    joined.insert(dim, (Atom(step.shape[dim]),))
    return [tuple(joined)]


def reduced(step: Step) -> list[Dims]:
    """Dimensions that are summed up, or searched for the greatest entry, are gone, or have one entry."""
    x = step.read(step.tensors[0])
    given = step.numbers("dim")
    chosen = range(len(x)) if not given else [dim % len(x) for dim in given]
    kept = bool(step.shapes[0]) and len(step.shape) == len(x)
    dims = [((),) if index in chosen and kept else () if index in chosen else (dim,) for index, dim in enumerate(x)]
    return [tuple(dim for found in dims for dim in found)] * len(step.results)


def index(step: Step) -> list[Dims]:
    """`x[indices]`."""
    return [_indexed(step, step.dims("self"))]


def index_put(step: Step) -> list[Dims]:
    """`x` with `values` at `x[indices]`."""
    x = step.dims("self")
    with suppress(Computed):
        step.joined(_indexed(step, x), step.dims("values"))
    return [x]


def _indexed(step: Step, x: Dims) -> Dims:
    """`x[indices]`, None among them for a dimension that is kept. A mask takes as many entries as it has true."""
    made = defined_by(step.argument("indices"), "prim.ListConstruct")
    given = [] if made is None else list(made.operands)
    places = [number for number, value in enumerate(given) if shape_of(value) is not None]
    if not places or any(str(value.type).endswith(",i1>") for value in given):
        raise Computed
    read = {number: step.read(given[number]) for number in places}
    for number, dims in read.items():
        named = [dim for dim in dims if step.terms.size(dim) != 1]
        if len(named) == 1 and _counts(given[number]) and step.terms.size(named[0]) == step.terms.size(x[number]):
            step.terms.unify(x[number], named[0])
    found = step.joined(*read.values())
    kept = [dim for number, dim in enumerate(x) if number not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    first = places[0] if adjacent else 0
    return (*kept[:first], *found, *kept[first:])


def _counts(value: Any) -> bool:
    """`value` is 0, 1, 2, ... along its only dimension that is no unit: all entries of a dimension of its size."""
    while (op := defined_by(value, *_SAME_NUMBERS)) is not None:
        if operation_name(op.operation) == "aten.add.Scalar" and constant(op.operands[1]) != 0:
            return False
        value = op.operands[0]
    return defined_by(value, "aten.arange") is not None


_SAME_NUMBERS = ("aten.unsqueeze", "aten.view", "aten.clone", "aten._to_copy", "aten.add.Scalar")


def index_select(step: Step) -> list[Dims]:
    """`x` at the places `index [n]` of one dimension."""
    x, dim = step.dims("self"), step.number("dim")
    dim %= len(x)
    return [(*x[:dim], *(step.dims("index") or ((),)), *x[dim + 1 :])]


def gather(step: Step) -> list[Dims]:
    """`x` at the places of `index` along one dimension; along others, index is as long as x, or shorter."""
    x, places = step.dims("self"), step.dims("index")
    dim = step.number("dim") % len(x)
    out = []
    for number, (one, other) in enumerate(zip(x, places, strict=True)):
        same = number != dim and step.terms.size(one) == step.terms.size(other)
        out.append(step.terms.unify(other, one) if same else other)
    return [tuple(out)]


def index_copy(step: Step) -> list[Dims]:
    """`x` with `source` written, or added, to the places `index [n]` of one dimension."""
    x, source, places = step.dims("self"), step.dims("source"), step.dims("index")
    dim = step.number("dim") % len(x)
    for number, (one, other) in enumerate(zip(x, source, strict=True)):
        step.terms.unify(other, places[0] if number == dim and places else one)
    return [x]


def split_features(step: Step) -> list[Dims]:
    """`lutra.split`: neighbouring features."""
    x = step.dims("x")
    return [(*x[:-1], step.terms.derived(step.shape[-1], x[-1]))]
