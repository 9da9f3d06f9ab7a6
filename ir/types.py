"""Python view of `!torch.vtensor` types: torch-mlir has no class for them, so their text is parsed (and cached)."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .errors import CaptureError

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
    "si64": torch.int64,
    "si32": torch.int32,
    "si16": torch.int16,
    "si8": torch.int8,
    "ui8": torch.uint8,
    "i1": torch.bool,
    "complex<f32>": torch.complex64,
    "complex<f64>": torch.complex128,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PATTERN = re.compile(r"^!torch\.v?tensor<\[([^\]]*)\],([^,>]+(?:<[^>]*>)?)(?:,.*)?>$")


@dataclass(frozen=True)
class TensorType:
    """Shape (None for a size known at run time only) and torch dtype of a value."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        """The MLIR spelling, `!torch.vtensor<[1,?,64],f32>`."""
        dims = ",".join("?" if d is None else str(d) for d in self.shape)
        return f"!torch.vtensor<[{dims}],{_NAMES[self.dtype]}>"


@lru_cache(maxsize=4096)
def _parse(text: str) -> TensorType | None:
    found = _PATTERN.match(text)
    if not found or found[2] not in DTYPES:
        return None
    dims = tuple(None if d == "?" else int(d) for d in found[1].split(",") if d)
    return TensorType(dims, DTYPES[found[2]])


def as_tensor_type(type_: Any) -> TensorType | None:
    """The tensor type behind an MLIR type (or its text), or None when it is something else (an int, a list, ...)."""
    return _parse(str(type_))


def tensor_type(type_: Any) -> TensorType:
    """As `as_tensor_type`; raises `CaptureError` for a value that is not a ranked tensor of a known dtype."""
    parsed = as_tensor_type(type_)
    if parsed is None:
        raise CaptureError(f"{type_} is not a tensor type with a rank and a dtype that Lutra knows")
    return parsed
