"""Functions of torch that compiled graphs call, as TVM calls them."""

from threading import Thread
from typing import Any

import pytest
import torch
import tvm_ffi
from lutra.codegen.runtime import callbacks
from lutra.codegen.runtime.callbacks import register, running, scratch_rows
from lutra.ir.operator_call import REGION_CALL, OperatorCall, Slot


@pytest.fixture(autouse=True)
def registered():
    register()
    torch.manual_seed(0)


def call(name: str, *values: Any) -> Any:
    given = [tvm_ffi.from_dlpack(v) if isinstance(v, torch.Tensor) else v for v in values]
    return tvm_ffi.get_global_func(f"lutra.{name}")(*given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [(24,), (5, 19)])
def test_a_linear_of_several_weights_is_one_product(
    monkeypatch: pytest.MonkeyPatch, dtype: Any, weight_dtype: Any, parts: tuple[int, ...]
):
    monkeypatch.setattr(callbacks, "scratch_rows", lambda k, itemsize: 5)
    x, weights = torch.randn(3, 16).to(dtype), [torch.randn(n, 16).to(weight_dtype) for n in parts]
    bias, residual, out = torch.randn(24).to(dtype), torch.randn(3, 24).to(dtype), torch.empty(3, 24, dtype=dtype)
    call("library.linear_bias_residual", x, *weights, bias, residual, out)
    expected = x.double() @ torch.cat(weights).to(dtype).double().T + bias.double() + residual.double()
    torch.testing.assert_close(out.double(), expected, rtol=2e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-1)


def test_parts_of_a_weight_are_whole_blocks_and_bounded_where_they_can_be():
    assert [scratch_rows(k, 4) for k in (2048, 8192, 1 << 20)] == [1024, 256, 64]
    assert scratch_rows(2048, 4, most=1 << 19) == 64


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [("aten.view", (Slot(0), (6,))), ("aten.t", (Slot(0),)), ("aten.clone", (Slot(0), None))],
    ids=str,
)
def test_a_result_is_compact_and_shares_no_memory_with_an_argument(operator: str, arguments: Any):
    x = torch.arange(6.0).view(2, 3)
    result = torch.from_dlpack(call("torch_call", OperatorCall(operator, arguments).to_json(), x))
    expected = OperatorCall(operator, arguments)(x)[0].clone()
    x.zero_()
    assert result.is_contiguous() and torch.equal(result, expected)


def test_an_operator_with_several_results_gives_a_list():
    values, places = call("torch_call", OperatorCall("aten.max.dim", (Slot(0), 0, False)).to_json(), torch.eye(3))
    assert torch.from_dlpack(values).tolist() == [1, 1, 1] and torch.from_dlpack(places).tolist() == [0, 1, 2]


def test_regions_are_those_of_the_executable_that_runs_in_this_thread():
    text = OperatorCall(f"{REGION_CALL}.0", (Slot(0),)).to_json()
    name = OperatorCall.from_json(text).region
    assert name is not None
    x, found = torch.ones(2), []

    def add(number: float) -> dict[str, Any]:
        return {name: lambda value: (value + number,)}

    def run() -> float:
        (result,) = call("torch_call", text, x)
        return torch.from_dlpack(result)[0].item()

    with running(add(1)):
        with running(add(10)):
            found.append(run())
            thread = Thread(target=lambda: found.append(_in_another_thread(add(100), run)))
            thread.start()
            thread.join()
        found.append(run())
    assert found == [11, 101, 2]


def _in_another_thread(regions: Any, run: Any) -> float:
    with running(regions):
        return run()
