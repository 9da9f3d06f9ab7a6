"""`symmetrize-tables`: an exact re-interpretation, one table per activation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra.ir.graph import Graph
from lutra.ir.rewriting import verify
from lutra.passes.base import PassContext, PassReport
from lutra.passes.quantize_weights.quantize_weights import QuantizeWeights
from lutra.passes.symmetrize_tables import SymmetrizeTables
from torch import nn

FORMATS = [
    *((bits, scheme) for bits in (1, 2, 3, 4, 8) for scheme in ("symmetric", "asymmetric")),
    (2, "ternary"),
]


LINEAR = """
// CHECK: %[[T:.*]] = "lutra.table"(%arg0) {half = 1 : i64{{.*}}} : {{.*}} -> !torch.vtensor<[3,16,8],f32>
// CHECK: %[[W:.*]] = "lutra.param"() {{.*}}sym = "a.weight@s2g32"} : () -> !lutra.quantized<16 : i64, 64 : i64, 2 : i64
// CHECK-NEXT: %[[R:.*]] = "lutra.table_linear"(%[[T]], %[[W]])
// CHECK-NEXT: return %[[R]]
func.func @main(%x: !torch.vtensor<[3,64],f32>) -> !torch.vtensor<[3,16],f32> {
  %w = "lutra.param"() {sym = "a.weight"} : () -> !torch.vtensor<[16,64],f32>
  %r = "lutra.linear"(%x, %w) {lutra.path = "a", operandSegmentSizes = array<i32: 1, 1, 0, 0>}
      : (!torch.vtensor<[3,64],f32>, !torch.vtensor<[16,64],f32>) -> !torch.vtensor<[3,16],f32>
  return %r : !torch.vtensor<[3,16],f32>
}"""


def run(pass_: Any, graph: Graph) -> None:
    pass_.run(graph, PassContext(PassReport(pass_.name)))
    verify(graph, pass_.name)


class Shared(nn.Module):
    """Two linears over x that stay apart (one has no bias), one over something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 32), nn.Linear(64, 48, bias=False), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.c(self.a(x)), self.b(x)


def levels(bits: int, scheme: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights that the format holds exactly, with a scale that is a power of two."""
    if scheme == "ternary":
        return torch.randint(0, 2, shape) * (2.0 * torch.randint(0, 2, shape) - 1)
    codes = torch.randint(0, 2**bits, shape).float()
    codes[:, ::32], codes[:, 1::32] = 0, 2**bits - 1
    return codes - (2**bits // 2 if scheme == "asymmetric" else (2**bits - 1) / 2)


def captured(model: nn.Module, x: torch.Tensor, interpreted: Callable[..., Any], *entries: Any) -> Any:
    backend = interpreted({"fuse": {}}, *entries)
    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return backend


@pytest.mark.parametrize("table", ["half", "full"])
@pytest.mark.parametrize(("bits", "scheme"), FORMATS)
def test_the_reinterpretation_is_exact(bits: int, scheme: Any, table: Any, parse: Callable[[str], Any]):
    parsed = parse(LINEAR)
    parsed.graph.store.tensor("a.weight").copy_(levels(bits, scheme, (16, 64)))
    parsed.arguments[0].copy_(torch.randint(-4, 5, (3, 64)))
    run(QuantizeWeights(bits, 32, scheme), parsed.graph)
    linear = parsed.run()
    run(SymmetrizeTables(table), parsed.graph)
    assert "lutra.table_linear" in str(parsed.graph.module)
    assert torch.equal(parsed.run()[0], linear[0])


@pytest.mark.parametrize("table", ["half", "full"])
def test_linears_over_one_input_share_its_table(table: str, interpreted: Callable[..., Any]):
    x = torch.randn(3, 64)
    backend = captured(Shared(), x, interpreted, {"quantize-weights": {"bits": 2, "group_size": 32}})
    linear = backend.again()
    backend.rewrite({"symmetrize-tables": {"table": table}})
    counts = backend.counts()
    assert (counts["table"], counts["table_linear"], counts["linear"]) == (2, 3, 0)
    for got, expected in zip(backend.again(), linear, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_model_has_one_table_per_distinct_activation(
    make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    backend = interpreted(
        {"fuse": {}},
        {"quantize-weights": {"bits": 4, "group_size": 32, "select": {"modules": ["*.q_proj", "*.up_proj"]}}},
        {"quantize-weights": {"bits": 2, "group_size": 32}},
        {"symmetrize-tables": {}},
    )
    with torch.no_grad():
        torch.compile(make_model("llama"), backend=backend)(tokens, use_cache=False)
    counts = backend.counts()
    assert counts["table_linear"] == 2 * 6 + 1, "q and up have a format of their own, k and v merge"
    assert counts["table"] == 2 * 4 + 1


def test_only_selected_and_quantised_linears_get_tables_and_a_second_run_changes_nothing(
    interpreted: Callable[..., Any],
):
    entry = {"quantize-weights": {"bits": 2, "group_size": 32, "select": {"modules": ["a", "b"]}}}
    backend = captured(Shared(), torch.randn(3, 64), interpreted, entry)
    tables = {"symmetrize-tables": {"select": {"modules": "b"}}}
    backend.rewrite(tables)
    counts = backend.counts()
    assert (counts["table"], counts["table_linear"], counts["linear"]) == (1, 1, 2)
    before = str(backend.graph.module)
    (report,) = backend.rewrite({"symmetrize-tables": {"select": {"modules": "b"}, "allow_empty": True}})
    assert report.changed == {} and str(backend.graph.module) == before


def test_text_before_and_after(parse: Callable[[str], Any], filecheck: Callable[[str, str], None]):
    parsed = parse(LINEAR)
    run(QuantizeWeights(bits=2, group_size=32), parsed.graph)
    linear = parsed.run()
    run(SymmetrizeTables(), parsed.graph)
    filecheck(str(parsed.graph.module), LINEAR)
    torch.testing.assert_close(parsed.run(), linear, rtol=1e-5, atol=1e-5)
