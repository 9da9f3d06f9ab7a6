"""The `lutra` dialect: operations that say *what* is computed, at the level at which a paper would.

Operands and results are `!torch.vtensor` values, except weights in low-bit form, whose type `!lutra.quantized`
carries shape and format. Every operation has one reference semantics in `reference.py`; the docstrings give the
formula. Shapes: B batch, S query positions, L key positions, H query heads, G key/value heads (G divides H), D head
size, K input and N output features.
"""

# No `from __future__ import annotations` here: the base class reads the annotations as types.
# Its keywords (`name`, `traits`) are out of pyright's sight.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
import sys
from collections.abc import Callable
from typing import Any

from torch_mlir.dialects import ext
from torch_mlir.dialects.ext import Operand, Pure, Result
from torch_mlir.ir import Context, FloatAttr, IntegerAttr, Operation, StringAttr

from .types import TensorType, tensor_type
from .weights.formats import WeightFormat


class Lutra(ext.Dialect, name="lutra"):
    """The dialect; `load_dialect` registers it in a context."""


class QuantizedType(Lutra.Type, name="quantized"):
    """`!lutra.quantized<n, k, bits, group_size, scheme>`: weight `[n, k]` in the `WeightFormat` of the rest."""

    n: IntegerAttr
    k: IntegerAttr
    bits: IntegerAttr
    group_size: IntegerAttr
    scheme: StringAttr


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""What `lutra.gated_mlp` may apply: PyTorch's `silu`, `gelu` (erf form), `gelu(approximate="tanh")`, `relu`."""


def _verifier(check: Callable[[Any], str | None]) -> Callable[[Any], bool]:
    """Turn `check(op) -> complaint | None` into the method that MLIR calls; a missing attribute is a complaint too."""

    def verify_invariants(op: Any) -> bool:
        view = op.opview if isinstance(op, Operation) else op
        try:
            complaint = check(view)
        except KeyError as missing:
            complaint = f"attribute {missing} is missing"
        if complaint:
            view.location.emit_error(f"{view.operation.name}: {complaint}")
            return False
        return True

    return verify_invariants


def quantized_format(type_: Any) -> tuple[int, int, WeightFormat] | None:
    """`(n, k, format)` of a `!lutra.quantized` type, or None for any other type."""
    if not str(type_).startswith("!lutra.quantized"):
        return None
    view = QuantizedType(type_)
    number = [IntegerAttr(p).value for p in (view.n, view.k, view.bits, view.group_size)]
    return number[0], number[1], WeightFormat(number[2], number[3], StringAttr(view.scheme).value)  # type: ignore[arg-type]


def _weight_shape(value: Any) -> tuple[int | None, ...]:
    quantized = quantized_format(value.type)
    return quantized[:2] if quantized else tensor_type(value.type).shape


def _last(type_: TensorType) -> int | None:
    return type_.shape[-1] if type_.shape else None


def _differ(a: int | None, b: int | None) -> bool:
    """Two extents are known and differ (None is a symbolic size)."""
    return a is not None and b is not None and a != b


def _check_linear(op: Any, in_features: int | None) -> str | None:
    weight, out = _weight_shape(op.weight), tensor_type(op.out.type)
    if len(weight) != 2:
        return f"weight must be [N, K], got rank {len(weight)}"
    if _differ(in_features, weight[1]):
        return f"x has {in_features} features but the weight takes {weight[1]}"
    if _differ(_last(out), weight[0]):
        return f"result has {_last(out)} features but the weight gives {weight[0]}"
    if op.bias is not None and tensor_type(op.bias.type).shape != (weight[0],):
        return f"bias must be [{weight[0]}], got {list(tensor_type(op.bias.type).shape)}"
    if op.residual is not None and _differ(_last(tensor_type(op.residual.type)), weight[0]):
        return f"residual must end in {weight[0]} features"
    return None


class ParamOp(Lutra.Operation, name="param", traits=[Pure]):
    """A parameter or buffer of the model: `out = store[sym]`, a `!torch.vtensor` or a `!lutra.quantized` weight."""

    sym: StringAttr
    out: Result[Any]


class NumberOp(Lutra.Operation, name="number", traits=[Pure]):
    """A number that follows from the sizes of the graph's arguments: `out = expression`, a `!torch.int` or
    `!torch.float`. `Graph.sizes` has the expression that the text stands for."""

    expression: StringAttr
    out: Result[Any]


class LinearOp(Lutra.Operation, name="linear", traits=[Pure]):
    """`out[..., N] = x[..., K] @ weight[N, K]^T (+ bias[N]) (+ residual[..., N])`.

    `weight` is a tensor or `!lutra.quantized`. Float weights: product rounded to x's dtype, then bias and residual
    are added, as torch does. Quantised: evaluated in float32 with `s * (q - z)` and rounded once; a lowering may
    quantise x to int8 per group."""

    x: Operand[Any]
    weight: Operand[Any]
    out: Result[Any]
    bias: Operand[Any] | None = None
    residual: Operand[Any] | None = None

    verify_invariants = staticmethod(_verifier(lambda op: _check_linear(op, _last(tensor_type(op.x.type)))))


class TableOp(Lutra.Operation, name="table", traits=[Pure]):
    """Lookup tables of an activation (docs/techniques.md, 1.2): the signed sums of 4 consecutive columns, all patterns.

    `out[..., t, w] = sum_k (2 * bit_k(w) - 1) * x[..., 4 t + k]`, float32; K is zero-padded to a multiple of 4.
    `half`: only the 8 patterns with the top bit clear are stored, since `T[w] = -T[~w]`. A lowering may store int8
    entries with a scale per group."""

    x: Operand[Any]
    half: IntegerAttr
    out: Result[Any]

    @staticmethod
    def _check(op: Any) -> str | None:
        k, out = _last(tensor_type(op.x.type)), tensor_type(op.out.type)
        entries = 8 if op.attributes["half"].value else 16
        if _last(out) != entries:
            return f"result must end in {entries} entries, got {_last(out)}"
        if k is not None and _differ(out.shape[-2], -(-k // 4)):
            return f"{k} columns make {-(-k // 4)} tables, got {out.shape[-2]}"
        return None

    verify_invariants = staticmethod(_verifier(lambda op: TableOp._check(op)))


class TableLinearOp(Lutra.Operation, name="table_linear", traits=[Pure]):
    """A quantised linear whose x is given by its tables.

    `out = sum_i p_i * (s/2) * T[planes_i] - (s/2) z' sum(x) (+ bias) (+ residual)`.
    Planes, their weights p_i and z' as in `weights/formats.py`; sum(x) is read off the tables. Bit-exact with
    `lutra.linear` on the same weight in exact arithmetic."""

    table: Operand[Any]
    weight: Operand[Any]
    out: Result[Any]
    bias: Operand[Any] | None = None
    residual: Operand[Any] | None = None

    @staticmethod
    def _check(op: Any) -> str | None:
        quantized = quantized_format(op.weight.type)
        if quantized is None:
            return f"weight must be !lutra.quantized, got {op.weight.type}"
        tables = tensor_type(op.table.type).shape[-2]
        if _differ(tables, -(-quantized[1] // 4)):
            return f"weight takes {quantized[1]} columns but there are {tables} tables of 4"
        return _check_linear(op, None)

    verify_invariants = staticmethod(_verifier(lambda op: TableLinearOp._check(op)))


class GroupedLinearOp(Lutra.Operation, name="grouped_linear", traits=[Pure]):
    """Rows of x times the matrix of their group, as experts are multiplied by the tokens that are routed to them:
    `out[i] = x[i] @ weight[e N : (e + 1) N]^T` for the rows `offsets[e - 1] <= i < offsets[e]` of group e, zero for
    rows from `offsets[E - 1]` on.

    x `[S, K]`, weight `!lutra.quantized` `[E N, K]`, the matrices of E groups below each other; offsets int32 or int64
    `[E]`, where each group ends. Evaluated as `lutra.linear` is."""

    x: Operand[Any]
    weight: Operand[Any]
    offsets: Operand[Any]
    out: Result[Any]

    @staticmethod
    def _check(op: Any) -> str | None:
        quantized = quantized_format(op.weight.type)
        if quantized is None:
            return f"weight must be !lutra.quantized, got {op.weight.type}"
        x, offsets, out = (tensor_type(value.type).shape for value in (op.x, op.offsets, op.out))
        if len(x) != 2 or len(out) != 2 or len(offsets) != 1 or not offsets[0]:
            return f"x must be [S, K] and offsets [E], got {list(x)} and {list(offsets)}"
        if _differ(x[1], quantized[1]):
            return f"x has {x[1]} features but the weight takes {quantized[1]}"
        if _differ(out[1] and out[1] * offsets[0], quantized[0]):
            return f"{offsets[0]} groups of {out[1]} features need as many rows, the weight has {quantized[0]}"
        return None

    verify_invariants = staticmethod(_verifier(lambda op: GroupedLinearOp._check(op)))


class RmsNormOp(Lutra.Operation, name="rms_norm", traits=[Pure]):
    """`out = x / sqrt(mean(x^2, -1) + eps) * weight`, statistics in float32 (Zhang and Sennrich 2019, equation 4).

    `round_before_weight`: the normalised x is rounded to the weight's dtype before the product (Llama), else after."""

    x: Operand[Any]
    weight: Operand[Any]
    eps: FloatAttr
    round_before_weight: IntegerAttr
    out: Result[Any]

    verify_invariants = staticmethod(_verifier(lambda op: _check_norm(op)))


class LayerNormOp(Lutra.Operation, name="layer_norm", traits=[Pure]):
    """`out = (x - mean(x, -1)) / sqrt(var(x, -1) + eps) * weight + bias`, statistics in float32 (Ba et al. 2016)."""

    x: Operand[Any]
    weight: Operand[Any]
    eps: FloatAttr
    out: Result[Any]
    bias: Operand[Any] | None = None

    verify_invariants = staticmethod(_verifier(lambda op: _check_norm(op)))


def _check_norm(op: Any) -> str | None:
    features, weight = _last(tensor_type(op.x.type)), tensor_type(op.weight.type).shape
    if len(weight) != 1 or _differ(features, weight[0]):
        return f"weight must be [{features}], got {list(weight)}"
    if op.attributes["eps"].value < 0:
        return f"eps must not be negative, got {op.attributes['eps'].value}"
    return None


ROPE_PAIRS = ("halves", "adjacent", "adjacent_to_halves")
"""How `lutra.rope` pairs the D columns of a head. `halves`: column i with i + D/2 (Llama); `adjacent`: 2i with 2i + 1
(GPT-J, Cohere, GLM); `adjacent_to_halves`: reads 2i and 2i + 1, writes i and i + D/2 (DeepSeek)."""


class RopeOp(Lutra.Operation, name="rope", traits=[Pure]):
    """Rotary position embedding (Su et al. 2021): `out = y * cos + turned(y) * sin`, each product and the sum rounded.

    x `[B, H, S, D]`; cos, sin `[B or 1, S, D]`, broadcast over heads. `pairs` (see `ROPE_PAIRS`): `turned(y)` is
    `concat(-y[D/2:], y[:D/2])`, or for `adjacent` `-y[2i + 1]` at 2i and `y[2i]` at 2i + 1. y is x, for
    `adjacent_to_halves` `concat(x[0::2], x[1::2])`."""

    x: Operand[Any]
    cos: Operand[Any]
    sin: Operand[Any]
    pairs: StringAttr
    out: Result[Any]

    @staticmethod
    def _check(op: Any) -> str | None:
        x, pairs = tensor_type(op.x.type).shape, op.attributes["pairs"].value
        if pairs not in ROPE_PAIRS:
            return f"pairs {pairs!r} is not one of {', '.join(ROPE_PAIRS)}"
        for table in (op.cos, op.sin):
            shape = tensor_type(table.type).shape
            if len(x) != 4 or len(shape) != 3:
                return f"x must be [B, H, S, D] and cos [B, S, D], got ranks {len(x)} and {len(shape)}"
            if _differ(x[-1], shape[-1]) or _differ(x[2], shape[1]):
                return f"cos or sin {list(shape)} does not fit x {list(x)}"
        return "head size must be even" if x[-1] is not None and x[-1] % 2 else None

    verify_invariants = staticmethod(_verifier(lambda op: RopeOp._check(op)))


class GatedMlpOp(Lutra.Operation, name="gated_mlp", traits=[Pure]):
    """The gate of a gated feed-forward block (Shazeer 2020): `out = activation(gate) * up`.

    Without `up`, `gate` holds both, `[..., 2F]`, gate first: the result of one merged projection."""

    gate: Operand[Any]
    activation: StringAttr
    out: Result[Any]
    up: Operand[Any] | None = None

    @staticmethod
    def _check(op: Any) -> str | None:
        activation = op.attributes["activation"].value
        if activation not in ACTIVATIONS:
            return f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}"
        gate, out = _last(tensor_type(op.gate.type)), _last(tensor_type(op.out.type))
        if gate is not None and _differ(out, gate if op.up is not None else gate // 2):
            return f"gate has {gate} features, the result {out}"
        return None

    verify_invariants = staticmethod(_verifier(lambda op: GatedMlpOp._check(op)))


class SplitOp(Lutra.Operation, name="split", traits=[Pure]):
    """`out = x[..., start : start + size]`, size from the result type: one projection's share of a merged linear."""

    x: Operand[Any]
    start: IntegerAttr
    out: Result[Any]

    @staticmethod
    def _check(op: Any) -> str | None:
        x, out, start = _last(tensor_type(op.x.type)), _last(tensor_type(op.out.type)), op.attributes["start"].value
        if x is not None and out is not None and not 0 <= start <= start + out <= x:
            return f"[{start}, {start + out}) is not inside the {x} features of x"
        return None

    verify_invariants = staticmethod(_verifier(lambda op: SplitOp._check(op)))


class KvUpdateOp(Lutra.Operation, name="kv_update", traits=[Pure]):
    """Write new keys or values into a cache: `out = cache; out[:, :, positions, :] = new`.

    cache `[B, G, L, D]`, new `[B, G, S, D]`, positions int64 `[S]`. A value in the IR; lowered in place when the
    cache is an argument that the graph mutates or a tensor with no other use, so that no cache is ever copied."""

    cache: Operand[Any]
    new: Operand[Any]
    positions: Operand[Any]
    out: Result[Any]

    @staticmethod
    def _check(op: Any) -> str | None:
        cache, new = tensor_type(op.cache.type), tensor_type(op.new.type)
        if len(cache.shape) != 4 or len(new.shape) != 4 or len(tensor_type(op.positions.type).shape) != 1:
            return "cache and new must be [B, G, L, D], positions [S]"
        if cache.dtype != new.dtype:
            return f"cache is {cache.dtype} but the new entries are {new.dtype}"
        return "cache and result types differ" if cache.shape != tensor_type(op.out.type).shape else None

    verify_invariants = staticmethod(_verifier(lambda op: KvUpdateOp._check(op)))


class RopeKvUpdateOp(Lutra.Operation, name="rope_kv_update", traits=[Pure]):
    """What a layer does between its projections and its attention, `lutra.rope` and `lutra.kv_update` in one:

        query = rope(q^T, cos, sin); keys[:, :, positions] = rope(k^T, cos, sin); values[:, :, positions] = v^T

    q `[B, S, H, D]`, k and v `[B, S, G, D]`, as projections give them, `x^T` with the middle dimensions exchanged; cos,
    sin `[B or 1, S, D]`; caches `[B, G, L, D]`; positions int64 `[S]`. Results: query `[B, H, S, D]` and both caches,
    which are lowered in place as `lutra.kv_update` is."""

    q: Operand[Any]
    k: Operand[Any]
    v: Operand[Any]
    cos: Operand[Any]
    sin: Operand[Any]
    key_cache: Operand[Any]
    value_cache: Operand[Any]
    positions: Operand[Any]
    query: Result[Any]
    keys: Result[Any]
    values: Result[Any]

    @staticmethod
    def _check(op: Any) -> str | None:
        q, k, v = (tensor_type(x.type).shape for x in (op.q, op.k, op.v))
        caches = [tensor_type(x.type) for x in (op.key_cache, op.value_cache)]
        if not all(len(shape) == 4 for shape in (q, k, v, *(c.shape for c in caches))):
            return "q, k, v must be [B, S, heads, D] and caches [B, G, L, D]"
        cos = tensor_type(op.cos.type).shape
        if len(cos) != 3 or _differ(q[3], cos[2]) or _differ(q[1], cos[1]):
            return f"cos {list(cos)} does not fit q {list(q)}"
        if len(tensor_type(op.positions.type).shape) != 1:
            return "positions must be [S]"
        if q[3] is not None and q[3] % 2:
            return "head size must be even"
        for new, cache in zip((k, v), caches, strict=True):
            if _differ(new[2], cache.shape[1]) or _differ(new[3], cache.shape[3]):
                return f"new entries {list(new)} do not fit a cache {list(cache.shape)}"
        if {tensor_type(x.type).dtype for x in (op.q, op.k, op.v, op.cos)} != {c.dtype for c in caches}:
            return "q, k, v, cos and the caches must have one dtype"
        if [c.shape for c in caches] != [tensor_type(x.type).shape for x in (op.keys, op.values)]:
            return "cache and result types differ"
        return None

    verify_invariants = staticmethod(_verifier(lambda op: RopeKvUpdateOp._check(op)))


class AttentionOp(Lutra.Operation, name="attention", traits=[Pure]):
    """`out = softmax(scale * q k^T + mask) v` per head, query head h reading key/value head `h * G // H`.

    q `[B, H, S, D]`, k and v `[B, G, L, D]`; mask bool (True = attend) or additive, broadcastable to `[B, H, S, L]`.
    `causal`: query i sees keys j <= i (top-left aligned, as torch's `is_causal`). `merge_heads`: the result is
    `[B, S, H * D]`, else `[B, H, S, D]`."""

    q: Operand[Any]
    k: Operand[Any]
    v: Operand[Any]
    scale: FloatAttr
    causal: IntegerAttr
    merge_heads: IntegerAttr
    out: Result[Any]
    mask: Operand[Any] | None = None

    @staticmethod
    def _check(op: Any) -> str | None:
        q, k, v = (tensor_type(x.type).shape for x in (op.q, op.k, op.v))
        if not len(q) == len(k) == len(v) == 4:
            return f"q, k and v must have rank 4, got {len(q)}, {len(k)}, {len(v)}"
        if _differ(q[3], k[3]):
            return f"q has head size {q[3]}, k {k[3]}"
        if q[1] is not None and k[1] is not None and q[1] % k[1]:
            return f"{k[1]} key/value heads do not divide {q[1]} query heads"
        rank = 3 if op.attributes["merge_heads"].value else 4
        return None if len(tensor_type(op.out.type).shape) == rank else f"result must have rank {rank}"

    verify_invariants = staticmethod(_verifier(lambda op: AttentionOp._check(op)))


def load_dialect(context: Context) -> None:
    """Register the dialect in `context`, once per context."""
    # Whenever an operation is read the bindings look for its dialect in their own package, and do not remember that
    # they found none: without this entry that was half the time of all passes.
    sys.modules.setdefault(f"{ext.__package__}.{Lutra.DIALECT_NAMESPACE}", sys.modules[__name__])
    with context:
        Lutra.load()
