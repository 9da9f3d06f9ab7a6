"""What a recipe that quantises leaves in floating point stands in its report, by path and with the reason."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Everything(nn.Module):
    """Weights that a linear multiplies, and such that others read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(40, 64), nn.Conv1d(64, 64, 3)
        self.q, self.k, self.v, self.odd = (nn.Linear(n, 64, bias=False) for n in (64, 64, 64, 40))
        self.norm = nn.LayerNorm(64)
        self.experts = nn.Parameter(torch.randn(3, 64, 64))
        self.table = nn.Parameter(torch.randn(1, 5, 64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(tokens))
        y = self.conv(x.transpose(1, 2)).transpose(1, 2) + self.table
        y = torch.bmm(y.reshape(3, -1, 64), self.experts.transpose(1, 2)).reshape(3, 5, 64)
        return F.silu(self.q(y)) + self.k(y) * self.v(y) + self.odd(y[..., :40])


def left(reports: list[Any]) -> dict[str, str]:
    """Path -> reason over all reports; each path once."""
    pairs = [(left.path, left.reason) for report in reports for left in report.left]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_every_weight_that_stays_in_floating_point_is_named_with_its_reason(interpreted: Callable[..., Any]):
    first = {"bits": 8, "group_size": 32, "select": {"modules": "q"}}
    second = {"bits": 4, "group_size": 64, "select": {"modules": ["q", "k"]}}
    backend = interpreted({"fuse": {}}, {"quantize-weights": first}, {"quantize-weights": second})
    model, tokens = Everything(), torch.randint(0, 40, (3, 7))
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(tokens)
    found = left(backend.reports)
    assert [bool(report.left) for report in backend.reports] == [False, True, False]  # of entries the last, then fuse
    assert found == {
        "v": "no selector of the recipe takes it",
        "odd": "no selector of the recipe takes it",
        "embed": "an embedding: its rows are looked up, not multiplied",
        "conv": "a convolution, not a linear",
        "experts": "a stack of matrices (experts) that aten.bmm reads, not a linear",
        "table": "read by aten.add.Tensor, not by a linear",
    }


def test_experts_that_are_gathered_for_each_token_are_named(interpreted: Callable[..., Any], tokens: torch.Tensor):
    import transformers as hf

    config = hf.MixtralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    config._experts_implementation = "batched_mm"
    model = hf.MixtralForCausalLM(config).eval()
    backend = interpreted({"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 32}})
    with torch.no_grad():
        torch.compile(model, backend=backend)(tokens, use_cache=False)
    stacks = {f"model.layers.0.mlp.experts.{name}_proj" for name in ("gate_up", "down")}
    found = left(backend.reports)
    assert found.keys() == stacks | {"model.embed_tokens"}
    assert all(found[path].startswith("a stack of matrices (experts) that ") for path in stacks)
