"""Intermediate results in memory that an executable keeps."""

import pytest
import torch
from lutra.codegen.runtime.workspace import KEPT_BYTES, View, Workspace, with_workspace
from lutra.codegen.targets.cpu.target import CPU
from lutra.torch_plugin.inspect.report import states_of
from torch import nn
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def test_views_lie_where_they_were_planned():
    views = (View(64, (2, 3), "float32"), View(64, (6,), "float32"), View(0, (), "int64"), View(128, (5,), "bool"))
    workspace = Workspace.from_data(Workspace(192, views).to_data())
    assert workspace == Workspace(192, views)
    matrix, row, scalar, flags = workspace.tensors(CPU)
    matrix.copy_(torch.arange(6.0).view(2, 3))
    scalar.fill_(7)
    flags.fill_(True)
    assert row.tolist() == [0, 1, 2, 3, 4, 5] and scalar.item() == 7 and flags.all()
    assert scalar.data_ptr() % 64 == 0 and matrix.data_ptr() - scalar.data_ptr() == 64
    assert matrix.data_ptr() != workspace.tensors(CPU)[0].data_ptr(), "every executable has its own"
    assert Workspace().tensors(CPU) == []


@I.ir_module
class Planned:
    @R.function
    def main(x: R.Tensor(("n", 4), "float32")) -> R.Tensor(dtype="float32"):
        R.func_attr({"relax.force_pure": True})
        n = T.int64()
        small = R.memory.alloc_storage(R.shape([96]), 0, "global", "float32")
        a = R.memory.alloc_tensor(small, 0, R.shape([2, 12]), "float32")
        _ = R.call_packed("fill", x, a, ty_args=(R.Tuple(),))
        flat = R.reshape(a, R.shape([24]))
        pair = (a, flat)
        again = R.memory.alloc_tensor(small, 0, R.shape([24]), "float32")
        large = R.memory.alloc_storage(R.shape([2097152]), 0, "global", "float32")
        b = R.memory.alloc_tensor(large, 0, R.shape([1024, 512]), "float32")
        some = R.memory.alloc_storage(R.shape([4096]), 0, "global", "float32")
        c = R.memory.alloc_tensor(some, 0, R.shape([n, 4]), "float32")
        second = pair[1]
        _1 = R.call_packed("use", second, again, b, c, ty_args=(R.Tuple(),))
        out = R.builtin.alloc_tensor(R.shape([n, 4]), "float32", 0)
        return out


def test_small_storages_of_tensors_with_known_shapes_are_taken():
    module, workspace = with_workspace(Planned)
    assert workspace == Workspace(128, (View(0, (2, 12), "float32"), View(0, (24,), "float32")))
    text = module.script()
    assert 'call_packed("fill", x, workspace0,' in text
    assert 'call_packed("use", workspace1, workspace1, b, c,' in text
    assert text.count("memory.alloc_storage") == 2, "a large one, and one of a tensor whose shape is not known"


class Views(nn.Module):
    """Results that are views, parts and neighbours of intermediate values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 32)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = self.linear(x)
        first, second = hidden.relu().chunk(2, -1)
        return hidden.view(-1), (first * second).unsqueeze(0), second.reshape(4, -1).t(), hidden.softmax(-1)


def test_results_of_one_call_outlive_the_next():
    model = Views().eval()
    fast = torch.compile(model, backend="lutra")
    inputs = torch.randn(3, 8, 16)
    with torch.no_grad():
        results = [fast(x) for x in inputs]
        for x, got in zip(inputs, results, strict=True):
            torch.testing.assert_close(got, model(x))


def test_what_a_prompt_computes_is_left_to_the_pool():
    fast = torch.compile(Views().eval(), backend="lutra", dynamic=False)
    rows = KEPT_BYTES // 64
    with torch.no_grad():
        fast(torch.randn(rows, 16))
    (graph,) = [g for state in states_of(fast) for g in state.graphs]
    parts = [torch.from_dlpack(tensor) for tensor in graph.executable._workspace]
    assert all(part.nbytes <= KEPT_BYTES for part in parts)
    assert rows * 32 * 4 > KEPT_BYTES, "the linear's result would not fit"
