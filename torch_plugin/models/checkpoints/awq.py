"""AWQ checkpoints: the layout of AutoAWQ's GEMM version (`WQLinear_GEMM`), which is what `version: gemm` stands for.

qweight  int32 [K, N / 8]       eight codes of 4 bits in a word: those of output features 0, 2, 4, 6, 1, 3, 5, 7 of
                                its eight, lowest bits first
qzeros   int32 [K / G, N / 8]   zero points, the same
scales   float16 [K / G, N]

W[n, k] = scales[k // G, n] * (q[k, n] - z[k // G, n])
"""

import torch

from ....ir.errors import QuantizationError
from ....ir.weights.formats import QuantizedWeight
from .common import Layout, grouped, require, require_matrices, to_float16, unpack_words


def from_awq(
    qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, version: str = "gemm"
) -> QuantizedWeight:
    """The codes and zero points of one linear layer as they are stored, `[N, K]`; raises `QuantizationError`.

    Scales that are not float16 are rounded to it (`to_float16`)."""
    if version.lower() != "gemm":
        raise QuantizationError(
            f"version = {version!r} orders codes for other kernels: save the model with version = 'gemm'"
        )
    layout = awq_layout(qweight, qzeros, scales)
    return QuantizedWeight(
        codes=_in_order(qweight).t().contiguous(),
        scales=to_float16(scales.t(), "a scale"),
        zero_points=_in_order(qzeros).t().to(torch.float16).contiguous(),
        format=layout.format,
    )


def awq_layout(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor) -> Layout:
    """What a layer of these types and shapes stands for (values are not read: tensors may be on the meta device);
    raises `QuantizationError`."""
    require_matrices(qweight=qweight, qzeros=qzeros, scales=scales)
    columns, (groups, rows) = qweight.shape[0], scales.shape
    if qweight.shape[-1] * 8 != rows:
        raise QuantizationError(
            f"qweight {list(qweight.shape)} and scales {list(scales.shape)} are not [K, N / 8] and [K / G, N] of AWQ's "
            "GEMM version with 4 bits: save the model with version = 'gemm'"
        )
    require("qweight", qweight, torch.int32, columns, rows // 8)
    require("qzeros", qzeros, torch.int32, groups, rows // 8)
    require("scales", scales, None, groups, rows)
    return Layout(rows, columns, grouped(4, columns, groups))


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """Fields uint8 `[rows, N]` of `words [rows, N / 8]`, output features in order: the evens of eight come first."""
    return unpack_words(words, 4).unflatten(1, (-1, 2, 4)).transpose(2, 3).flatten(1)
