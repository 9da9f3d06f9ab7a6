"""The gate of a gated feed-forward block."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result
from torch_mlir.ir import StringAttr

from ..analysis.amounts import Amount, ValueSizes
from .base import Op, differ, features, first_rows

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,  # by the error function
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
"""What `lutra.gated_mlp` may apply."""


class GatedMlpOp(Op, name="gated_mlp"):
    """The gate of a gated feed-forward block.

        out = activation(gate) * up

    gate, up and out `[..., F]`; without `up`, `gate` holds both, `[..., 2F]`, gate first: the result of one merged
    projection. `activation`: `silu`, `gelu` (by the error function), `gelu_tanh` or `relu`. Source: Shazeer 2020."""

    gate: Operand[Any]
    activation: StringAttr
    out: Result[Any]
    up: Operand[Any] | None = None

    @staticmethod
    def check(op: Any) -> str | None:
        activation = op.attributes["activation"].value
        if activation not in ACTIVATIONS:
            return f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}"
        gate, out = features(op.gate), features(op.out)
        if gate is not None and differ(out, gate if op.up is not None else gate // 2):
            return f"gate has {gate} features, the result {out}"
        return None

    @staticmethod
    def reference(gate: Tensor, up: Tensor | None = None, *, activation: str) -> Tensor:
        """`[..., F]`."""
        if up is None:
            gate, up = gate.chunk(2, -1)
        return ACTIVATIONS[activation](gate) * up

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Five operations for each element: exponential, sum, quotient, two products."""
        return sizes.elementwise(op, 5)

    result_shape = staticmethod(first_rows)
