"""Facts for `when:` conditions, from captured graphs and this machine."""

import pytest
import torch
from lutra.codegen.targets.registry import TARGETS
from lutra.recipes.conditions import FACTS, Condition
from lutra.tests.support.capture import graphs_of
from lutra.torch_plugin.facts import graph_facts
from torch import nn


def facts_of(model: nn.Module, x: torch.Tensor, dynamic: bool = False) -> dict[str, int]:
    (graph,) = graphs_of(model, x, dynamic=dynamic)
    return graph_facts(graph)


@pytest.mark.parametrize(
    ("model", "x", "sizes"),
    [
        (nn.Embedding(9, 4), torch.randint(0, 9, (2, 5)), {"batch": 2, "sequence": 5}),
        (nn.Linear(4, 3), torch.randn(2, 5, 4), {"batch": 2, "sequence": 5}),
        (nn.Linear(4, 3), torch.randn(7, 4), {"batch": 7}),
        (nn.Conv2d(3, 2, 3), torch.randn(2, 3, 8, 8), {"batch": 2}),
        (nn.Linear(4, 3), torch.randn(4), {}),
    ],
    ids=["tokens", "embeddings", "features", "images", "vector"],
)
def test_batch_and_sequence_are_read_off_the_arguments(model: nn.Module, x: torch.Tensor, sizes: dict[str, int]):
    facts = facts_of(model, x)
    assert {name: facts[name] for name in ("batch", "sequence") if name in facts} == sizes


def test_a_symbolic_size_is_unknown_and_conditions_on_it_do_not_hold():
    facts = facts_of(nn.Linear(4, 3), torch.randn(2, 5, 4), dynamic=True)
    assert "batch" not in facts and "sequence" not in facts
    assert not Condition.parse("batch <= 4").holds(facts)


def test_machine_facts_have_the_names_of_conditions_and_agree_with_the_targets():
    facts = facts_of(nn.Linear(4, 3), torch.randn(7, 4))
    assert set(facts) <= set(FACTS)
    assert facts["cores"] == torch.get_num_threads()
    assert all(facts[name] == int(TARGETS[name].available()) for name in ("avx2", "avx512", "amx", "neon"))
