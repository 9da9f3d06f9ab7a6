"""Each thing that Lutra takes from beneath torch's public face is still there and does what it did."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from lutra.ir import torch_private
from torch import fx, nn


class Backend:
    """Keeps the graphs that Dynamo gives, after `look` had a chance to ask for others; torch runs them."""

    def __init__(self, look: Callable[[fx.GraphModule], None] = lambda gm: None) -> None:
        self.look = look
        self.graphs: list[fx.GraphModule] = []
        self.tries = 0

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.tries += 1
        self.look(gm)
        self.graphs.append(gm)
        return gm.forward


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def test_placeholders_say_where_they_come_from():
    names = set()

    def look(gm: fx.GraphModule) -> None:
        names.update(torch_private.source_name(node) for node in gm.graph.nodes if node.op == "placeholder")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x)

    torch.compile(Model(), backend=Backend(look))(torch.ones(1, 2))
    layer = "L['self']._modules['head']._parameters"
    assert names == {f"{layer}['weight']", f"{layer}['bias']", "L['x']"}


def test_composites_stay_whole_inside_and_are_taken_apart_outside():
    seen: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        seen.append(gm)
        return gm.forward

    def aot(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return torch_private.aot_autograd(fw_compiler=keep, inference_compiler=keep, decompositions={})(gm, inputs)

    def targets() -> set[Any]:
        torch._dynamo.reset()
        seen.clear()
        with torch.no_grad():
            torch.compile(lambda x: nn.functional.layer_norm(x, (4,)), backend=aot)(torch.randn(2, 4))
        return {node.target for node in seen[0].graph.nodes}

    operator = torch.ops.aten.layer_norm.default
    with torch_private.keep_whole([operator]):
        assert operator in targets()
    assert operator not in targets()


def test_floats_that_dynamo_makes_arguments_become_constants_when_they_are_asked_to():
    def look(gm: fx.GraphModule) -> None:
        with torch_private.floats_of_one_frame():
            if floats := torch_private.float_arguments(gm):
                torch_private.specialize_floats(floats)
                torch_private.trace_again("floats are constants")

    backend, plain = Backend(look), Backend()
    for each in (plain, backend):
        torch._dynamo.reset()
        function = torch.compile(lambda x, scale: x * scale, backend=each, dynamic=True)
        for scale in (0.5, 0.25):
            assert torch.equal(function(torch.ones(3, 2), scale), torch.full((3, 2), scale))
    assert torch_private.float_arguments(plain.graphs[0])
    assert backend.tries == 4 and len(backend.graphs) == 2
    assert not any(torch_private.float_arguments(gm) for gm in backend.graphs)


def test_other_backends_still_decide_about_floats_themselves():
    import lutra.torch_plugin.backend as ours

    torch.compile(lambda x, s: x * s, backend=ours.lutra, dynamic=True)(torch.ones(3), 0.5)
    other = Backend()
    torch.compile(lambda x, s: x * s, backend=other, dynamic=True)(torch.ones(3), 0.5)
    assert torch_private.float_arguments(other.graphs[0])


def test_a_number_that_was_always_the_same_becomes_a_symbol_when_it_is_asked_to():
    class Holder:
        length = 4

    def look(gm: fx.GraphModule) -> None:
        static = torch_private.once_static(".length")
        if backend.tries == 1:
            (entry,) = static.values()
            torch_private.make_dynamic(entry)
            torch_private.trace_again("the length may change")
        assert not static

    backend = Backend(look)
    holder = Holder()
    function = torch.compile(lambda holder, x: x.new_zeros(holder.length) + x[0], backend=backend)
    for length in (4, 7, 9):
        holder.length = length
        assert function(holder, torch.ones(2)).shape == (length,)
    assert backend.tries == 2


def test_dynamo_counts_its_versions_and_can_be_told_to_make_more():
    def function(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    compiled = torch.compile(function, backend=Backend(), dynamic=False)
    for size in range(2, 5):
        compiled(torch.ones(size))
    assert torch_private.compiled_versions(function.__code__) == 3
    limit = torch_private.versions_at_most()
    with torch_private.many_versions():
        assert torch_private.versions_at_most() > limit
    assert torch_private.versions_at_most() == limit


def test_a_wrapped_model_is_known_and_a_backend_is_found_by_its_name():
    assert isinstance(torch.compile(nn.Linear(1, 1), backend="eager"), torch_private.OptimizedModule)
    assert callable(torch_private.lookup_backend("eager"))
    assert isinstance(torch.ops.aten.add.Tensor, torch_private.OpOverload)
    with pytest.raises(torch_private.TorchDynamoException):
        torch_private.lookup_backend("no such backend")


def test_fake_tensors_take_shapes_that_the_environment_knows():
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    environment = ShapeEnv()
    mode = torch_private.FakeTensorMode(shape_env=environment)
    source = torch_private.ConstantSource("x")
    with torch_private.enable_python_dispatcher():
        fake = mode.from_tensor(torch.ones(5, 3), source=source)
        assert fake.shape == (5, 3)
        with mode, torch_private.unset_fake_temporarily():
            assert type(torch.ones(2)) is torch.Tensor
