"""Where compiled code runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ALIGNMENT = 64
"""Bytes; what compiled code may assume of a tensor's address."""


@dataclass(frozen=True)
class Device:
    """tvm: as TVM calls it. empty: `empty(shape, dtype)`, memory for what is read again and again. prepare: makes known
    to TVM what kernels of this device call back, once in a process."""

    name: str
    tvm: Any
    empty: Callable[[Sequence[int], torch.dtype], torch.Tensor]
    prepare: Callable[[], None]

    def usable(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` itself when compiled code may read it where it is: compact and aligned; else a copy."""
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        if tensor.data_ptr() % ALIGNMENT:
            return tensor.clone()
        return tensor.detach() if tensor.requires_grad else tensor
