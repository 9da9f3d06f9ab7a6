"""Rotary position embedding."""

from typing import Any

import torch
from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result
from torch_mlir.ir import StringAttr

from ..analysis.amounts import Amount, ValueSizes
from ..types import tensor_type
from .base import Op, differ, first_rows

ROPE_PAIRS = ("halves", "adjacent", "adjacent_to_halves")
"""How `lutra.rope` pairs the D columns of a head."""
ROTATION = 3
"""Operations for an element that is rotated: two products and a sum."""


class RopeOp(Op, name="rope"):
    """Rotary position embedding, each product and the sum rounded.

        out = y * cos + turned(y) * sin

    x `[B, H, S, D]`; cos, sin `[B or 1, S, D]`, broadcast over heads. `pairs` says which columns turn together:

    * `halves` (Llama): i and i + D/2, `turned(y) = concat(-y[D/2:], y[:D/2])`;
    * `adjacent` (GPT-J, Cohere, GLM): 2i and 2i + 1, `turned(y)` has `-y[2i + 1]` at 2i and `y[2i]` at 2i + 1;
    * `adjacent_to_halves` (DeepSeek): reads 2i and 2i + 1, writes i and i + D/2: as `halves`, of another y.

    y is x, for `adjacent_to_halves` `concat(x[0::2], x[1::2])`. Source: Su et al. 2021."""

    x: Operand[Any]
    cos: Operand[Any]
    sin: Operand[Any]
    pairs: StringAttr
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        x, pairs = tensor_type(op.x.type).shape, op.attributes["pairs"].value
        if pairs not in ROPE_PAIRS:
            return f"pairs {pairs!r} is not one of {', '.join(ROPE_PAIRS)}"
        for table in (op.cos, op.sin):
            shape = tensor_type(table.type).shape
            if len(x) != 4 or len(shape) != 3:
                return f"x must be [B, H, S, D] and cos [B, S, D], got ranks {len(x)} and {len(shape)}"
            if differ(x[-1], shape[-1]) or differ(x[2], shape[1]):
                return f"cos or sin {list(shape)} does not fit x {list(x)}"
        return "head size must be even" if x[-1] is not None and x[-1] % 2 else None

    @staticmethod
    def reference(x: Tensor, cos: Tensor, sin: Tensor, *, pairs: str = "halves") -> Tensor:
        """Shape and dtype of x."""
        if pairs == "adjacent":
            turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        else:
            x = x if pairs == "halves" else torch.cat((x[..., ::2], x[..., 1::2]), -1)
            low, high = x.chunk(2, -1)
            turned = torch.cat((-high, low), -1)
        return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Three operations for each element: two products and a sum."""
        return sizes.elementwise(op, ROTATION)

    result_shape = staticmethod(first_rows)
