"""Parallel loops of loaded libraries on torch's threads."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm
from lutra.codegen.cache.executables import ExecutableCache, Key
from lutra.codegen.kernels.cpu.function import kernel
from lutra.codegen.targets.cpu import launcher
from lutra.codegen.targets.cpu.host import host
from lutra.codegen.targets.cpu.launcher import OpenMp, compiled, use_torch_threads
from tvm.script.ir_builder import tirx as T

TASKS = 1000


def squares() -> Any:
    """`out[i] = i * i`, a task each."""

    def body(out: Any) -> None:
        with T.parallel(0, TASKS) as i:
            T.buffer_store(out, i * i, [i])

    return kernel([((TASKS,), "int32")], body)


EXPECTED = torch.arange(TASKS, dtype=torch.int32) ** 2


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_runs_once_on_any_number_of_threads(threads: int):
    before = torch.get_num_threads()
    run = compiled(squares(), host())
    try:
        torch.set_num_threads(threads)
        for _ in range(20):
            run(out := torch.empty(TASKS, dtype=torch.int32))
            assert torch.equal(out, EXPECTED)
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_task_is_the_callers():
    def body(x: Any, out: Any) -> None:
        with T.parallel(0, TASKS) as i:
            with T.Assert(x[i] >= 0, "negative", "IndexError"):
                pass
            T.buffer_store(out, x[i], [i])

    run = compiled(kernel([((TASKS,), "int32"), ((TASKS,), "int32")], body), host())
    x, out = torch.ones(TASKS, dtype=torch.int32), torch.empty(TASKS, dtype=torch.int32)
    run(x, out)
    assert torch.equal(x, out)
    x[700] = -1
    with pytest.raises(IndexError, match="negative"):
        run(x, out)
    x[700] = 3
    run(x, out)
    assert torch.equal(x, out)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    OpenMp().export(tvm.compile(squares(), target=host()), path := tmp_path / "squares.so")
    return path


def test_without_a_compiler_loops_run_on_tvms_threads_and_are_as_right(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(launcher, "compilers", lambda: (None, None))
    library = OpenMp().load(exported, ExecutableCache(tmp_path / "cache"))
    assert "the OpenMP launcher cannot be built: no C compiler" in caplog.text
    library["main"](out := torch.empty(TASKS, dtype=torch.int32))
    assert torch.equal(out, EXPECTED)


def test_the_launcher_is_kept_in_the_cache_that_it_is_given(exported: Path, tmp_path: Path):
    assert use_torch_threads(exported, ExecutableCache(tmp_path / "cache"))
    assert len(list((tmp_path / "cache").glob("*/launcher.so"))) == 1


def test_a_library_without_parallel_loops_needs_no_launcher(tmp_path: Path):
    def body(out: Any) -> None:
        T.buffer_store(out, T.int32(7), [0])

    store, openmp = ExecutableCache(tmp_path), OpenMp()
    library = tvm.compile(kernel([((1,), "int32")], body), target=host())
    entry = store.add(Key({}), {}, partial(openmp.export, library), partial(openmp.load, cache=store))
    entry.library["main"](out := torch.empty(1, dtype=torch.int32))
    assert out.item() == 7
