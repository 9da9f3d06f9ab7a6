"""What "gives eager's answer" means: the same structure, types, shapes and values, up to rounding."""

from typing import Any

import torch
from torch.utils import _pytree as pytree

RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Tolerance by dtype: sums in another order and other polynomials for transcendental functions, not other formulas."""


def difference(expected: Any, actual: Any, values: bool = True) -> str | None:
    """In a line, where `actual` is not what eager gave; None where it is. Any nesting of containers; NaN equals NaN.

    values: False compares structure, dtypes and shapes alone, for results that eager leaves undefined."""
    wanted, _ = pytree.tree_flatten(expected)
    given, _ = pytree.tree_flatten(actual)
    if len(wanted) != len(given):
        return f"{len(given)} results instead of {len(wanted)}"
    for index, (want, got) in enumerate(zip(wanted, given, strict=True)):
        found = _leaf_difference(want, got, values)
        if found is not None:
            return found if len(wanted) == 1 else f"result {index}: {found}"
    return None


def _leaf_difference(want: Any, got: Any, values: bool) -> str | None:
    if not isinstance(want, torch.Tensor) or not isinstance(got, torch.Tensor):
        if isinstance(want, torch.Tensor) or isinstance(got, torch.Tensor):
            return f"{type(got).__name__} instead of {type(want).__name__}"
        same = not values or bool(want == got) or (want != want and got != got)
        return None if same else f"{got!r} instead of {want!r}"
    if want.dtype != got.dtype:
        return f"{got.dtype} instead of {want.dtype}"
    if want.shape != got.shape:
        return f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    if want.layout != got.layout or want.is_quantized:
        return None if want.layout == got.layout else f"layout {got.layout} instead of {want.layout}"
    return _value_difference(want.detach(), got.detach()) if values and want.numel() else None


def _value_difference(want: torch.Tensor, got: torch.Tensor) -> str | None:
    if want.layout != torch.strided:
        want, got = want.to_dense(), got.to_dense()
    if want.is_complex():
        want, got = torch.view_as_real(want.resolve_conj()), torch.view_as_real(got.resolve_conj())
    relative = RELATIVE.get(want.dtype, 0.0)
    if not want.is_floating_point():
        wrong = want != got
    else:
        exact, close = want.double(), got.double()
        finite = exact[exact.isfinite()].abs()
        # Sums that cancel keep the absolute error of their terms.
        absolute = 0.01 * relative * max(1.0, finite.max().item() if finite.numel() else 0.0)
        wrong = ~torch.isclose(close, exact, rtol=relative, atol=absolute, equal_nan=True)
    if not wrong.any():
        return None
    place = tuple(wrong.nonzero()[0].tolist())
    return f"{int(wrong.sum())} of {wrong.numel()} values differ, at {place}: {got[place]} instead of {want[place]}"
