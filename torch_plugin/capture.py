"""Dynamo's graph -> AOTAutograd (inference, composites kept whole) -> `ir.Graph`."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..ir.errors import CaptureError, LutraError
from ..ir.graph import Graph, Phase
from ..ir.importing.fx_import import import_graph
from ..ir.importing.fx_nodes import source_path
from ..ir.torch_private import TorchDynamoException, aot_autograd, keep_whole, source_name, unset_fake_temporarily
from ..ir.weights.store import ParameterStore
from .view_results import has_work, take_views

Refuse = Callable[[Exception, fx.GraphModule, Phase], Callable[..., Any]]
"""`(what failed, the graph, its phase) -> the boxed function that runs it instead`."""

KEPT_COMPOSITES = (
    torch.ops.aten.linear.default,
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.layer_norm.default,
    torch.ops.aten.rms_norm.default,
    torch.ops.aten.one_hot.default,  # in parts it takes a class out of range for none
)
"""Operators that AOTAutograd would otherwise take apart: each is one operation of the IR."""


def parameter_name(source: str) -> str | None:
    """`L['self']._modules['model']..._parameters['weight']` -> `model....weight`; None for what is not in a module."""
    if not re.search(r"\._(parameters|buffers)\['[^']+'\]$|_modules\['[^']+'\].*\.\w+$", source):
        return None
    return source_path(source)


def parameter_names(gm: fx.GraphModule, inputs: Sequence[Any]) -> dict[int, str]:
    """Index of each input that is a parameter or buffer of a module -> its dotted path, unique per tensor."""
    names: dict[int, str] = {}
    taken: dict[str, Any] = {}
    for index, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder"):
        value = inputs[index]
        source = source_name(node)
        if not isinstance(value, torch.Tensor) or source is None:
            continue
        name = parameter_name(source)
        if name is None and isinstance(value, torch.nn.Parameter):
            name = node.name
        if name is None:
            continue
        base, copy = name, 1
        while taken.setdefault(name, value) is not value:
            copy += 1
            name = f"{base}#{copy}"
        names[index] = name
    return names


def needs_gradient(inputs: Sequence[Any]) -> bool:
    """True when autograd is on and some input asks for a gradient: this backend is for inference."""
    return torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs)


def capture(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    store: ParameterStore,
    compile_graph: Callable[[Graph, fx.GraphModule], Callable[..., Any]],
    refuse: Refuse | None = None,
) -> Callable[..., Any]:
    """Run AOTAutograd on Dynamo's `gm`.

    `compile_graph(graph, functional gm)` makes the function that is called with all inputs. What fails goes to
    `refuse`, which raises or gives the function that is called instead; without it the error is raised.
    Raises `ParameterError` when a parameter has no values (`meta`)."""
    names = parameter_names(gm, inputs)
    names = {index: store.bind(name, inputs[index]) for index, name in names.items()}
    labels = [names.get(i) or n.name for i, n in enumerate(n for n in gm.graph.nodes if n.op == "placeholder")]

    def inner(functional: fx.GraphModule, fakes: Sequence[Any]) -> Callable[..., Any]:
        phase = graph_phase(functional)
        complete = take_views(functional)
        with unset_fake_temporarily():  # AOTAutograd calls compilers with fake tensors on; ours computes weights
            if complete is not None and not has_work(functional):
                return complete(lambda *_: [])
            try:
                first = _tokens(functional, len(labels))
                parameters = {index + first: name for index, name in names.items()}
                named = [*(f"token{i}" for i in range(first)), *labels]
                graph = import_graph(functional, store, parameters, named, phase)
                graph.tokens = first
                compiled = compile_graph(graph, functional)
            except Exception as error:
                if refuse is None:
                    raise
                compiled = refuse(error, functional, phase)
        return compiled if complete is None else complete(compiled)

    aot = aot_autograd(
        fw_compiler=inner, inference_compiler=inner, decompositions={}, keep_inference_input_mutations=True
    )
    with keep_whole(KEPT_COMPOSITES):
        try:
            return aot(gm, list(inputs))
        except (LutraError, TorchDynamoException):  # said on purpose, by `refuse` or by torch's own machinery
            raise
        except Exception as error:
            if refuse is None:
                raise
            unboxed = refuse(error, gm, "encode")
            return lambda *arguments: unboxed(list(arguments))


def _tokens(functional: fx.GraphModule, given: int) -> int:
    """How many inputs AOTAutograd put before the `given` ones of Dynamo's graph: tokens that order side effects.

    Raises `CaptureError` where it has merged inputs."""
    placeholders = [node for node in functional.graph.nodes if node.op == "placeholder"]
    more = len(placeholders) - given
    empty = all(tuple(node.meta["val"].shape) == (0,) for node in placeholders[: max(more, 0)])
    if more < 0 or not empty:
        raise CaptureError("inputs share memory and one of them is updated, so AOTAutograd gave them one common input")
    return more


def graph_phase(gm: fx.GraphModule) -> Phase:
    """`decode`: one query position and a key/value cache; `prefill`: several with a cache; `encode`: no cache.

    A cache shows as a rank-4 tensor that the graph updates in place or returns."""
    mutated = (n.args[0] for n in gm.graph.nodes if n.target is torch.ops.aten.copy_.default)
    output = next(n for n in reversed(gm.graph.nodes) if n.op == "output")
    returned = output.args[0] if isinstance(output.args[0], tuple | list) else [output.args[0]]
    if not any(_rank(node) == 4 for node in (*mutated, *returned)):
        return "encode"
    attention = (torch.ops.aten.scaled_dot_product_attention.default, torch.ops.aten.softmax.int)
    positions = _positions(gm, attention, 4) or _positions(gm, (torch.ops.aten.linear.default,), 3)
    return "decode" if positions == {1} else "prefill"


def _positions(gm: fx.GraphModule, targets: tuple[Any, ...], rank: int) -> set[Any]:
    """Extents of the second-last dimension of the first operand, over all calls of `targets` on tensors of `rank`."""
    nodes = [n.args[0] for n in gm.graph.nodes if n.op == "call_function" and n.target in targets]
    extents = [n.meta["val"].shape[-2] for n in nodes if isinstance(n, fx.Node) and _rank(n) == rank]
    return {e if isinstance(e, int) else str(e) for e in extents}


def _rank(node: Any) -> int:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else -1
