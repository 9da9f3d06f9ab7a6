"""Weights that change between two calls, in every way that torch and numpy know: the next call is eager's."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import lutra
import pytest
import torch
from lutra.ir.errors import ParameterError
from lutra.torch_plugin.inspect.report import states_of
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters


class Layer(nn.Module):
    """Projections of one input, a gate, a table, a buffer and a tied product: plain, stacked, transposed and packed
    weights."""

    shift: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 32)
        self.norm = nn.LayerNorm(64)
        self.mix = nn.Parameter(torch.randn(64, 64) / 8)
        self.table = nn.Embedding(64, 64)
        self.register_buffer("shift", torch.randn(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x) + self.table(torch.arange(len(x)))
        return torch.cat([torch.relu(self.q(x)), self.k(x), x @ self.mix + self.shift, x @ self.table.weight.T], 1)


@pytest.fixture(autouse=True)
def _forget_graphs_of_other_tests():
    torch._dynamo.reset()


QUANTISED = {"lutra": 1, "name": "r", "passes": [{"fuse": {}}, {"quantize-weights": {"bits": 8, "group_size": 32}}]}


def compiled(model: nn.Module, recipe: Any = None, **options: Any) -> Any:
    given: Any = {"recipe": recipe or QUANTISED, **options}
    return torch.compile(model, backend="lutra", options=given, dynamic=False)


def scale_data(model: Layer) -> None:
    model.q.weight.data.mul_(3)
    model.mix.data.mul_(3)
    model.table.weight.data.add_(0.5)


def copy_data(model: Layer) -> None:
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn_like(parameter))
    model.shift.data.neg_()


def set_data(model: Layer) -> None:
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter)


def write_one_element_and_one_row(model: Layer) -> None:
    model.mix.data[3, 5] = 90
    model.k.weight.data[7].neg_()
    model.mix.data[[1, 2]] = model.mix.data[[2, 1]].clone()


def write_vector(model: Layer) -> None:
    vector_to_parameters(parameters_to_vector(model.parameters()) * 2, model.parameters())


def round_to_half(model: Layer) -> None:
    model.half()
    model.float()


def load(model: Layer) -> None:
    model.load_state_dict(Layer().state_dict())


def assign(model: Layer) -> None:
    model.load_state_dict(Layer().state_dict(), assign=True)


def swap(model: Layer) -> None:
    for parameter in model.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(torch.randn_like(parameter)))


def write_by_numpy(model: Layer) -> None:
    for parameter in (model.q.weight, model.q.bias, model.mix):
        parameter.detach().numpy()[...] *= 2


def step(model: Layer) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with torch.enable_grad():
        model(torch.ones(2, 64)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    del optimizer
    gc.collect()  # it holds the parameters in a cycle


def replace_modules(model: Layer) -> None:
    model.q = nn.Linear(64, 64)
    model.k.weight = nn.Parameter(torch.randn(32, 64))
    model.shift = torch.randn(64)


WAYS: list[Callable[[Layer], None]] = [
    *(scale_data, copy_data, set_data, write_one_element_and_one_row, write_vector, round_to_half, load, assign, swap),
    *(write_by_numpy, step, replace_modules),
]


@pytest.mark.parametrize("recipe", ["none", None])
def test_every_way_of_changing_weights_is_seen_at_the_next_call(recipe: Any):
    model = Layer()
    state = model.state_dict()  # of before: it reaches the model afterwards
    fast, x = compiled(model, recipe), torch.randn(4, 64)
    error = 1e-4 if recipe else 0.03

    def check(name: str) -> None:
        got, expected = fast(x), model(x)
        found = (got - expected).norm() / expected.norm()
        assert found < error, (name, float(found))

    with torch.no_grad():
        check("nothing")
        for tensor in state.values():
            tensor.mul_(1.5)
        check("a state that was taken before")
        del state
        for change in WAYS:
            for tensor, value in zip(model.state_dict().values(), Layer().state_dict().values(), strict=True):
                tensor.copy_(value)  # no change meets values that an earlier one made large
            before = model(x)
            change(model)
            assert change is round_to_half or (model(x) - before).norm() / before.norm() > 0.06
            check(change.__name__)
    (graph,) = [g for s in states_of(model) for g in s.graphs]
    assert len(graph.executables()) == 1


def test_merged_projections_are_read_where_they_lie():
    model, x = Layer(), torch.randn(4, 64)
    places = [p.data_ptr() for p in model.parameters()]
    fast = compiled(model, "none")
    with torch.no_grad():
        fast(x)
    assert [p.data_ptr() for p in model.parameters()] == places
    (graph,) = [g for s in states_of(model) for g in s.graphs]
    read = {weight.data_ptr() for weight in graph.executable._weights}
    assert {model.q.weight.data_ptr(), model.k.weight.data_ptr()} <= read
    assert all(weight.numel() <= model.q.weight.numel() for weight in graph.executable._weights)


def test_a_change_repacks_what_it_touched_and_nothing_is_left_of_before():
    model, x = Layer(), torch.randn(4, 64)
    fast = compiled(model)
    with torch.no_grad():
        fast(x)
        (state,) = states_of(model)
        before = {key: buffers[-1].clone() for key, buffers in state.store._packed.items()}
        size = state.store.packed_bytes()
        for _ in range(3):
            model.mix.data.mul_(1.5)
            fast(x)
        after = {key: buffers[-1] for key, buffers in state.store._packed.items()}
    assert state.store.packed_bytes() == size and before.keys() == after.keys()
    assert {key[0].split(".")[0] for key in before if not torch.equal(before[key], after[key])} == {"mix"}


def test_one_graph_serves_the_weights_of_many_layers_and_forgets_those_that_are_gone():
    """Regional compilation: all layers run one graph, each with its own weights, which change one by one."""
    layers = [Layer() for _ in range(3)]
    for layer in layers:
        layer.compile(backend="lutra", options={"recipe": QUANTISED}, dynamic=False)

    def check(x: torch.Tensor) -> None:
        for layer in layers:
            got, expected = layer(x), layer.forward(x)
            assert (got - expected).norm() / expected.norm() < 0.1

    with torch.no_grad():
        for rows in (4, 1):
            check(torch.randn(rows, 64))
        layers[1].q.weight.data.mul_(3)
        layers[2].load_state_dict(Layer().state_dict(), assign=True)
        for rows in (4, 1):
            check(torch.randn(rows, 64))
        graphs = [g for s in states_of(layers[0]) for g in s.graphs]
        assert [len(g.executables()) for g in graphs] == [3, 3]
        # The graphs of four rows and of one share the packed weights of each layer.
        stores = {id(binding.watch.store) for g in graphs for binding in g._bindings.values()}
        assert len(stores) == 3
        del layer
        layers = [layers[0], Layer()]
        gc.collect()
        layers[1].compile(backend="lutra", options={"recipe": QUANTISED}, dynamic=False)
        check(torch.randn(4, 64))
        assert len(graphs[0].executables()) == 2


def test_released_weights_take_new_values_and_say_when_they_are_written_to():
    model, x = Layer(), torch.randn(4, 64)
    fast = compiled(model, release_weights=True)
    with torch.no_grad():
        fast(x)
        assert model.q.weight.isnan().any() and model.k.weight.isnan().any()
        model.load_state_dict(Layer().state_dict(), assign=True)
        twin = Layer()
        twin.load_state_dict(model.state_dict())
        for _ in range(2):
            got, expected = fast(x), twin(x)
            assert (got - expected).norm() / expected.norm() < 0.1
    torch._dynamo.reset()
    released = Layer()
    fast = compiled(released, release_weights=True)
    with torch.no_grad():
        fast(x)
        released.q.weight.copy_(torch.ones(64, 64))
        with pytest.raises(ParameterError, match=r"'q\.weight' was written to after its values had been released"):
            fast(x)


def test_nothing_is_left_of_graphs_that_are_gone():
    """Neither after `torch._dynamo.reset()` nor when the compiled model is deleted."""
    model, x = Layer(), torch.randn(4, 64)
    seen: list[weakref.ref[Any]] = []
    with torch.no_grad():
        for strict in (False, True):
            fast = compiled(model, strict=strict)
            fast(x)
            assert len(lutra.report(model).graphs) == 1
            for state in states_of(model):
                seen += map(weakref.ref, [state, state.store, *state.graphs, *state.graphs[0].executables()])
            del fast, state
            torch._dynamo.reset()
            gc.collect()
            assert lutra.report(model).graphs == ()
            assert [reference() for reference in seen] == [None] * len(seen)


def test_options_that_leave_weights_alone_share_what_is_packed(tmp_path: Any):
    model, x = Layer(), torch.randn(4, 64)
    with torch.no_grad():
        for options in ({}, {"strict": True}, {"cache_dir": tmp_path}, {"progress": False, "cache": False}):
            compiled(model, **options)(x)
    (state,) = states_of(model)
    assert len(state.graphs) == 4 and len({id(g.graph.store) for g in state.graphs}) == 1
    assert any(tmp_path.iterdir())


def test_a_second_set_of_weights_shares_nothing_that_is_out_of_date():
    model, x = Layer(), torch.randn(4, 64)
    fast = compiled(model)
    with torch.no_grad():
        fast(x)
        held, model.shift = model.shift, torch.randn(64)  # the first is still there: both sets live on
        model.q.weight.data.neg_()
        got, expected = fast(x), model(x)
        assert (got - expected).norm() / expected.norm() < 0.03
        model.shift = held
        got, expected = fast(x), model(x)
        assert (got - expected).norm() / expected.norm() < 0.03
