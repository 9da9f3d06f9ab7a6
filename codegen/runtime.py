"""What compiled graphs call back into torch for: operators without a lowering, and products that torch's library does
best.

Tensors cross without a copy. A result that shares memory with an argument is copied: the executable plans its memory
ahead and would write over it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import tvm_ffi

from ..ir.operator_call import OperatorCall

_parse = cache(OperatorCall.from_json)


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
    """Run the `OperatorCall` that `text` describes."""
    arguments = [_to_torch(v) for v in values]
    results = [_owned(r, arguments) for r in _parse(str(text))(*arguments)]
    return tvm_ffi.from_dlpack(results[0]) if len(results) == 1 else [tvm_ffi.from_dlpack(r) for r in results]


def _linear(bias: bool, residual: bool) -> Callable[..., None]:
    """`out = x W^T (+ bias) (+ residual)`; x `[M, K]`, W `[N, K]`."""

    def run(*values: Any) -> None:
        x, weight, *extra, out = (_to_torch(v) for v in values)
        if bias:
            torch.addmm(extra[0], x, weight.t(), out=out)
        else:
            torch.mm(x, weight.t(), out=out)
        if residual:
            out.add_(extra[-1])

    return run


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
    functions: dict[str, Callable[..., Any]] = {"lutra.torch_call": _torch_call}
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
