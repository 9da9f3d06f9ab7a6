"""Timelines of compiled graphs: what ran is in them, in order, and watching changes no result."""

import json
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.cli.main import app
from lutra.tests.support.assets import TINY_LLAMA
from torch import nn
from typer.testing import CliRunner


def test_kernels_of_every_call_are_recorded_with_the_weights_that_they_read(tmp_path: Path):
    torch._dynamo.reset()  # sizes that differ from those of another test's model would be symbols
    model = nn.Sequential(nn.Linear(128, 192), nn.ReLU(), nn.Linear(192, 64))
    options: Any = {"recipe": "w4", "vars": {"group_size": 64}}
    fast = torch.compile(model, backend="lutra", options=options)
    x = torch.randn(3, 128)
    with torch.no_grad():
        expected = fast(x)
        with lutra.profile(fast) as timeline:
            results = [fast(x) for _ in range(2)]
        fast(x)  # no longer watched
    assert all(torch.equal(result, expected) for result in results)
    assert [call.phase for call in timeline.calls] == ["encode", "encode"]
    for call in timeline.calls:
        products = [event for event in call.events if event.name.startswith("dot_a4g64")]
        assert [e.weight_bytes for e in products] == [
            192 * (64 + 2 * 4 + 4),
            64 * (96 + 3 * 4 + 4),
        ]  # codes, scales and zero points, bias
        starts = [event.start for event in call.events]
        assert starts == sorted(starts) and call.start <= starts[0]
        assert sum(event.seconds for event in call.events) <= call.seconds
    assert "dot_a4g64" in str(timeline) and "reading weights" in str(timeline)
    timeline.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {"encode graph", products[0].name} <= {event["name"] for event in events}
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in events)


def test_an_error_in_the_block_ends_the_watching():
    model = torch.compile(nn.Linear(8, 8), backend="lutra")
    with torch.no_grad():
        model(torch.randn(1, 8))
        with pytest.raises(ValueError, match="mine"), lutra.profile(model) as timeline:
            raise ValueError("mine")
        model(torch.randn(1, 8))
    assert timeline.calls == []


def test_the_command_profiles_a_checkpoint(tmp_path: Path):
    trace = tmp_path / "trace.json"
    arguments = [
        "profile",
        str(TINY_LLAMA),
        "--recipe",
        "w4",
        "--prompt",
        "24",
        "--new-tokens",
        "4",
        "--trace",
        str(trace),
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "prefill: " in result.output and "decode: " in result.output and "gemm_a4g128" in result.output
    assert len(json.loads(trace.read_text())["traceEvents"]) > 20
