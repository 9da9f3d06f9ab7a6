"""The comparison of kernels in miniature, as a user runs it."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "linear.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_every_kernel_that_can_multiply_is_timed_and_one_is_chosen():
    done = run("--weights", "4,ternary", "--rows", "1,6", "--features", "128x384", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    kernels = {(weights, count): [r for r in rows if r[:2] == [weights, count]] for weights, count, *_ in rows}
    assert [r[2] for r in kernels["4", "1"]] == ["packed dot", "packed lookup"]
    assert [r[2] for r in kernels["4", "6"]] == ["packed dot", "gemm of dot", "packed lookup", "gemm of lookup"]
    assert "packed triples" in [r[2] for r in kernels["ternary", "1"]]
    assert all([r[-1] for r in of].count("*") == 1 for of in kernels.values())


def test_a_target_that_is_unknown_is_refused_in_one_line():
    done = run("--target", "avx-512")
    assert done.returncode == 2
    assert "target 'avx-512' is unknown" in done.stdout
