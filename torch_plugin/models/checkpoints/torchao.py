"""torchao's int4 weights (0.18): the tensor subclasses that `quantize_(model, Int4WeightOnlyConfig(...))` makes.

Int4Tensor (packing format "plain")
    qdata       int8 or uint8 [N, K / 2]   codes -8 ... 7 of two neighbours in a byte, the first in the low bits
    scale       [K / G, N]
    zero_point  [K / G, N]   floating: what the code 0 stands for
    W = scale * q + zero_point
Int4OpaqueTensor (torchao.prototype.quantization.int4, for CPUs)
    qdata           uint8 [N, K / 2]   what `aten._convert_weight_to_int4pack_for_cpu` makes of codes 0 ... 15
    scale_and_zero  [K / G, N, 2]
    W = scale * (q - 8) + zero

Both are read by their attributes; torchao need not be there. The zero points are no integers: W = s * (q - z) has
z = 8 - zero / s for unsigned codes, rounded to float16, which moves a weight by at most 2**-11 * |z| steps of s (2**-8
where z is within the codes).
"""

from typing import Any

import torch

from ....ir.errors import QuantizationError
from ....ir.weights.formats import QuantizedWeight
from .common import grouped, require, to_float16

LAYOUTS = ("Int4Tensor", "Int4OpaqueTensor")

_PLAIN = "quantise with the plain layout, Int4WeightOnlyConfig(int4_packing_format='plain')"

_INT4PACK = ((64, True), (32, True), (32, False), (16, False))
"""Rows in a block, and whether a byte holds rows half a block apart (else neighbours): AVX-512, AVX2, without vectors
of 8 floats, with ones of 4 (aten/src/ATen/native/cpu/int4mm_kernel.cpp, `weight_to_int4pack_kernel`)."""


def from_torchao(weight: torch.Tensor) -> QuantizedWeight:
    """The codes of one weight as they are stored, `[N, K]`; raises `QuantizationError`.

    Scales that are not float16 are rounded to it (`to_float16`), zero points as said above."""
    stored: Any = weight  # attributes of a subclass that is not imported
    kind = type(weight).__name__
    if kind not in LAYOUTS:
        raise QuantizationError(
            f"{kind} is none of torchao's layouts that can be read, {' and '.join(LAYOUTS)}: {_PLAIN}"
        )
    if getattr(stored, "act_mapping_type", None) is not None:
        raise QuantizationError(
            f"an {kind} for int8 activations (act_mapping_type = {stored.act_mapping_type!r}) orders its codes for one "
            f"kernel: {_PLAIN}"
        )
    if weight.ndim != 2 or list(stored.block_size)[:-1] != [1]:
        raise QuantizationError(
            f"an {kind} of shape {list(weight.shape)} in blocks of {list(stored.block_size)} is no matrix with groups "
            "along its input features: [N, K] in blocks of [1, G] would be"
        )
    if stored.act_pre_scale is not None:
        raise QuantizationError(
            f"an {kind} with act_pre_scale multiplies its inputs, too: multiply what is before by it and set it to None"
        )
    rows, columns = weight.shape
    groups = columns // stored.block_size[-1]
    qdata = stored.qdata.view(torch.uint8)
    require("qdata", qdata, torch.uint8, rows, columns // 2)
    if kind == "Int4Tensor":
        scale, zero = stored.scale, stored.zero_point
        codes = torch.stack([qdata & 15, qdata >> 4], -1).flatten(1) ^ 8  # two's complement to 0 ... 15
    else:
        scale, zero = stored.scale_and_zero.unbind(-1)
        codes = _opaque_codes(qdata, rows, columns)
    require("scale", scale, None, groups, rows)
    require("zero_point", zero, None, groups, rows)
    scales = to_float16(scale.t(), "a scale")
    if (scales == 0).any():
        raise QuantizationError("a scale of 0 leaves no zero point that stands for the group: quantise it again")
    # By the rounded scale: what code 8 stands for does not move.
    zeros = (8 - zero.t().double() / scales.double()).to(torch.float16).contiguous()
    if not zeros.isfinite().all():
        raise QuantizationError(
            "a group's zero point is more than 65504 steps of its scale from its codes, too far for float16: "
            "quantise it again, by a method whose ranges include 0"
        )
    return QuantizedWeight(codes, scales, zeros, grouped(4, columns, groups))


def _opaque_codes(packed: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Codes uint8 `[rows, columns]` that torch packed on a machine like this one.

    The order depends on the processor, and the tensor does not say which it was; torch's own kernels take it for this
    one's. Which order that is, a small matrix tells that torch packs here."""
    row = torch.arange(rows, dtype=torch.int32)
    probe = torch.stack([row % 16, row // 16 % 16], 1)  # no two rows of a block are equal
    seen = torch.ops.aten._convert_weight_to_int4pack_for_cpu(probe, 1)
    for block, apart in _INT4PACK:
        if torch.equal(_unpack_blocks(seen, rows, 2, block, apart), probe.byte()):
            return _unpack_blocks(packed, rows, columns, block, apart)
    raise QuantizationError("torch packs int4 weights on this processor in an order that is not known here: " + _PLAIN)


def _unpack_blocks(packed: torch.Tensor, rows: int, columns: int, block: int, apart: bool) -> torch.Tensor:
    """Blocks of `block` rows, in each column by column; the rows that fill no block are always packed as neighbours."""
    whole = rows // block * block

    def unpacked(part: torch.Tensor, height: int, apart: bool) -> torch.Tensor:
        pairs = part.reshape(-1, columns, height // 2)
        low, high = pairs & 15, pairs >> 4
        fields = torch.cat([low, high], -1) if apart else torch.stack([low, high], -1).flatten(2)
        return fields.transpose(1, 2).reshape(-1, columns)

    parts = [unpacked(packed[:whole], block, apart)] if whole else []
    if whole < rows:
        parts.append(unpacked(packed[whole:], rows - whole, False))
    return torch.cat(parts)
