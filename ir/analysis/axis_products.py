"""Rules of what multiplies: linears, products of matrices, convolutions, attention and its caches. They anchor axes."""

import sympy

from ..rewriting import defined_by
from .axis_step import Step, fresh
from .axis_terms import Dim, Dims, Kind, quotient


def linear(step: Step) -> list[Dims]:
    """`x[..., K] @ weight[N, K]^T (+ bias[N]) (+ residual[..., N])`: last dimensions are features."""
    x, weight = step.dims("input" if step.name.startswith("aten") else "x"), step.dims("weight")
    return [_projected(step, x, weight[-1], weight[0])]


def addmm(step: Step) -> list[Dims]:
    """`bias + x[M, K] @ weight[K, N]`."""
    x, weight = step.dims("mat1"), step.dims("mat2")
    return [_projected(step, x, weight[0], weight[1], bias="self")]


def _projected(step: Step, x: Dims, columns: Dim, rows: Dim, bias: str = "bias") -> Dims:
    step.terms.anchor(step.terms.unify(x[-1], columns), "feature")
    step.terms.anchor(rows, "feature")
    return step.joined((*x[:-1], rows), step.dims(bias), step.dims("residual") if step.name.startswith("lutra") else ())


def tables(step: Step) -> list[Dims]:
    """`lutra.table`: the entries of tables over neighbouring columns."""
    x = step.dims("x")
    *_, count, entries = step.shape
    return [(*x[:-1], step.terms.derived(count, x[-1]), *fresh((entries,)))]


def table_linear(step: Step) -> list[Dims]:
    """Tables `[..., T, entries]` times a weight `[N, K]`."""
    table, (rows, _) = step.dims("table"), step.dims("weight")
    step.terms.anchor(rows, "feature")
    return [step.joined((*table[:-2], rows), step.dims("bias"), step.dims("residual"))]


def grouped_linear(step: Step) -> list[Dims]:
    """Rows `[R, K]` times the matrix of their group: all below each other, `[E N, K]`."""
    x, (rows, columns), groups = step.dims("x"), step.dims("weight"), step.dims("offsets")
    (features,) = fresh(step.shape[-1:])
    step.terms.unify(rows, (*groups[0], *features))
    step.terms.anchor(step.terms.unify(x[-1], columns), "feature")
    step.terms.anchor(features, "feature")
    return [(x[0], features)]


def grouped_matmul(step: Step) -> list[Dims]:
    """Rows `[R, K]` times the matrix of their group, `[E, K, N]`."""
    x, weight = (step.read(value) for value in step.tensors[:2])
    if len(x) != 2 or len(weight) != 3:
        return [fresh(step.shape)]
    step.terms.anchor(step.terms.unify(x[1], weight[1]), "feature")
    step.terms.anchor(weight[2], "feature")
    return [(x[0], weight[2])]


def matmul(step: Step) -> list[Dims]:
    """`a[..., M, K] @ b[..., K, N]`, with something added for `baddbmm`; scores of attention, or what they weigh."""
    *added, left, right = step.tensors[:3]
    a, b = step.read(left), step.read(right)
    common = step.terms.unify(a[-1], b[max(len(b) - 2, 0)])
    batch = step.joined(a[:-2], b[:-2])
    if len(b) == 2 and defined_by(right, "lutra.param"):
        step.terms.anchor(common, "feature")
        step.terms.anchor(b[1], "feature")
    elif len(a) > 2 and len(b) > 2:
        step.scores.products[step.results[0]] = a, b
        if left in step.scores.weights:
            _attended(step, *step.scores.weights[left], b)
    product = (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))
    return [step.joined(product, *map(step.read, added))]


def softmax(step: Step) -> list[Dims]:
    """Of scores over the last dimension: weights of attention."""
    value = step.tensors[0]
    if value in step.scores.products and step.number("dim") in (-1, len(step.shape) - 1):
        step.scores.weights[step.results[0]] = step.scores.products[value]
    return [step.read(value)]


def _attended(step: Step, q: Dims, keys: Dims, v: Dims) -> None:
    """`softmax(q[..., S, D] @ keys[..., D, L]) @ v[..., L, D]`."""
    terms = step.terms
    terms.anchor(q[-2], "sequence")
    terms.anchor(keys[-1], "key")
    terms.anchor(q[-1], "head_size")
    terms.anchor(v[-1], "head_size")
    if len(q) == 4:
        terms.anchor(q[0], "batch")
        terms.anchor(q[1], "head")


def attention(step: Step) -> list[Dims]:
    """Queries `[B, H, S, D]`, keys and values `[B, G, L, D]`, mask broadcast to `[B, H, S, L]`. Query head h reads
    key/value head `h * G // H`: query heads are those times the queries of each."""
    terms, ours = step.terms, step.name.startswith("lutra")
    q, k, v = (step.dims(name) for name in (("q", "k", "v") if ours else ("query", "key", "value")))
    mask = step.dims("mask" if ours else "attn_mask")
    terms.unify(q[-1], k[-1])
    keys = terms.unify(k[-2], v[-2])
    if len(q) == len(k) == len(v) == 4:
        batch = terms.unify(terms.unify(q[0], k[0]), v[0])
        groups = terms.unify(k[1], v[1])
        each = quotient(terms.size(q[1]), terms.size(groups))
        heads = terms.unify(q[1], groups if each in (None, 1) else (*groups, *fresh((each,))[0]))
        terms.anchor(batch, "batch")
        for atom in terms.resolved(heads):
            terms.anchor((atom,), "head")
    leading = q[:-2]
    terms.anchor(q[-2], "sequence")
    terms.anchor(keys, "key")
    terms.anchor(q[-1], "head_size")
    terms.anchor(v[-1], "head_size")
    step.joined((*leading, q[-2], keys), mask)
    if ours and len(step.shape) == 3:
        return [(q[0], q[2], (*q[1], *v[3]))]
    return [(*leading, q[-2], v[-1])]


def kv_update(step: Step) -> list[Dims]:
    """`cache[:, :, positions] = new`."""
    cache, new, positions = step.dims("cache"), step.dims("new"), step.dims("positions")
    return [_updated(step, cache, new, positions)]


def _updated(step: Step, cache: Dims, new: Dims, positions: Dims) -> Dims:
    for index in (0, 1, 3):
        step.terms.unify(cache[index], new[index])
    step.terms.unify(new[2], positions[0])
    kinds: tuple[Kind, ...] = ("batch", "head", "key", "head_size")
    for dim, kind in zip(cache, kinds, strict=True):
        step.terms.anchor(dim, kind)
    return cache


def rope(step: Step) -> list[Dims]:
    """x `[B, H, S, D]`, cos and sin `[B or 1, S, D]`."""
    x = step.dims("x")
    for table in (step.dims("cos"), step.dims("sin")):
        step.joined((x[0], x[2], x[3]), table)
    return [x]


def rope_kv_update(step: Step) -> list[Dims]:
    """Queries, keys and values `[B, S, heads, D]` as projections give them; queries `[B, H, S, D]` and both caches."""
    q, k, v = step.dims("q"), step.dims("k"), step.dims("v")
    for table in (step.dims("cos"), step.dims("sin")):
        step.joined((q[0], q[1], q[3]), table)
        step.joined((k[0], k[1], k[3]), table)
    caches = [
        _updated(step, step.dims(cache), (new[0], new[2], new[1], new[3]), step.dims("positions"))
        for cache, new in (("key_cache", k), ("value_cache", v))
    ]
    step.terms.anchor(q[1], "sequence")
    step.terms.anchor(q[2], "head")
    return [(q[0], q[2], q[1], q[3]), *caches]


def convolution(step: Step) -> list[Dims]:
    """x `[B, C, *space]`, weight `[O, C / groups, *kernel]`."""
    x, weight = step.dims("input"), step.dims("weight")
    if len(x) < 3 or len(x) != len(step.shape):
        return [fresh(step.shape)]
    step.terms.anchor(x[0], "batch")
    step.terms.anchor(x[1], "feature")
    if step.terms.size(x[1]) == step.terms.size(weight[1]):
        step.terms.unify(x[1], weight[1])
    step.terms.anchor(weight[0], "feature")
    out = tuple(step.terms.derived(size, dim) for size, dim in zip(step.shape[2:], x[2:], strict=True))
    for dim in (*x[2:], *out):
        step.terms.anchor(dim, "space")
    return [(x[0], weight[0], *out)]


def norm(step: Step) -> list[Dims]:
    """Over the last dimensions, which the weight has too."""
    x = step.read(step.tensors[0])
    for parameter in step.tensors[1:]:
        step.joined(x, step.read(parameter))
    step.terms.anchor(x[-1], "feature")
    return [x]


def gate(step: Step) -> list[Dims]:
    """`activation(gate) * up`, or both from one `[..., 2 F]`."""
    x = step.dims("gate")
    if step.argument("up") is not None:
        return [step.joined(x, step.dims("up"))]
    features = step.terms.derived(step.shape[-1], x[-1])
    step.terms.anchor(features, "feature")
    return [(*x[:-1], features)]


def embedding(step: Step) -> list[Dims]:
    """Rows of a table `[V, F]`."""
    table = step.dims("weight")
    step.terms.anchor(table[1], "feature")
    return [(*step.dims("indices"), table[1])]


def one_hot(step: Step) -> list[Dims]:
    """A new last dimension."""
    return [(*step.read(step.tensors[0]), *fresh((step.shape[-1] if step.shape else sympy.S.One,)))]
