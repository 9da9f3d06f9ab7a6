"""What every `lutra` operation computes, in plain torch: the oracle for its lowering, and what the interpreter runs.

A function takes the operands by their names in `dialect.py` and the attributes as keywords. It never looks at values
(no `.item()`, no branch on data), so that it also runs on fake tensors with symbolic sizes. Two keywords are no
attributes in the IR but follow from the result's type (`operator_call.py` adds them): `size` of a split, `dtype` of a
table linear.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .weights.formats import QuantizedWeight, bit_planes, dequantize, symmetrized_zero_points

Tensor = torch.Tensor
TABLE_COLUMNS = 4
"""Activations that one lookup table covers."""


def linear(
    x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """`lutra.linear`; dtype of x."""
    if isinstance(weight, QuantizedWeight):
        return _add_float(F.linear(x.float(), dequantize(weight)), bias, residual).to(x.dtype)
    out = F.linear(x, weight)
    out = out if bias is None else out + bias
    return out if residual is None else out + residual


def grouped_linear(x: Tensor, weight: QuantizedWeight, offsets: Tensor) -> Tensor:
    """`lutra.grouped_linear`; dtype of x."""
    rows = torch.arange(x.shape[0], device=x.device)
    matrices = dequantize(weight).unflatten(0, (offsets.shape[0], -1))
    ends = offsets.to(rows.dtype)
    out = x.new_zeros((x.shape[0], matrices.shape[1]), dtype=torch.float32)
    for index, matrix in enumerate(matrices):
        inside = rows < ends[index] if index == 0 else (rows >= ends[index - 1]) & (rows < ends[index])
        out = torch.where(inside.unsqueeze(-1), F.linear(x.float(), matrix), out)
    return out.to(x.dtype)


def table(x: Tensor, *, half: bool) -> Tensor:
    """`lutra.table`: float32 `[..., ceil(K / 4), 8 or 16]`."""
    k = x.shape[-1]
    columns = F.pad(x.float(), (0, -k % TABLE_COLUMNS)).unflatten(-1, (-1, TABLE_COLUMNS))
    patterns = torch.arange(8 if half else 16, device=x.device).unsqueeze(-1)
    bits = (patterns >> torch.arange(TABLE_COLUMNS, device=x.device)) & 1
    return F.linear(columns, (2 * bits - 1).float())


def table_linear(
    table: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`lutra.table_linear`: evaluated in float32, rounded once to `dtype`."""
    out = F.linear(table.flatten(-2), _entry_weights(weight, table.shape[-1]))
    return _add_float(out, bias, residual).to(dtype)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, round_before_weight: bool) -> Tensor:
    """`lutra.rms_norm`; dtype of x where the weight's is the same, else the promoted one."""
    wide = _wide(x)
    normalized = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if round_before_weight:
        return normalized.to(x.dtype) * weight
    return (normalized * _wide(weight)).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """`lutra.layer_norm`; dtype of x."""
    shift = None if bias is None else _wide(bias).to(_wide(x).dtype)
    return F.layer_norm(_wide(x), weight.shape, weight.to(_wide(x).dtype), shift, eps).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, pairs: str = "halves") -> Tensor:
    """`lutra.rope`; shape and dtype of x."""
    if pairs == "adjacent":
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    else:
        x = x if pairs == "halves" else torch.cat((x[..., ::2], x[..., 1::2]), -1)
        low, high = x.chunk(2, -1)
        turned = torch.cat((-high, low), -1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def gated_mlp(gate: Tensor, up: Tensor | None = None, *, activation: str) -> Tensor:
    """`lutra.gated_mlp`; `[..., F]`."""
    if up is None:
        gate, up = gate.chunk(2, -1)
    return _ACTIVATIONS[activation](gate) * up


def split(x: Tensor, *, start: int, size: int) -> Tensor:
    """`lutra.split`; `size` comes from the result's type."""
    return x[..., start : start + size]


def kv_update(cache: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """`lutra.kv_update`, as a value: the cache that is passed in stays as it was."""
    return cache.index_copy(2, positions, new)


def rope_kv_update(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lutra.rope_kv_update`, as values: query, keys and values."""
    query, key = (rope(x.transpose(1, 2), cos, sin) for x in (q, k))
    return query, kv_update(key_cache, key, positions), kv_update(value_cache, v.transpose(1, 2), positions)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float, causal: bool, merge_heads: bool
) -> Tensor:
    """`lutra.attention`, evaluated in float32 and rounded once; a query that may attend nothing gives zeros."""
    repeats = q.shape[1] // k.shape[1]
    keys, values = (_wide(t).repeat_interleave(repeats, 1) for t in (k, v))
    shift = mask if mask is None or mask.dtype == torch.bool else mask.to(_wide(q).dtype)
    out = F.scaled_dot_product_attention(_wide(q), keys, values, shift, is_causal=bool(causal), scale=scale).to(q.dtype)
    return out.transpose(1, 2).flatten(2) if merge_heads else out


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}

REFERENCE: dict[str, Callable[..., Any]] = {
    f"lutra.{function.__name__}": function
    for function in (
        linear,
        grouped_linear,
        table,
        table_linear,
        rms_norm,
        layer_norm,
        rope,
        gated_mlp,
        split,
        kv_update,
        rope_kv_update,
        attention,
    )
}
"""Reference semantics by operation name, for every operation but `lutra.param` (which reads the graph's store)."""


def _wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is."""
    return x if x.dtype is torch.float64 else x.float()


def _add_float(out: Tensor, *terms: Tensor | None) -> Tensor:
    for term in terms:
        out = out if term is None else out + term.float()
    return out


def _entry_weights(weight: QuantizedWeight, entries: int) -> Tensor:
    """`[N, T * entries]` float32: how often, and with which scale, each table entry goes into each output.

    A quantised linear is linear in the table entries, so this matrix *is* the table linear. Plane i of table t selects
    the entry whose pattern its four +-1 signs spell; in a half table the patterns with the top bit set read `-T[~w]`.
    sum(x) of a table is its entry of all ones, `T[15]`, in a half table `-T[0]`."""
    n, k = weight.codes.shape
    tables = -(-k // TABLE_COLUMNS)
    device = weight.codes.device
    bits = F.pad(bit_planes(weight) > 0, (0, tables * TABLE_COLUMNS - k)).unflatten(-1, (tables, TABLE_COLUMNS))
    patterns = (bits * (1 << torch.arange(TABLE_COLUMNS, device=device))).sum(-1)
    if entries == 16:
        sign, pattern = torch.ones_like(patterns), patterns
    else:
        sign, pattern = torch.where(patterns >= 8, -1, 1), torch.where(patterns >= 8, 15 - patterns, patterns)
    numbers = torch.arange(entries, device=device)
    counts = torch.zeros(n, tables, entries, device=device)
    for plane, factor in enumerate(weight.format.plane_weights):
        counts += factor * (pattern[plane].unsqueeze(-1) == numbers) * sign[plane].unsqueeze(-1)
    shift = symmetrized_zero_points(weight)
    groups = weight.scales.shape[1]
    counts = counts.unflatten(1, (groups, tables // groups))
    if shift is not None:
        everything, direction = (15, 1) if entries == 16 else (0, -1)
        counts -= direction * shift[:, :, None, None] * (numbers == everything)
    return (counts * (weight.scales.float() / 2)[:, :, None, None]).flatten(1)
