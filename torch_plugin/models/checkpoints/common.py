"""What the layouts have in common: codes in words of 32 bits, groups of equal size, scales in float16."""

from dataclasses import dataclass

import torch

from ....ir.errors import QuantizationError
from ....ir.weights.formats import GROUP_SIZES, PER_CHANNEL, WeightFormat


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 `[rows, words * 32 / bits]` of int32 `[rows, words]`: one stream of bits a row, lowest bits first.

    Codes of 3 bits run on from word to word: 32 of them take three words."""
    stream = words.contiguous().view(torch.uint8)
    if bits == 3:  # the smallest whole number of bytes: eight codes in three
        triples = stream.reshape(len(stream), -1, 3).int()
        fields = triples[..., 0] | triples[..., 1] << 8 | triples[..., 2] << 16
        shifts = torch.arange(0, 24, 3, dtype=torch.int32)
    else:
        fields, shifts = stream, torch.arange(0, 8, bits, dtype=torch.uint8)
    return (fields.unsqueeze(-1) >> shifts & 2**bits - 1).to(torch.uint8).flatten(1)


@dataclass(frozen=True)
class Layout:
    """A matrix of codes `[rows, columns]`, which is `[N, K]`."""

    rows: int
    columns: int
    format: WeightFormat


def grouped(bits: int, columns: int, groups: int) -> WeightFormat:
    """Asymmetric format of a weight with K = `columns` in `groups` groups; raises `QuantizationError`."""
    if columns % groups:
        raise QuantizationError(f"{groups} groups do not divide {columns} input features")
    size = columns // groups
    return WeightFormat(bits, PER_CHANNEL if groups == 1 and size not in GROUP_SIZES else size, "asymmetric")


def to_float16(values: torch.Tensor, what: str) -> torch.Tensor:
    """`values` (any floating type) in float16, contiguous; raises `QuantizationError` for one that has no place there.

    float16 stays as it is. bfloat16 is exact from 2**-14 on; float32 is rounded there by at most 2**-11 of the value.
    Below 2**-14, both are rounded by at most 2**-25."""
    rounded = values.to(torch.float16)
    lost = ~rounded.isfinite() | ((rounded == 0) & (values != 0))
    if lost.any():
        raise QuantizationError(
            f"{what} of {values[lost][0].item():g} does not fit float16, in which Lutra keeps it: "
            "finite, up to 65504, and not under 6e-8 unless 0"
        )
    return rounded.contiguous()


def require_matrices(**tensors: torch.Tensor) -> None:
    """Raise `QuantizationError` unless each of `tensors` has two dimensions, none of them 0."""
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not tensor.numel():
            raise QuantizationError(f"{name} has the shape {list(tensor.shape)}: a matrix would be right")


def require(name: str, tensor: torch.Tensor, dtype: torch.dtype | None, *shape: int) -> None:
    """Raise `QuantizationError` unless `tensor` has `shape` and `dtype` (None: any floating one)."""
    fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
    if not fits or tuple(tensor.shape) != shape:
        wanted = "floating point" if dtype is None else dtype
        raise QuantizationError(f"{name} is {tensor.dtype} {list(tensor.shape)}: {wanted} {list(shape)} would fit")
