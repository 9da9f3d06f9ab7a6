"""Models whose code comes from the cache: other processes, damage, other users, and folders that refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from torch import nn

SCRIPT = """
import sys, torch, lutra
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
x = torch.randn(1, 64)
with torch.no_grad():
    fast = torch.compile(model, backend="lutra", options={"recipe": {"lutra": 1, "name": "r", "passes": [
        {"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 32}}]}})
    error = (fast(x) - model(x)).norm() / model(x).norm()
print(lutra.report(fast).graphs[0].cache, error.item() < 0.3)
"""
COMMAND = [sys.executable, "-c", SCRIPT]


def run_script(cache: Path, **environment: str) -> str:
    environment = {**os.environ, "LUTRA_CACHE_DIR": str(cache), **environment}
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def test_four_processes_compile_at_once_and_what_is_damaged_since_is_built_again(tmp_path: Path):
    environment = {**os.environ, "LUTRA_CACHE_DIR": str(tmp_path)}
    running = [subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert all(p.communicate()[0].strip().endswith("True") and p.returncode == 0 for p in running)
    assert sorted(path.name for path in tmp_path.glob("*/*.so")) == ["graph.so", "launcher.so"]
    assert not list(tmp_path.glob(".new-*"))
    cut_short(next(tmp_path.glob("*/graph.so")))
    cut_short(next(tmp_path.glob("*/launcher.so")))
    assert run_script(tmp_path) == "miss: the entry was damaged: graph.so does not match its checksum True"
    assert run_script(tmp_path) == "hit True"


def compiled(folder: Path, width: int = 48) -> tuple[str, float]:
    """The cache's outcome for a model, and how far its results are from eager's."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 32)), torch.randn(3, 64)
    options: dict[str, Any] = {"cache_dir": folder}
    with torch.no_grad():
        fast = torch.compile(model, backend="lutra", options=options)
        difference = (fast(x) - model(x)).abs().max().item()
    outcome = lutra.report(fast).graphs[-1].cache
    torch._dynamo.reset()  # other tests compile modules of the same classes
    return outcome, difference


def other_output(content: Any) -> None:
    content["outputs"] = [["input", 0]]


def small_workspace(content: Any) -> None:
    content["workspace"]["views"] = [{**view, "offset": 0} for view in content["workspace"]["views"]]


def exchanged_weights(content: Any) -> None:
    content["weights"].reverse()


@pytest.mark.parametrize("edit", [other_output, small_workspace, exchanged_weights])
def test_an_edited_manifest_is_damage_and_no_wrong_numbers(tmp_path: Path, edit: Callable[[Any], None]):
    assert compiled(tmp_path)[0] == "miss: this graph is new"
    manifest = next(tmp_path.glob("*/graph.so")).with_name("manifest.json")
    data = json.loads(manifest.read_text())
    edit(data["content"])
    manifest.write_text(json.dumps(data))
    outcome, difference = compiled(tmp_path)
    assert outcome == "miss: the entry was damaged: manifest.json does not match its checksum"
    assert difference < 1e-5
    outcome, difference = compiled(tmp_path)
    assert outcome == "hit" and difference < 1e-5


def test_nothing_is_loaded_from_a_folder_that_others_may_write(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "cache"
    compiled(folder)
    shutil.copytree(folder, tmp_path / "open")
    (tmp_path / "open").chmod(0o777)
    outcome, difference = compiled(tmp_path / "open")
    assert outcome == f"miss: the cache folder is not used: others may write to {tmp_path / 'open'}: chmod go-w"
    assert difference < 1e-5
    assert f"{outcome.removeprefix('miss: ')}: compiled code is not kept" in caplog.text
    assert str(tmp_path / "open") not in Path("/proc/self/maps").read_text()


# Folders that refuse --------------------------------------------------------------------------------------------------


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `folder`."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # what was loaded from it is still in use


BELOW_A_FILE, READ_ONLY, FULL = "below a file", "read-only", "full"


@pytest.fixture
def refusing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A cache folder that cannot be written. Permissions do not bind root: for root it is a file system of its own."""
    folder = tmp_path / "refusing"
    if request.param == BELOW_A_FILE:
        folder.write_text("not a folder")
        yield folder / "cache"
        return
    folder.mkdir()
    if request.param == READ_ONLY and os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    yield from mounted(folder, {READ_ONLY: "ro", FULL: "size=16k"}[request.param])


@pytest.mark.parametrize(
    ("refusing", "message", "outcome"),
    [
        (BELOW_A_FILE, "cannot be made (Not a directory): compiled code is not kept", "cannot be made"),
        (READ_ONLY, "cannot be written (", "miss: this graph is new"),
        (FULL, "cannot be written (No space left on device): compiled code is not kept", "miss: this graph is new"),
    ],
    indirect=["refusing"],
)
def test_a_cache_folder_that_refuses_is_logged_and_compilation_goes_on(
    refusing: Path, message: str, outcome: str, caplog: pytest.LogCaptureFixture
):
    told, difference = compiled(refusing, width=40)  # not what the process keeps of other tests
    assert difference < 1e-5
    assert message in caplog.text
    assert outcome in told


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    (folder := tmp_path / "small").mkdir()
    yield from mounted(folder, "size=64k")


def test_a_full_temporary_folder_costs_nothing(small: Path, tmp_path: Path):
    """LLVM ends the process at a file that it cannot write."""
    assert run_script(tmp_path / "cache", TMPDIR=str(small)) == "miss: this graph is new True"
    assert len(list((tmp_path / "cache").glob("*/*.so"))) == 2


@pytest.fixture
def inexecutable(tmp_path: Path) -> Iterator[Path]:
    (folder := tmp_path / "inexecutable").mkdir()
    yield from mounted(folder, "noexec,size=10m")


def test_where_nothing_may_be_executed_entries_are_kept_and_loaded_from_copies(
    inexecutable: Path, caplog: pytest.LogCaptureFixture
):
    assert compiled(inexecutable) == ("miss: this graph is new", pytest.approx(0, abs=1e-5))
    assert compiled(inexecutable) == ("hit", pytest.approx(0, abs=1e-5))
    assert "failed to map segment" in caplog.text
