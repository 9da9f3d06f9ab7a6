"""The comparison with other engines in miniature, as a user runs it."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lutra import LutraError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("peers")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    sizes = ["--shape", "tiny", "--prompt", "8", "--new-tokens", "4", "--rounds", "2"]
    command = [sys.executable, str(FOLDER / "peers.py"), *sizes, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def stored(peers: ModuleType, folder: Path) -> Any:
    return sys.modules[peers.save.__module__].load(folder)


def test_engines_and_the_read_ceiling_take_turns_and_figures_go_to_a_file(peers: ModuleType, tmp_path: Path):
    figures = tmp_path / "figures.json"
    done = run("--engines", "eager,w2-lut", "--batch", "2", "--no-module-guards", "--save", str(figures))
    assert done.returncode == 0, done.stderr
    rounds = [line.split(": ")[1] for line in done.stdout.splitlines() if line.startswith("round")]
    assert rounds == ["ceiling", "eager", "w2-lut"] * 2
    (result,) = stored(peers, tmp_path)
    assert result.benchmark == "peers" and result.setting["read ceiling, GB/s"] > 0.1
    assert result.setting["batch"] == 2 and result.setting["module guards"] is False
    assert all(value > 0 for value in result.column("decode").values())


def test_an_engine_that_cannot_run_is_one_clear_line():
    done = run("--engines", "llama.cpp:Q5_7")
    assert done.returncode == 2 and "the type is none of Q4_0" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("engine", "batch", "message"),
    [("openvino-int4", 1, "make peers"), ("llama.cpp:Q4_0", 8, "one prompt at a time"), ("w44", 1, "w44")],
)
def test_what_is_missing_is_named(peers: ModuleType, engine: str, batch: int, message: str, tmp_path: Path):
    setting = peers.Setting("tiny", 8, 4, 2, batch, module_guards=True)
    with (
        pytest.raises(LutraError, match=message),
        peers.open_engine(engine, setting, tmp_path, tmp_path / "python") as e,
    ):
        e.call("run")


def test_llama_cpp_runs_the_file_that_is_written_for_it(peers: ModuleType, tmp_path: Path):
    pytest.importorskip("llama_cpp", reason="a peer: `make peers` installs it")
    types = {"Q4_0": 4.5, "Q2_K": 2.625, "TQ2_0": 2.0625}
    figures = tmp_path / "figures.json"
    done = run("--engines", ",".join(f"llama.cpp:{kind}" for kind in types), "--save", str(figures))
    assert done.returncode == 0, done.stdout
    (result,) = stored(peers, tmp_path)
    for kind, bits in types.items():
        megabytes = bits / 8 * 1310720 / 1e6
        assert result.column("weights read")[f"llama.cpp:{kind}"] == pytest.approx(megabytes, abs=0.55 + megabytes / 10)
