"""Attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result
from torch_mlir.ir import FloatAttr, IntegerAttr

from ..analysis.amounts import CONTEXT, Amount, ValueSizes
from ..types import tensor_type
from .base import Op, Shape, differ, wide


class AttentionOp(Op, name="attention"):
    """Attention, query head h reading key/value head `h * G // H`.

        out = softmax(scale * q k^T + mask) v

    q `[B, H, S, D]`, k and v `[B, G, L, D]`; mask bool (True = attend) or additive, broadcastable to `[B, H, S, L]`.
    `causal`: query i sees keys j <= i (top-left aligned, as torch's `is_causal`). `merge_heads`: the result is
    `[B, S, H * D]`, else `[B, H, S, D]`. A query that may attend nothing gives zeros. Sources: Vaswani et al. 2017;
    Ainslie et al. 2023 (grouped heads)."""

    q: Operand[Any]
    k: Operand[Any]
    v: Operand[Any]
    scale: FloatAttr
    causal: IntegerAttr
    merge_heads: IntegerAttr
    out: Result[Any]
    mask: Operand[Any] | None = None

    @staticmethod
    def check(op: Any) -> str | None:
        q, k, v = (tensor_type(x.type).shape for x in (op.q, op.k, op.v))
        if not len(q) == len(k) == len(v) == 4:
            return f"q, k and v must have rank 4, got {len(q)}, {len(k)}, {len(v)}"
        if differ(q[3], k[3]):
            return f"q has head size {q[3]}, k {k[3]}"
        if q[1] is not None and k[1] is not None and (k[1] == 0 or q[1] % k[1]):
            return f"{k[1]} key/value heads do not divide {q[1]} query heads"
        rank = 3 if op.attributes["merge_heads"].value else 4
        return None if len(tensor_type(op.out.type).shape) == rank else f"result must have rank {rank}"

    @staticmethod
    def reference(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float, causal: bool, merge_heads: bool
    ) -> Tensor:
        """Evaluated in float32 and rounded once to the dtype of q."""
        repeats = q.shape[1] // k.shape[1]
        keys, values = (wide(t).repeat_interleave(repeats, 1) for t in (k, v))
        shift = mask if mask is None or mask.dtype == torch.bool else mask.to(wide(q).dtype)
        out = F.scaled_dot_product_attention(wide(q), keys, values, shift, is_causal=bool(causal), scale=scale)
        return out.to(q.dtype).transpose(1, 2).flatten(2) if merge_heads else out.to(q.dtype)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """4 D + 5 operations for each of B H S C scores (products; scale, mask, maximum, exponential, sum). C is how
        many keys are attended to: in a decode step under a mask the context, else all. Keys and values are read once,
        the mask whole."""
        b, heads, queries, head = sizes.shape(op.q)
        groups, length = sizes.shape(op.k)[1:3]
        keys = CONTEXT if sizes.decode and op.mask is not None else length
        caches = 2 * b * groups * keys * head * tensor_type(op.k.type).dtype.itemsize
        read = sizes.bytes(*(tensor for tensor in (op.q, op.mask) if tensor is not None)) + caches
        operations = b * heads * queries * keys * (4 * head + 5)
        return Amount(read=read, written=sizes.bytes(op.out), operations=operations)

    @staticmethod
    def result_shape(first: Shape, rank: int) -> Shape | None:
        return (first[0], first[2], first[3]) if rank == 3 else first
