"""What `unpacked_linear.py` calls for each part of a weight that it has unpacked: torch's product, on raw addresses.

TVM takes no tensors on the stack, and a scratch matrix is one."""

import ctypes
import math
from functools import cache
from typing import Any

import torch
import tvm_ffi

from ...runtime.callbacks import product

PRODUCT = "lutra.library.product_of_rows"
"""The packed function."""


@cache
def register() -> None:
    """Make the function known to TVM, once per process."""
    tvm_ffi.register_global_func(PRODUCT, _product_of_rows, override=True)


def _product_of_rows(
    compute: str, dtype: str, bias: str, residual: int, m: int, n: int, k: int, first: int, count: int, *pointers: Any
) -> None:
    """Columns `first : first + count` of `out = x W^T (+ bias) (+ residual)`, from those rows of W.

    pointers: of x, the rows, out and what there is of the rest."""
    x = _at(pointers[0], (m, k), compute)
    matrix = _at(pointers[1], (count, k), compute)
    part = slice(first, first + count)
    out = _at(pointers[2], (m, n), dtype)[:, part]
    product(x, matrix, _at(pointers[3], (n,), bias)[part] if bias else None, out)
    if residual:
        out.add_(_at(pointers[-1], (m, n), dtype)[:, part])


def _at(pointer: Any, shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    """The compact tensor at an address, which stays its owner's."""
    type_ = getattr(torch, dtype)
    size = math.prod(shape)
    if size == 0:
        return torch.empty(shape, dtype=type_)
    return torch.frombuffer((ctypes.c_byte * (size * type_.itemsize)).from_address(pointer.value), dtype=type_).view(
        shape
    )
