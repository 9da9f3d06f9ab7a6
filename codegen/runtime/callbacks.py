"""What compiled graphs call back into torch for: operators without a lowering, and products that torch's library does
best.

Tensors cross without a copy. A result that shares memory with an argument is copied: the executable plans its memory
ahead and would write over it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import tvm_ffi

from ...ir.operator_call import OperatorCall

SCRATCH_BYTES = 8 << 20
"""Of the part of a converted or unpacked weight that is multiplied at once. Zen 3, two threads: 128 x 2048 times 2048 x
1024 in float32 from such a matrix runs at 102 GFLOP/s, times 2048 x 8192 at 66."""
SCRATCH_STEP = 64
"""Rows of such a part are a multiple of these."""

_parse = cache(OperatorCall.from_json)
Region = Callable[..., tuple[torch.Tensor, ...]]
_regions = threading.local()


def scratch_rows(k: int, itemsize: int, most: int = SCRATCH_BYTES) -> int:
    """Rows of a weight with k columns that are multiplied at once: within `most` bytes where they can be."""
    return max(most // (k * itemsize) // SCRATCH_STEP, 1) * SCRATCH_STEP


@contextmanager
def running(regions: Mapping[str, Region]) -> Iterator[None]:
    """Within the block, calls of regions by this thread find them in `regions`; one executable may call another."""
    before, _regions.known = getattr(_regions, "known", {}), regions
    try:
        yield
    finally:
        _regions.known = before


def _to_torch(value: Any) -> Any:
    return torch.from_dlpack(value) if isinstance(value, tvm_ffi.Tensor) else value


def _owned(result: torch.Tensor, arguments: list[Any]) -> torch.Tensor:
    """`result`, compact and in memory of its own."""
    if not result.is_contiguous():
        return result.contiguous()
    place = result.untyped_storage().data_ptr()
    if any(isinstance(a, torch.Tensor) and a.untyped_storage().data_ptr() == place for a in arguments):
        return result.clone()
    return result


def _torch_call(text: str, *values: Any) -> Any:
    """Run the `OperatorCall` that `text` describes; a list of results where it has several, or is a region."""
    call, arguments = _parse(str(text)), [_to_torch(v) for v in values]
    if call.region is not None:
        made = _regions.known[call.region](*call.filled(arguments))
    else:
        made = call(*arguments)
    results = [tvm_ffi.from_dlpack(_owned(r, arguments)) for r in made]
    return results[0] if len(results) == 1 and call.region is None else results


def _linear(bias: bool, residual: bool) -> Callable[..., None]:
    """`out = x W^T (+ bias) (+ residual)`; x `[M, K]`, W `[N, K]`, converted to x's dtype if it has another. W may be
    several matrices, whose rows follow each other."""

    def run(*values: Any) -> None:
        x, *rest, out = (_to_torch(v) for v in values)
        count = len(rest) - bias - residual
        extra, first = rest[count:], 0
        for weight in rest[:count]:
            part = slice(first, first + len(weight))
            part_of(x, weight, extra[0][part] if bias else None, out[:, part])
            first += len(weight)
        if residual:
            out.add_(extra[-1])

    def part_of(x: torch.Tensor, weight: torch.Tensor, added: torch.Tensor | None, out: torch.Tensor) -> None:
        n, k = weight.shape
        rows = min(scratch_rows(k, 4), n) if x.dtype is torch.float32 and n else max(n, 1)
        scratch = None if weight.dtype == x.dtype else torch.empty(rows, k, dtype=x.dtype)
        for first in range(0, n, rows):
            part = slice(first, first + rows)
            matrix = weight[part]
            if scratch is not None:
                matrix = scratch[: len(matrix)].copy_(matrix)
            product(x, matrix, added[part] if added is not None else None, out[:, part])

    return run


def _copy(*values: Any) -> None:
    """`out = x`."""
    x, out = (_to_torch(v) for v in values)
    out.copy_(x)


def product(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """`out = x matrix^T (+ bias)`, rounded once if `out` has fewer bits than x."""
    result = out if out.dtype == x.dtype else torch.empty(out.shape, dtype=x.dtype)
    if bias is not None:
        torch.addmm(bias.to(x.dtype), x, matrix.t(), out=result)
    else:
        torch.mm(x, matrix.t(), out=result)
    if result is not out:
        out.copy_(result)


def _attention(causal: bool, masked: bool, merged: bool) -> Callable[..., Any]:
    """`lutra.attention` for many query positions."""

    def run(scale: float, *values: Any) -> Any:
        q, k, v, *mask = (_to_torch(value) for value in values)
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, mask[0] if masked else None, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        out = out.transpose(1, 2).flatten(2) if merged else out
        return tvm_ffi.from_dlpack(_owned(out, [q, k, v]))

    return run


@cache
def register() -> None:
    """Make the functions known to TVM, once per process."""
    functions: dict[str, Callable[..., Any]] = {"lutra.torch_call": _torch_call, "lutra.library.copy": _copy}
    functions["lutra.library.empty"] = lambda out: None
    flags = (False, True)
    for bias in flags:
        for residual in flags:
            name = "linear" + "_bias" * bias + "_residual" * residual
            functions[f"lutra.library.{name}"] = _linear(bias, residual)
    for causal in flags:
        for masked in flags:
            for merged in flags:
                name = "attention" + "_causal" * causal + "_mask" * masked + "_merged" * merged
                functions[f"lutra.library.{name}"] = _attention(causal, masked, merged)
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function, override=True)
