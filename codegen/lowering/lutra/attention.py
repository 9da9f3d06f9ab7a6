"""Attention, rotary embedding and cache updates."""

from dataclasses import dataclass
from typing import Any

from tvm import te, tirx

from ....ir.rewriting import defined_by, is_argument
from ...kernels.cpu.kv_cache import Columns, kv_update, rope_kv_update
from ...select import AttentionProblem, Mask
from ..builder import Lowering
from ..registry import DECLINED, lowers
from ..symbols import dtype_name


@dataclass(frozen=True)
class AttentionOperands:
    """Values of the IR, the number that scores are multiplied by, and whether the result has its heads side by side."""

    q: Any
    k: Any
    v: Any
    mask: Any
    out: Any
    scale: float
    merged: bool


@lowers("lutra.attention")
def _attention(low: Lowering, op: Any) -> Any:
    q, k = low.sizes(op.q), low.sizes(op.k)
    queries, heads, kv_heads, head, value_head = (
        size if isinstance(size, int) else None for size in (q[2], q[1], k[1], q[3], low.sizes(op.v)[3])
    )
    problem = AttentionProblem(
        phase=low.graph.phase,
        queries=queries,
        heads=heads,
        kv_heads=kv_heads,
        head=head,
        value_head=value_head,
        dtype=dtype_name(low.dtype(op.q)),
        causal=bool(op.causal.value),
        mask=None if op.mask is None else _mask_form(low, op),
    )
    merged = bool(op.merge_heads.value)
    return low.compute(problem, AttentionOperands(op.q, op.k, op.v, op.mask, op.out, op.scale.value, merged))


def _mask_form(low: Lowering, op: Any) -> Mask:
    sizes, q, dtype = low.sizes(op.mask), low.sizes(op.q), dtype_name(low.dtype(op.mask))
    if len(sizes) != 4 or sizes[2] != 1 or low.shape(op.mask)[3] != low.shape(op.k)[2]:
        return Mask(dtype, False, False, regular=False)
    if (sizes[0] != 1 and low.shape(op.mask)[0] != low.shape(op.q)[0]) or sizes[1] not in (1, q[1]):
        return Mask(dtype, False, False, regular=False)
    per_batch = not (isinstance(sizes[0], int) and sizes[0] == 1)
    return Mask(dtype, per_batch, sizes[1] != 1)


@lowers("lutra.kv_update")
def _kv_update(low: Lowering, op: Any) -> Any:
    sizes = low.sizes(op.cache)
    if not (isinstance(sizes[1], int) and isinstance(sizes[3], int)):
        return DECLINED
    function = kv_update(sizes[1], sizes[3], dtype_name(low.dtype(op.cache)))
    operands = [_overwritable(low, op.cache, op.out), low[op.new], low[op.positions]]
    return low.kernel("kv_update", function, operands, low.tensor_type(op.out), inplace=[0])


@lowers("lutra.rope_kv_update")
def _rope_kv_update(low: Lowering, op: Any) -> Any:
    (heads, head), (kv_heads, same) = low.sizes(op.q)[2:], low.sizes(op.k)[2:]
    if not all(isinstance(size, int) for size in (heads, head, kv_heads)) or low.sizes(op.v)[3] != head or same != head:
        return DECLINED
    rows, columns = zip(*(_rows(low, x) for x in (op.q, op.k, op.v)), strict=True)
    batched, one_row = low.shape(op.cos)[0] != 1, low.shape(op.q)[:2] == (1, 1)
    function = rope_kv_update(heads, kv_heads, head, dtype_name(low.dtype(op.q)), *columns, batched, one_row)
    caches = [_overwritable(low, *pair) for pair in ((op.key_cache, op.keys), (op.value_cache, op.values))]
    operands = [*rows, low[op.cos], low[op.sin], *caches, low[op.positions]]
    types = [low.tensor_type(x) for x in (op.keys, op.values, op.query)]
    keys, values, query = low.kernel("rope_kv_update", function, operands, types, inplace=[5, 6, -1])
    return [query, keys, values]


def _rows(low: Lowering, value: Any) -> tuple[Any, Columns]:
    """The rows `[B, S, width]` that hold `value` `[B, S, heads, D]`, and where: a part of a merged projection is read
    where it stands."""
    batch, count, heads, head = low.sizes(value)
    view = defined_by(value, "aten.view", "aten._unsafe_view")
    split = view and defined_by(view.operands[0], "lutra.split")
    if split is not None and low.shape(split.opview.out)[:2] == low.shape(value)[:2]:
        x = split.opview.x
        return low[x], Columns(low.sizes(x)[2], split.opview.start.value)
    return low.reshape(low[value], [batch, count, heads * head]), Columns(heads * head, 0)


def _overwritable(low: Lowering, cache: Any, updated: Any) -> Any:
    """`cache`, or a copy of it where it must stay as it is; `updated`: the value that it becomes."""
    if updated not in low.aliases.in_place:
        # Not a kernel: of a constant, Relax would compute the copy once and for all.
        return low.library("copy", [low[cache]], low.tensor_type(cache))
    if cache in low.updated:
        low.updated[updated] = low.updated[cache]
    elif is_argument(cache):
        low.updated[updated] = cache.arg_number
    return low[cache]


@lowers("lutra.rope")
def _rope(low: Lowering, op: Any) -> Any:
    """One elementwise function, which Relax fuses with the reshapes before it."""
    half, pairs = low.sizes(op.x)[3] // 2, op.pairs.value
    dtype = dtype_name(low.dtype(op.x))
    compute = "float64" if dtype == "float64" else "float32"
    batched = low.sizes(op.cos)[0] != 1

    def rope(x: te.Tensor, cos: te.Tensor, sin: te.Tensor) -> te.Tensor:
        def element(b: Any, h: Any, s: Any, d: Any) -> Any:
            row, first = b if batched else 0, d % 2 == 0 if pairs == "adjacent" else d < half
            if pairs == "halves":
                own, other = d, tirx.if_then_else(first, d + half, d - half)
            elif pairs == "adjacent":
                own, other = d, tirx.if_then_else(first, d + 1, d - 1)
            else:  # columns 2i and 2i + 1 become i and i + half
                own = tirx.if_then_else(first, 2 * d, 2 * (d - half) + 1)
                other = tirx.if_then_else(first, 2 * d + 1, 2 * (d - half))
            turned = x[b, h, s, other]
            values = (x[b, h, s, own], cos[row, s, d], tirx.if_then_else(first, -turned, turned), sin[row, s, d])
            wide = [v.astype(compute) for v in values]
            return (_rounded(wide[0] * wide[1], dtype) + _rounded(wide[2] * wide[3], dtype)).astype(dtype)

        return te.compute(x.shape, element, name="rope")

    low.kernels["rope"] += 1
    return low.emit(low.builder.call_te(rope, low[op.x], low[op.cos], low[op.sin], primfunc_name_hint="rope"), op.out)


def _rounded(x: Any, dtype: str) -> Any:
    """x rounded to `dtype` and back, as an expression; for bfloat16 not by casts (see `vector_math.rounded`)."""
    if dtype != "bfloat16":
        return x if dtype == str(x.ty.dtype) else x.astype(dtype).astype("float32")
    bits = tirx.reinterpret("int32", x)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return tirx.reinterpret("float32", nearest)
