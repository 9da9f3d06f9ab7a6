"""Blocks of GGUF files as quantised weights (ggml's ggml-common.h; `gguf.quants` computes the same in numpy).

======  =====  ==========================================================  =====================================
type    block  bytes of a block                                            what it is here
======  =====  ==========================================================  =====================================
Q4_0    32     d float16, 16 bytes: code i in the low bits of byte i,      asymmetric, 4 bits, group 32, z = 8
               code i + 16 in its high bits; w = d * (q - 8)
Q8_0    32     d float16, 32 int8; w = d * q                               asymmetric, 8 bits, group 32, z = 128
TQ2_0   256    64 bytes, d float16; code j of four in byte i of a half     ternary, group 256
               stands for weight 32 * j + i of its 128; w = d * (q - 1)
======  =====  ==========================================================  =====================================

Codes and scales are those of the file; nothing is rounded. d may be negative in Q4_0.
"""

from collections.abc import Callable

import torch

from ....ir.errors import QuantizationError
from ....ir.weights.formats import QuantizedWeight, WeightFormat


def from_gguf(rows: torch.Tensor, kind: str) -> QuantizedWeight:
    """The codes of one matrix as they are stored.

    rows: uint8 `[N, bytes of K weights]` of whole blocks of `kind` (a key of `KINDS`).
    Raises `QuantizationError`."""
    if kind not in KINDS:
        raise QuantizationError(f"type {kind} cannot be read without quantising again: {', '.join(KINDS)} can")
    block_bytes, read = KINDS[kind]
    return read(rows.unflatten(1, (-1, block_bytes)))


def _q4_0(blocks: torch.Tensor) -> QuantizedWeight:
    pairs = blocks[..., 2:]
    return _shifted(torch.cat([pairs & 15, pairs >> 4], -1), blocks[..., :2], 4)


def _q8_0(blocks: torch.Tensor) -> QuantizedWeight:
    return _shifted(blocks[..., 2:] ^ 128, blocks[..., :2], 8)  # int8 to 0 ... 255: its sign bit


def _shifted(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> QuantizedWeight:
    """Codes whose zero point is half of their range, `[N, blocks, 32]`, with a scale a block."""
    scales = _float16(scales)
    zeros = torch.full_like(scales, 2 ** (bits - 1))
    return QuantizedWeight(codes.flatten(1), scales, zeros, WeightFormat(bits, 32, "asymmetric"))


def _tq2_0(blocks: torch.Tensor) -> QuantizedWeight:
    bytes_ = blocks[..., :64].unflatten(-1, (2, 1, 32))
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).reshape(4, 1)
    codes = (bytes_ >> shifts & 3).flatten(1)
    if (codes == 3).any():
        raise QuantizationError("a TQ2_0 block holds the code 3, which is no ternary one: the file is damaged")
    return QuantizedWeight(codes, _float16(blocks[..., 64:]), None, WeightFormat(2, 256, "ternary"))


def _float16(bytes_: torch.Tensor) -> torch.Tensor:
    """float16 `[N, blocks]` of uint8 `[N, blocks, 2]`."""
    scales = bytes_.contiguous().view(torch.float16).squeeze(-1)
    if not scales.isfinite().all():
        raise QuantizationError("a block has a scale that is NaN or infinite: the file is damaged")
    return scales


KINDS: dict[str, tuple[int, Callable[[torch.Tensor], QuantizedWeight]]] = {
    "Q4_0": (18, _q4_0),
    "Q8_0": (34, _q8_0),
    "TQ2_0": (66, _tq2_0),
}
"""Bytes of a block, and what reads `[N, blocks, bytes]`."""
