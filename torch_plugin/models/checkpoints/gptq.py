"""GPTQ checkpoints: the layout of AutoGPTQ and GPTQModel (their torch `QuantLinear`).

qweight  int32 [K * bits / 32, N]   codes of a column, one stream of bits down the words, lowest bits first
qzeros   int32 [K / G, N * bits / 32]   zero points of a group, the same along the words; "gptq" (v1) stores z - 1
scales   float16 [K / G, N]
g_idx    int32 [K]   group of each input feature

W[n, k] = scales[g, n] * (q[k, n] - z[g, n]) with g = g_idx[k]
"""

import torch

from ....ir.errors import QuantizationError
from ....ir.weights.formats import QuantizedWeight
from .common import Layout, grouped, require, require_matrices, to_float16, unpack_words

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


def from_gptq(
    qweight: torch.Tensor,
    qzeros: torch.Tensor,
    scales: torch.Tensor,
    g_idx: torch.Tensor | None = None,
    checkpoint_format: str = "gptq",
    symmetric: bool = False,
) -> QuantizedWeight:
    """The codes and zero points of one linear layer as they are stored, `[N, K]`; raises `QuantizationError`.

    Bits and group size follow from the shapes. Scales that are not float16 are rounded to it (`to_float16`).
    symmetric: `sym` of the configuration. All zero points must then be 2**(bits - 1), which a checkpoint with the
        wrong `checkpoint_format` does not have; they stay stored zero points, since Lutra's own symmetric scheme has
        its zero half a step lower.
    """
    if checkpoint_format not in FORMATS:
        raise QuantizationError(
            f"checkpoint_format = {checkpoint_format!r} is a layout for one kernel: save it as {' or '.join(FORMATS)}"
        )
    layout = gptq_layout(qweight, qzeros, scales, g_idx)
    bits = layout.format.bits
    _check_order(g_idx, layout.columns, len(scales))
    zeros = _zero_points(qzeros, bits, checkpoint_format)
    if symmetric and (zeros != 2 ** (bits - 1)).any():
        raise QuantizationError(
            f"sym = true has zero points of {2 ** (bits - 1)}, but read as {checkpoint_format!r} they are "
            f"{', '.join(map(str, zeros.unique().tolist()))}: set checkpoint_format or sym in config.json right"
        )
    return QuantizedWeight(
        codes=unpack_words(qweight.t(), bits),
        scales=to_float16(scales.t(), "a scale"),
        zero_points=zeros.t().to(torch.float16).contiguous(),
        format=layout.format,
    )


def gptq_layout(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, g_idx: torch.Tensor | None = None
) -> Layout:
    """What a layer of these types and shapes stands for (values are not read: tensors may be on the meta device);
    raises `QuantizationError`."""
    require_matrices(qweight=qweight, qzeros=qzeros, scales=scales)
    groups, rows = scales.shape
    bits = qzeros.shape[-1] * 32 // rows
    if bits not in BITS:
        raise QuantizationError(
            f"qzeros {list(qzeros.shape)} and scales {list(scales.shape)} make {bits} bits a weight: "
            f"{', '.join(map(str, BITS))} can be read"
        )
    columns = qweight.shape[0] * 32 // bits
    require("qweight", qweight, torch.int32, columns * bits // 32, rows)
    require("qzeros", qzeros, torch.int32, groups, rows * bits // 32)
    require("scales", scales, None, groups, rows)
    if g_idx is not None:
        require("g_idx", g_idx, torch.int32, columns)
    return Layout(rows, columns, grouped(bits, columns, groups))


def _zero_points(qzeros: torch.Tensor, bits: int, checkpoint_format: str) -> torch.Tensor:
    """Zero points uint8 `[K / G, N]`.

    v1 stores z - 1. Where z is 0 that borrows from the next field of the word, since GPTQModel subtracts word by word;
    adding word by word undoes it. With 3 bits, whose fields cross words, it subtracts field by field."""
    if checkpoint_format == "gptq_v2":
        return unpack_words(qzeros, bits)
    if bits == 3:
        return unpack_words(qzeros, bits) + 1 & 7
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return unpack_words(qzeros + ones, bits)


def _check_order(g_idx: torch.Tensor | None, columns: int, groups: int) -> None:
    """Raise `QuantizationError` unless every group is `columns / groups` input features in a row."""
    if g_idx is None:
        return
    outside = g_idx[(g_idx < 0) | (g_idx >= groups)]
    if len(outside):
        raise QuantizationError(f"g_idx names group {outside[0].item()}, of {groups} groups")
    if not torch.equal(g_idx, torch.arange(columns, dtype=torch.int32) // (columns // groups)):
        raise QuantizationError(
            "the input features of a group lie apart (g_idx is not 0, ..., 0, 1, ..., 1, ...), which desc_act = true "
            "does: no kernel gathers them; quantise with desc_act = false or with static_groups = true"
        )
