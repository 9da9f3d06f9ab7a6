"""A packed folder that was damaged gives the same numbers or an error of Lutra; one that was changed on purpose gives
some numbers or an error of Lutra."""

import json
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from lutra.ir.errors import LutraError
from lutra.tests.support.fuzzing import random
from lutra.tests.torch_plugin.models import packed_mutations as mutations
from lutra.torch_plugin.models.packed_manifest import MANIFEST, PACKED, PLAIN
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

X = torch.linspace(-2, 2, 3 * 64).reshape(3, 64)


class Net(nn.Module):
    """Tensors of every kind: packed, packed in a stack, plain, rows of a plain stack, read by no graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 96), nn.Linear(96, 32)
        self.register_buffer("shift", torch.randn(32))
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(x).relu()) + self.shift * self.a(x).sum()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    torch.manual_seed(0)
    model = Net()
    passes = [{"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 32, "select": {"modules": ["a", "b"]}}}]
    options = {"recipe": {"lutra": 1, "name": "r", "passes": passes}, "cache_dir": folder / "cache"}
    model.compile(backend="lutra", options=options)
    with torch.no_grad():
        model(X)
    lutra.pack(model, folder / "whole")
    return folder


def outcome(folder: Path) -> torch.Tensor | None:
    """The numbers of the folder `given`, or None when Lutra refuses it."""
    torch._dynamo.reset()
    try:
        with torch.device("meta"):
            model = Net()
        loaded = lutra.load(folder / "given", model, {"cache_dir": folder / "cache"})
        with torch.no_grad():
            return loaded(X)
    except BackendCompilerFailed as error:
        assert isinstance(error.inner_exception, LutraError)
    except LutraError as error:
        assert 0 < len(str(error)) < 20_000
    return None


def test_a_folder_that_nothing_happened_to_gives_its_numbers(folder: Path):
    content = mutations.read(folder / "whole")
    assert {held["where"] for held in json.loads(content[MANIFEST])["tensors"].values()} == {"packed", "plain", "rows"}
    mutations.write(content, folder / "given")
    mutations.seal(folder / "given")
    assert outcome(folder) is not None


@pytest.mark.fuzz
@random(100)
@given(data=st.data())
def test_accidents_change_no_number(folder: Path, data: st.DataObject):
    content = mutations.read(folder / "whole")
    damaged = data.draw(mutations.accidents(content))
    assume(damaged != content)
    mutations.write(damaged, folder / "given")
    got = outcome(folder)
    if got is not None:  # spaces in the manifest, for example
        mutations.write(content, folder / "given")
        whole = outcome(folder)
        assert whole is not None and torch.equal(got, whole)


@pytest.mark.fuzz
@random(100)
@given(data=st.data())
def test_manifests_of_others(folder: Path, data: st.DataObject):
    content = mutations.read(folder / "whole")
    manifest = data.draw(mutations.changed(json.loads(content[MANIFEST])))
    mutations.write(content | {MANIFEST: json.dumps(manifest).encode()}, folder / "given")
    mutations.seal(folder / "given")
    got = outcome(folder)
    assert got is None or got.shape == (3, 32)


@pytest.mark.fuzz
@random(100)
@given(data=st.data())
def test_files_of_weights_of_others(folder: Path, data: st.DataObject):
    content = mutations.read(folder / "whole")

    def change(header: dict[str, Any]) -> None:
        if name == PACKED and data.draw(st.booleans()):
            weights = json.loads(header["__metadata__"]["lutra.weights"])
            header["__metadata__"]["lutra.weights"] = json.dumps(data.draw(mutations.changed(weights)))
        else:
            changed = data.draw(mutations.changed(header))
            header.clear()
            header.update(changed)

    name = data.draw(st.sampled_from([PACKED, PLAIN]))
    mutations.write(content | {name: mutations.with_metadata(content[name], change)}, folder / "given")
    mutations.seal(folder / "given")
    got = outcome(folder)
    assert got is None or got.shape == (3, 32)
