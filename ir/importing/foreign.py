"""Tensors of dtypes that MLIR's torch dialect or TVM lacks, written as tensors of dtypes that both have.

A graph holds only encoded values; what computes with the dtype itself is torch (`fx_regions.py`), and whoever calls the
graph encodes its arguments and decodes its results. Every encoding is a view: an update of it updates the original.
"""

import torch

from ..errors import CaptureError
from ..types import DTYPES

_COMPLEX = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_SAME_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_foreign(dtype: torch.dtype) -> bool:
    """True when a graph has no value of `dtype`."""
    return dtype in _COMPLEX or dtype not in DTYPES.values()


def encode(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, of a foreign dtype: complex `[...]` as the real `[..., 2]`, others as integers of as many bits.

    Raises `CaptureError` when its dtype has no such view."""
    if tensor.dtype in _COMPLEX:
        return torch.view_as_real(tensor.resolve_conj().resolve_neg())
    try:
        return tensor.view(_SAME_WIDTH[tensor.dtype.itemsize])
    except (KeyError, RuntimeError) as error:
        raise CaptureError(f"a tensor of {tensor.dtype} cannot be written as one of another type: {error}") from None


def decode(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of `dtype` that was encoded as `tensor`."""
    return torch.view_as_complex(tensor.contiguous()) if dtype in _COMPLEX else tensor.view(dtype)
