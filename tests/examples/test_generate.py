"""The main job, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "generate.py"


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LUTRA_CACHE_DIR": str(cache), "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=300)


def test_it_streams_a_completion_and_compares_speed_memory_and_quality_with_eager(checkpoint: Path, tmp_path: Path):
    short = ("--max-new-tokens", "4", "--rounds", "1", "--window", "32", "--windows", "2")
    done = run("--model", str(checkpoint), "--recipe", "w4", "--prompt", "import torch", *short, cache=tmp_path)
    assert done.returncode == 0, done.stderr
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
