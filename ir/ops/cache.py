"""What is written into the caches of keys and values."""

from typing import Any

from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result

from ..analysis.amounts import Amount, ValueSizes
from ..types import tensor_type
from .base import Op, differ, first_rows
from .rope import ROTATION, RopeOp


class KvUpdateOp(Op, name="kv_update"):
    """Write new keys or values into a cache.

        out = cache; out[:, :, positions, :] = new

    cache `[B, G, L, D]`, new `[B, G, S, D]`, positions int64 `[S]`. A value in the IR; lowered in place when the
    cache is an argument that the graph mutates or a tensor with no other use, so that no cache is ever copied."""

    OVERWRITES = {"cache": "out"}

    cache: Operand[Any]
    new: Operand[Any]
    positions: Operand[Any]
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        cache, new = tensor_type(op.cache.type), tensor_type(op.new.type)
        if len(cache.shape) != 4 or len(new.shape) != 4 or len(tensor_type(op.positions.type).shape) != 1:
            return "cache and new must be [B, G, L, D], positions [S]"
        if cache.dtype != new.dtype:
            return f"cache is {cache.dtype} but the new entries are {new.dtype}"
        return "cache and result types differ" if cache.shape != tensor_type(op.out.type).shape else None

    @staticmethod
    def reference(cache: Tensor, new: Tensor, positions: Tensor) -> Tensor:
        """As a value: the cache that is passed in stays as it was."""
        return cache.index_copy(2, positions, new)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """The new entries are read and written, no others: the cache is written in place."""
        new = sizes.bytes(op.new)
        return Amount(read=new, written=new)

    result_shape = staticmethod(first_rows)


class RopeKvUpdateOp(Op, name="rope_kv_update"):
    """What a layer does between its projections and its attention, `lutra.rope` and `lutra.kv_update` in one.

        query = rope(q^T, cos, sin)
        keys = key_cache; keys[:, :, positions] = rope(k^T, cos, sin)
        values = value_cache; values[:, :, positions] = v^T

    q `[B, S, H, D]`, k and v `[B, S, G, D]`, as projections give them, `x^T` with the middle dimensions exchanged; cos,
    sin `[B or 1, S, D]`, columns paired by halves; caches `[B, G, L, D]`; positions int64 `[S]`. Results: query
    `[B, H, S, D]` and both caches, which are lowered in place as `lutra.kv_update` is."""

    OVERWRITES = {"key_cache": "keys", "value_cache": "values"}

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
    def check(op: Any) -> str | None:
        q, k, v = (tensor_type(x.type).shape for x in (op.q, op.k, op.v))
        caches = [tensor_type(x.type) for x in (op.key_cache, op.value_cache)]
        if not all(len(shape) == 4 for shape in (q, k, v, *(c.shape for c in caches))):
            return "q, k, v must be [B, S, heads, D] and caches [B, G, L, D]"
        cos = tensor_type(op.cos.type).shape
        if len(cos) != 3 or differ(q[3], cos[2]) or differ(q[1], cos[1]):
            return f"cos {list(cos)} does not fit q {list(q)}"
        if len(tensor_type(op.positions.type).shape) != 1:
            return "positions must be [S]"
        if q[3] is not None and q[3] % 2:
            return "head size must be even"
        for new, cache in zip((k, v), caches, strict=True):
            if differ(new[2], cache.shape[1]) or differ(new[3], cache.shape[3]):
                return f"new entries {list(new)} do not fit a cache {list(cache.shape)}"
        if {tensor_type(x.type).dtype for x in (op.q, op.k, op.v, op.cos)} != {c.dtype for c in caches}:
            return "q, k, v, cos and the caches must have one dtype"
        if [c.shape for c in caches] != [tensor_type(x.type).shape for x in (op.keys, op.values)]:
            return "cache and result types differ"
        return None

    @staticmethod
    def reference(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        positions: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As values: query, keys and values."""
        query, key = (RopeOp.reference(x.transpose(1, 2), cos, sin) for x in (q, k))
        write = KvUpdateOp.reference
        return query, write(key_cache, key, positions), write(value_cache, v.transpose(1, 2), positions)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Three operations for each element of q and k; q, k and v are read and written once, no other part of the
        caches is."""
        rotated = sizes.elements(op.q) + sizes.elements(op.k)
        moved = sizes.bytes(op.q, op.k, op.v)
        return Amount(read=moved + sizes.bytes(op.cos, op.sin), written=moved, operations=ROTATION * rotated)
