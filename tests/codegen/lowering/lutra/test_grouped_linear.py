"""Grouped products with quantised weights, compiled: which kernels run, and eager's answer over the rounded weights."""

from typing import Any

import lutra
import pytest
import torch
import transformers.integrations.moe  # noqa: F401  (registers the grouped product)
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from lutra.tests.support.models import Experts
from torch import nn


def compiled(module: nn.Module, activations: str, family: str = "auto") -> Any:
    quantize = {"bits": 4, "group_size": 32, "activations": activations}
    recipe = {"lutra": 1, "name": "r", "passes": [{"quantize-weights": quantize}]}
    options: Any = {"recipe": recipe, "kernel_family": family}
    return torch.compile(module, backend="lutra", options=options)


def rounded(module: Experts) -> Experts:
    weight = RoundToNearest(WeightFormat(4, 32))(module.weight.detach().flatten(0, 1))
    other = Experts()
    other.weight.data = dequantize(weight).unflatten(0, (4, 96))
    return other


@pytest.mark.parametrize(
    ("activations", "family", "rows", "kernel"),
    [
        ("int8", "dot", 2, "grouped_dot_s4g32"),
        ("int8", "lookup", 3, "grouped_lookup_s4g32"),
        ("int8", "lookup", 40, "grouped_gemm_s4g32"),
        ("float", "auto", 1, "grouped_float_s4g32"),
        ("float", "auto", 33, "grouped_float_s4g32"),
    ],
)
def test_rows_meet_the_rounded_matrix_of_their_group(activations: str, family: str, rows: int, kernel: str):
    module, x = Experts(), torch.randn(rows, 128)
    offsets = torch.randint(rows + 1, (4,), dtype=torch.int32).sort().values
    with torch.no_grad():
        out = compiled(module, activations, family)(x, offsets)
        expected = rounded(module)(x, offsets)
    assert kernel in lutra.report(module).graphs[0].kernels
    assert (out - expected).norm() <= (1e-5 if activations == "float" else 0.02) * expected.norm() + 1e-9


def test_any_number_of_rows_is_one_graph():
    module = Experts()
    run = compiled(module, "float")
    for rows in (5, 11, 0, 23):
        x, offsets = torch.randn(rows, 128), torch.tensor([0, rows // 2, rows // 2, rows])
        torch._dynamo.maybe_mark_dynamic(x, 0)
        with torch.no_grad():
            torch.testing.assert_close(run(x, offsets), rounded(module)(x, offsets), rtol=1e-4, atol=1e-4)
    assert len(lutra.report(module).graphs) <= 2  # no rows are a graph of their own


def test_offsets_that_point_outside_are_left_to_torch():
    module, x, offsets = Experts(), torch.randn(6, 128), torch.tensor([1, 2, 3, 50])
    with torch.no_grad():
        out = compiled(module, "int8")(x, offsets)
        torch.testing.assert_close(out, module(x, offsets))
