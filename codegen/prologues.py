"""What may be computed inside the kernel that reads it: the norm or the gate before a product, for one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RmsNormPrologue:
    """`round(x / rms(x)) * weight` of x `[M, K]` and the weight `[K]`; `round_before_weight`: rounded to x's dtype
    before the product too."""

    eps: float
    round_before_weight: bool
    weight_dtype: str


@dataclass(frozen=True)
class GatedMlpPrologue:
    """`round(activation(gate)) * up` of gate and up in one `[M, 2K]`; activation: of `ir.ops.gate.ACTIVATIONS`."""

    activation: str


Prologue = RmsNormPrologue | GatedMlpPrologue
