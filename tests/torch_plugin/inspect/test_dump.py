"""`dump`: every stage of a compilation in numbered files, one folder a graph."""

import threading
from pathlib import Path

import pytest
import torch
from lutra.ir.errors import OptionError
from lutra.ir.graph import Graph
from lutra.tests.support.capture import Interpreted
from lutra.torch_plugin.inspect.dump import Dump
from torch import fx


def captured() -> tuple[Graph, fx.GraphModule]:
    backend = Interpreted()
    with torch.no_grad():
        torch.compile(torch.nn.Linear(4, 3), backend=backend)(torch.randn(2, 4))
    return backend.graph, backend.functionals[0]


def test_stages_are_numbered_in_order_and_hold_the_text(tmp_path: Path):
    graph, functional = captured()
    dump = Dump.start(tmp_path / "new" / "folder", graph, functional)
    assert dump is not None
    dump("after-fuse.mlir", "module {}")
    dump("relax.py", "# é")
    folder = tmp_path / "new" / "folder" / "encode-0"
    assert [p.name for p in sorted(folder.iterdir())] == [
        "00-fx.py",
        "01-imported.mlir",
        "02-after-fuse.mlir",
        "03-relax.py",
    ]
    assert "aten.linear" in (folder / "00-fx.py").read_text()
    assert "torch.aten.linear" in (folder / "01-imported.mlir").read_text()
    assert (folder / "03-relax.py").read_text(encoding="utf-8") == "# é"


def test_no_folder_means_no_dump():
    graph, functional = captured()
    assert Dump.start(None, graph, functional) is None


def test_graphs_that_start_at_once_get_folders_of_their_own(tmp_path: Path):
    graph, functional = captured()
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        Dump.start(tmp_path, graph, functional)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"encode-{i}" for i in range(8)]
    assert all(len(list(folder.iterdir())) == 2 for folder in tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_option_error(tmp_path: Path):
    graph, functional = captured()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OptionError, match="option 'dump'"):
            Dump.start(folder, graph, functional)
    dump = Dump.start(tmp_path, graph, functional)
    assert dump is not None
    with pytest.raises(OptionError, match="cannot be written"):
        dump("missing-folder/x", "text")
