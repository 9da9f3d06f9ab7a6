"""The benchmark in miniature, as a user runs it, and the model that it makes."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "decode.py"


@pytest.fixture
def decode(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("decode")


def test_engines_take_turns_in_processes_of_their_own_and_figures_go_to_a_file(decode: ModuleType, tmp_path: Path):
    results = sys.modules[decode.save.__module__]
    figures = tmp_path / "figures.json"
    arguments = ["--shape", "tiny", "--engines", "eager,w4", "--prompt", "8", "--new-tokens", "4", "--rounds", "2"]
    command = [sys.executable, str(SCRIPT), *arguments, "--save", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rounds = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("round")]
    assert rounds == ["eager", "w4"] * 2
    (run,) = results.load(tmp_path)
    warm, weights = run.column("with warm cache"), run.column("weights read")
    assert warm["eager"] is None and warm["w4"] > 0
    assert all(value > 0 for name in ("decode", "prefill", "first call") for value in run.column(name).values())
    assert run.column("decode / eager")["eager"] == 1
    assert weights["w4"] < weights["eager"]
    assert "--rounds 2" in run.command and "--save" not in run.command


def test_random_weights_are_spread_as_those_of_a_model_and_no_two_rows_are_the_same(decode: ModuleType):
    engines = sys.modules[decode.TorchEngine.__module__]
    model = engines.empty_model("tiny")
    assert all(p.is_meta for p in model.parameters())
    engines.fill(model)
    for parameter in model.parameters():
        assert parameter.dtype == torch.bfloat16 and parameter.isfinite().all()
        if parameter.dim() == 2:
            assert parameter.float().std().item() == pytest.approx(0.02, rel=0.05)
            assert len(parameter.unique(dim=0)) == len(parameter)
    logits = model(torch.randint(0, 512, (1, 6))).logits
    assert logits.isfinite().all() and logits.std() > 0


def test_a_target_says_reached_missed_or_nothing_when_an_engine_did_not_run(decode: ModuleType):
    def result(decode_speed: float, cold: float = 1.0) -> object:
        return decode.Result(decode_speed, 100.0, cold, 1.0, 10**9, 10**9)

    ratio, cold = decode.TARGETS[0], decode.TARGETS[3]
    assert ratio.verdict({"eager": result(10.0), "w4": result(45.0)}) == ("4.50", "reached")
    assert ratio.verdict({"eager": result(10.0), "w4": result(39.0)}) == ("3.90", "missed")
    assert ratio.verdict({"w4": result(39.0)}) is None
    assert cold.verdict({"eager": result(1.0, 99.0), "w4": result(1.0, 61.0), "none": result(1.0)}) == (
        "61.00",
        "missed",
    )
