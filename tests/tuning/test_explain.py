"""Predictions: their parts add up, the constants of the machine are read where they lie, errors are one message."""

from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.codegen.cache.executables import ExecutableCache
from lutra.ir.errors import LutraError
from lutra.tests.support.assets import TINY_LLAMA
from lutra.torch_plugin.models.causal_lm import generate
from lutra.torch_plugin.options import Options
from lutra.tuning import machine as machines
from lutra.tuning.explain import explain, products_of, weights_of
from lutra.tuning.machine import Machine, machine_for
from rich.console import Console
from torch import nn


@pytest.fixture(scope="module")
def model() -> Any:
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(TINY_LLAMA).eval()
    loaded.compile(backend="lutra", options={"recipe": "w2-lut"})
    generate(loaded, 9, 3)
    return loaded


def machine(model: Any) -> Machine:
    return Machine(1e10, 1e-3, 1e-6, 1e9, {p.name: (1e9, 1e-5) for p in products_of(model, 8)})


def test_parts_add_up(model: Any):
    explanation = explain(model, 8, machine=machine(model))
    rows = sum(row.seconds for row in explanation.rows)
    assert explanation.seconds == pytest.approx(rows + 1e-3 + 1e-6 * explanation.kernel_calls)
    assert explanation.tokens_per_second == pytest.approx(1 / explanation.seconds)
    linears = [row for row in explanation.rows if row.product is not None]
    assert all(row.seconds == pytest.approx(float(row.amount.weights) / 1e9 + 1e-5) for row in linears)
    assert len(linears) == 4 * model.config.num_hidden_layers + 1
    text = str(explanation)
    assert "s2g64" in text and "tokens/s" in text and "*context" in text


def test_layers_say_what_computes_each_linear_and_why(model: Any):
    explanation = explain(model, 8, machine=machine(model))
    (console := Console(width=200, file=StringIO())).print(explanation.layers())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    linears = sum(row.product is not None for row in explanation.rows)
    listed = [line for line in text.split("implementations")[0].splitlines() if "packed " in line]
    assert len(listed) == linears
    assert "its weight is quantised" in text


def test_more_context_costs_more(model: Any):
    short, long = (explain(model, context, machine=machine(model)) for context in (2, 10))
    assert short.seconds < long.seconds
    assert short.amount.weights == long.amount.weights


def test_constants_are_taken_from_the_cache_folder(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known, options = machine(model), Options.parse({"cache_dir": tmp_path})
    ExecutableCache(tmp_path).keep(machines._key(options, weights_of(model)), asdict(known))
    monkeypatch.setattr(machines, "Meter", None)  # nothing is measured
    assert machine_for(products_of(model, 8), options, weights_of(model)) == known


@pytest.mark.parametrize(
    ("context", "batch", "message"),
    [(0, None, "must be 1 or more"), (10_000, None, "does not fit the cache"), (8, 5, "no decode graph takes a batch")],
)
def test_sizes_that_the_graph_does_not_have(model: Any, context: int, batch: int | None, message: str):
    with pytest.raises(LutraError, match=message):
        explain(model, context, batch, machine(model))


def test_a_model_without_a_decode_graph():
    fast = torch.compile(nn.Linear(8, 8), backend="lutra")
    with pytest.raises(LutraError, match="no decode graph yet"):
        lutra.explain(fast, 8)
