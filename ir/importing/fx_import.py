"""FX graphs (from AOTAutograd, functional, fake tensors in `meta["val"]`) to MLIR.

Four things differ from torch-mlir's stock importer. Placeholders that are parameters become `lutra.param` operations,
so that the function's arguments are what changes from call to call. In-place updates of arguments (`aten.copy_` at the
end of the graph) become additional results and a mutation map. Numbers that follow from sizes are `lutra.number`, with
torch's own expressions. What the IR has no words for is outlined into regions, which torch runs (`fx_regions.py`).
"""

import hashlib
import operator
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch_mlir import ir
from torch_mlir.extras import fx_importer as fxi
from torch_mlir.extras.fx_as_strided import rewrite_as_strided

from ..analysis.sizes import describe
from ..context import make_context
from ..errors import CaptureError
from ..graph import UNLIMITED, Graph, GraphInput, Phase
from ..rewriting import clean_up
from ..weights.derivations import Encode
from ..weights.store import ParameterStore
from .foreign import is_foreign
from .fx_nodes import PARAMETER_META, NodeImporter, PathContextCache, Refused
from .fx_regions import Outlined, copied, outline


def import_graph(
    gm: fx.GraphModule,
    store: ParameterStore,
    parameters: Mapping[int, str],
    names: Sequence[str],
    phase: Phase,
) -> Graph:
    """Import `gm`, which stays as it is.

    `parameters`: placeholder index -> name in `store`; `names`: of all placeholders.
    Raises `CaptureError` for constructs that neither MLIR's importer nor a region can express."""
    refused: dict[Any, str] = {}
    while True:
        try:
            return _import(gm, refused, store, parameters, names, phase)
        except Refused as error:
            if error.node.op != "call_function" or error.target in refused:
                reasons = "; ".join([*refused.values(), str(error)])
                raise CaptureError(f"the graph cannot be written as MLIR: {reasons}") from error
            refused[error.target] = str(error)


def _import(
    gm: fx.GraphModule,
    refused: Mapping[Any, str],
    store: ParameterStore,
    parameters: Mapping[int, str],
    names: Sequence[str],
    phase: Phase,
) -> Graph:
    gm = fx.GraphModule(gm, copied(gm.graph))
    mutated = _strip_mutations(gm)
    with suppress(NotImplementedError, ValueError):  # what cannot be written as indexing stays with torch
        rewrite_as_strided(gm.graph)
    _constants_to_parameters(gm, store)
    _without_other_names(gm)
    _equality_as_torch_means_it(gm)
    _joins_without_empty_parts(gm)
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    arguments: list[tuple[int, str, bool]] = []
    bound: dict[int, str] = {}
    for position, node in enumerate(placeholders):
        if position in parameters and node not in mutated.values():
            _to_parameter(gm, node, parameters[position], store)
            bound[position] = parameters[position]
        else:
            arguments.append((position, node.name, node in mutated.values()))
    outlined = outline(gm, refused)
    nodes = {node.name: node for node in outlined.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta["val"] for _, name, _ in arguments]
    module, sizes = _module(outlined)
    order = [name for _, name, _ in arguments]
    return Graph(
        module,
        store,
        phase,
        [
            GraphInput(position, names[position], _symbol(value), is_mutated, outlined.encoded_inputs.get(name))
            for (position, name, is_mutated), value in zip(arguments, values, strict=True)
        ],
        mutations={result: order.index(node.name) for result, node in mutated.items()},
        parameter_positions=bound,
        input_shapes=[_symbolic_shape(value) for value in values],
        symbol_ranges=_symbol_ranges(values),
        environment=_environment(values),
        sizes=sizes,
        regions=outlined.regions,
        encoded_results={number: dtype for number, dtype in outlined.encoded.items() if number not in mutated},
    )


def _module(outlined: Outlined) -> tuple[ir.Module, dict[str, Any]]:
    """The graph as an MLIR module, and what the sizes in it stand for; raises `Refused`."""
    context = make_context()
    importer = fxi.FxImporter(context=context, graph_node_importer_cls=NodeImporter, config_check=False)
    importer._cc = cache = PathContextCache(context, py_attr_tracker=importer._py_attr_tracker)
    try:
        with context, ir.Location.unknown(context):
            importer.import_stateless_graph(outlined.graph, func_name="main")
            importer.module.operation.verify()
            clean_up(importer.module)
    except (NotImplementedError, KeyError, AssertionError, TypeError, RuntimeError, ir.MLIRError) as error:
        raise CaptureError(f"the graph cannot be written as MLIR: {type(error).__name__}: {error}") from error
    return importer.module, cache.sizes


def _strip_mutations(gm: fx.GraphModule) -> dict[int, fx.Node]:
    """Turn `copy_(placeholder, value)` into a result after the existing ones; returns {result index: placeholder}."""
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    results = list(output.args[0]) if isinstance(output.args[0], tuple | list) else [output.args[0]]
    mutated: dict[int, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.copy_.default:
            continue
        target, value = node.args[0], node.args[1]
        if not (isinstance(target, fx.Node) and isinstance(value, fx.Node) and target.op == "placeholder"):
            raise CaptureError(f"in-place update of something that is not an argument: {node.format_node()}")
        node.replace_all_uses_with(value)
        results = [value if r is node else r for r in results]
        gm.graph.erase_node(node)
        mutated[len(results)] = target
        results.append(value)
    output.args = (tuple(results),)
    return mutated


def _to_parameter(gm: fx.GraphModule, node: fx.Node, name: str, store: ParameterStore) -> None:
    """`node` becomes what the store has under `name`; of a foreign dtype it is read as it is encoded."""
    value = node.meta["val"]
    with gm.graph.inserting_before(node):
        attribute = gm.graph.create_node("get_attr", re.sub(r"\W", "_", name), name=node.name + "_param")
    attribute.meta = {**node.meta, PARAMETER_META: name}
    if is_foreign(value.dtype):
        attribute.meta[PARAMETER_META] = _as_encoded(store, name)
    node.replace_all_uses_with(attribute)
    gm.graph.erase_node(node)


def _as_encoded(store: ParameterStore, name: str) -> str:
    return store.derive(f"{name}@encoded", [name], Encode())


def _constants_to_parameters(gm: fx.GraphModule, store: ParameterStore) -> None:
    """Tensors that tracing lifted into the graph become parameters, named by content: graphs and processes agree."""
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        value = operator.attrgetter(node.target)(gm)
        if not isinstance(value, torch.Tensor):
            continue
        data = value.detach().contiguous()
        content = bytes(data.reshape(-1).view(torch.uint8).tolist()) + repr((tuple(data.shape), data.dtype)).encode()
        name = store.bind(f"constant.{hashlib.sha256(content).hexdigest()[:16]}", data)
        node.meta[PARAMETER_META] = _as_encoded(store, name) if is_foreign(data.dtype) else name
        node.meta.setdefault("val", value)


def _without_other_names(gm: fx.GraphModule) -> None:
    """A value is what it is an alias of; a slice of everything, of a cache of any length, is what it is cut from."""
    for node in list(gm.graph.nodes):
        if node.target in _OTHER_NAMES or (node.target in _OF_EQUAL_SHAPE and _same_shape(node, node.args[0])):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)


_OTHER_NAMES = {torch.ops.aten.alias.default, torch.ops.aten.detach.default}
_OF_EQUAL_SHAPE = {
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.expand.default,
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
}
"""Views that are the whole where they have its shape."""


def _same_shape(one: fx.Node, other: Any) -> bool:
    shapes = [_symbolic_shape(node.meta["val"]) for node in (one, other)]
    return shapes[0] == shapes[1]


def _equality_as_torch_means_it(gm: fx.GraphModule) -> None:
    """Equality of floats as not being unequal: MLIR folds `x == x` to true, which it is not for NaN."""
    for node in list(gm.graph.nodes):
        if node.target is not torch.ops.aten.eq.Tensor:
            continue
        values = [n.meta.get("val") for n in node.all_input_nodes]
        if any(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values):
            with gm.graph.inserting_after(node):
                negated = gm.graph.call_function(torch.ops.aten.logical_not.default, (node,))
            negated.meta = dict(node.meta)
            node.replace_all_uses_with(negated, delete_user_cb=lambda user, negated=negated: user is not negated)
            node.target = torch.ops.aten.ne.Tensor


def _joins_without_empty_parts(gm: fx.GraphModule) -> None:
    """A `cat` reads what has elements: the first step over an empty cache joins nothing and something."""
    for node in gm.graph.nodes:
        if node.target is not torch.ops.aten.cat.default:
            continue
        value, dim = node.meta["val"], node.args[1] if len(node.args) > 1 else 0
        parts = [part for part in node.args[0] if not _is_empty(part.meta["val"], dim)]
        if len(parts) == len(node.args[0]) or any(part.meta["val"].dtype != value.dtype for part in parts):
            continue
        if len(parts) == 1:  # a result of the graph is a tensor of its own, as torch's `cat` is
            node.replace_all_uses_with(parts[0], delete_user_cb=lambda user: user.op != "output")
            node.target, node.args = torch.ops.aten.clone.default, (parts[0],)
        elif parts:
            node.args = (parts, dim)


def _is_empty(value: torch.Tensor, dim: int) -> bool:
    """For certain: nothing of `value` is in a `cat` along `dim`."""
    size = value.shape[dim] if -value.dim() <= dim < value.dim() else value.shape[0]
    return isinstance(size, int) and size == 0


def _symbol(value: Any) -> sympy.Expr | None:
    return value.node.expr if isinstance(value, torch.SymInt) else None


def _symbolic_shape(value: Any) -> tuple[sympy.Expr, ...]:
    described = describe(value)
    return getattr(described, "shape", None) or ()


def _symbol_ranges(values: Sequence[Any]) -> dict[sympy.Symbol, tuple[int, int]]:
    """Value range of every symbol that the arguments' sizes use; `UNLIMITED` stands for an end that there is not."""
    ranges: dict[sympy.Symbol, tuple[int, int]] = {}
    for size in _sizes(values):
        for symbol in size.node.expr.free_symbols:
            bounds = size.node.shape_env.var_to_range[symbol]
            low, high = max(bounds.lower, -UNLIMITED), min(bounds.upper, UNLIMITED)
            ranges[symbol] = (int(low), int(high))
    return ranges


def _environment(values: Sequence[Any]) -> ShapeEnv | None:
    return next((size.node.shape_env for size in _sizes(values)), None)


def _sizes(values: Sequence[Any]) -> list[torch.SymInt]:
    sizes = (size for value in values for size in (value.shape if isinstance(value, torch.Tensor) else [value]))
    return [size for size in sizes if isinstance(size, torch.SymInt)]
