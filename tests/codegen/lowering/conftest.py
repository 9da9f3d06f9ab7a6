"""Lowerings are tried against torch eager: many small expressions in one compiled graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

Expressions = dict[str, Callable[..., Any]]


@pytest.fixture(autouse=True)
def fresh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.fixture
def agree() -> Callable[..., None]:
    """`agree(expressions, *inputs)`: compiled as one function each gives what eager gives, NaN and dtype included.

    ulps: the most units in the last place of the result's dtype by which a result may differ, relative."""

    def check(expressions: Expressions, *inputs: torch.Tensor, ulps: float = 4) -> None:
        def run(*values: torch.Tensor) -> tuple[Any, ...]:
            return tuple(function(*values) for function in expressions.values())

        with torch.no_grad():
            expected = run(*inputs)
            got = torch.compile(run, backend="lutra")(*inputs)
        wrong = [
            f"{name}: {difference}"
            for name, a, b in zip(expressions, got, expected, strict=True)
            if (difference := _difference(a, b, ulps))
        ]
        assert not wrong, "\n".join(wrong)

    return check


def _difference(got: torch.Tensor, expected: torch.Tensor, ulps: float) -> str:
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"{got.dtype} {tuple(got.shape)}, not {expected.dtype} {tuple(expected.shape)}"
    if not got.dtype.is_floating_point:
        return "" if torch.equal(got, expected) else f"{got}, not {expected}"
    limits = torch.finfo(got.dtype)
    close = torch.isclose(
        got.double(), expected.double(), rtol=ulps * limits.eps, atol=ulps * limits.tiny, equal_nan=True
    )
    return "" if close.all() else f"{got[~close][:8]}, not {expected[~close][:8]}"
