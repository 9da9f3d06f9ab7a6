"""The main job, run as a user runs it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lutra
import pytest
import torch
from lutra.tests.support.assets import TINY_LLAMA
from lutra.tests.support.output import own

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "generate.py"


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LUTRA_CACHE_DIR": str(cache), "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=300)


def test_it_streams_a_completion_and_compares_speed_memory_and_quality_with_eager(checkpoint: Path, tmp_path: Path):
    short = ("--max-new-tokens", "4", "--rounds", "1", "--window", "32", "--windows", "2")
    done = run("--model", str(checkpoint), "--recipe", "w4", "--prompt", "import torch", *short, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert own(done.stderr) == ""
    assert "import torch" in done.stdout
    for row in (
        "prefill, tokens/s",
        "decode, tokens/s",
        "weights in memory",
        "process above bare",
        "held-out perplexity",
    ):
        assert row in done.stdout
    cells = {line.split("│")[1].strip(): line.split("│")[2:] for line in done.stdout.splitlines() if "│" in line}
    eager, fast = (float(cells["held-out perplexity"][i]) for i in (0, 1))
    assert abs(fast / eager - 1) < 0.1
    assert float(cells["weights in memory, MB"][1]) < float(cells["weights in memory, MB"][0])
    assert "Quality: 62 tokens of heldout.txt" in done.stdout.replace("\n", " ")


def test_a_recipe_that_does_not_exist_is_one_clear_line(checkpoint: Path, tmp_path: Path):
    done = run("--model", str(checkpoint), "--recipe", "w5", cache=tmp_path)
    assert done.returncode == 2
    assert "there is no recipe 'w5' in the library: did you mean" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The example as a module: its engines then run in this process, which has loaded everything already."""
    spec = importlib.util.spec_from_file_location("examples_generate", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def eager(script: ModuleType) -> Any:
    engine = script.Engine(str(TINY_LLAMA), "float32", None)
    for _ in range(2):
        engine.run([1, 2, 3], 2)
    return engine


@pytest.mark.parametrize(
    ("recipe", "kernel", "worse"),
    [
        ("none", "dense_linear", 1.001),
        ("w8", "s8g128", 1.02),
        ("w4", "a4g128", 1.1),
        ("w2-lut", "s2g64", 1.6),
        ("ternary-lut", "t2g128", 1.9),
        ("w1-lut", "s1g64", 5),
    ],
)
def test_every_recipe_of_the_library_runs_the_trained_model(
    script: ModuleType,
    eager: Any,
    recipe: str,
    kernel: str,
    worse: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """Perplexity rises by no more than a factor of `worse`, weights shrink, and kernels of the recipe's format run."""
    torch._dynamo.reset()
    options = {"recipe": recipe, "release_weights": True, "cache_dir": str(tmp_path)}
    engine = script.Engine(str(TINY_LLAMA), "float32", options)
    tokenizer = script.AutoTokenizer.from_pretrained(TINY_LLAMA)
    ids = tokenizer("import torch")["input_ids"]
    engine.run(ids, 3)
    engine.run(ids, 3, stream=True)
    assert capsys.readouterr().out.startswith("import torch")

    text = (TINY_LLAMA / "heldout.txt").read_text(encoding="utf-8")
    windows = script.held_out_windows(torch.tensor(tokenizer(text)["input_ids"]), 128, 2)
    fast_logits, eager_logits = (
        lambda ids, of=of: torch.from_numpy(of.logits(ids[0].tolist())) for of in (engine, eager)
    )
    cost = script.compare(fast_logits, eager_logits, windows)
    assert 0.95 < cost.perplexity / cost.reference_perplexity < worse
    assert recipe != "none" or cost.top1_agreement == 1
    small, large = engine.memory().weights, eager.memory().weights
    assert small < 0.5 * large if recipe != "none" else small == pytest.approx(large, rel=0.01)

    graphs = {report.phase: report for report in lutra.report(engine._model).graphs}
    assert set(graphs) == {"prefill", "decode", "encode"}
    assert any(kernel in name for name in graphs["decode"].kernels)
    assert not any(report.fallbacks for report in graphs.values())
