"""Frames are traced once more where their numbers ask for it, and no more often."""

from typing import Any

import pytest
import torch
from lutra.ir.errors import CaptureError
from lutra.ir.torch_private import float_arguments
from lutra.torch_plugin import backend
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed


class Scale:
    """An object with a float that a model reads."""

    factor = 0.25


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "an argument": (lambda x, s: x * s, (0.5,)),
    "two": (lambda x, s, t: x * s + t, (0.5, 0.25)),
    "a size": (lambda x, s: x[:, : int(s * 4)], (0.5,)),
    "a condition": (lambda x, s: x + 1 if s > 0.4 else x, (0.5,)),
    "an attribute": (lambda x, s: x * s.factor, (Scale(),)),
    "a norm's eps": (nn.Sequential(nn.LayerNorm(5), nn.LayerNorm(5, eps=1e-3)), ()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_floats_are_constants_after_one_more_trace(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    tries, given = [], backend.trace_as_wanted
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(backend, "trace_as_wanted", lambda gm, inputs: (tries.append(gm), given(gm, inputs)))
    torch._dynamo.reset()
    function, more = FUNCTIONS[name]
    x = torch.randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(function, backend="lutra", dynamic=True)(x, *more), function(x, *more))
    assert len(tries) == 2


def test_a_frame_that_fails_leaves_floats_of_other_backends_to_them(monkeypatch: pytest.MonkeyPatch):
    def fails(*arguments: Any) -> Any:
        raise CaptureError("an injected fault")

    def other(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.extend(float_arguments(gm))
        return gm.forward

    seen: list[str] = []
    monkeypatch.setattr(backend, "capture", fails)
    torch._dynamo.reset()
    with torch.no_grad():
        with pytest.raises(BackendCompilerFailed, match="an injected fault"):
            torch.compile(lambda x, s: x * s, backend="lutra", dynamic=True)(torch.ones(3), 0.5)
        torch.compile(lambda x, s: x * s, backend=other, dynamic=True)(torch.ones(3), 0.5)
    assert len(seen) == 1
