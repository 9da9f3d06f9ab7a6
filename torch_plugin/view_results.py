"""Results that are views of arguments, left to torch.

AOTAutograd hands its caller a view of the caller's own tensor for each of them, and reads off what a graph returns
where in that tensor it lies: size, stride and offset. Compiled code has compact results, so torch itself makes these.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..ir.torch_private import OpOverload

Run = Callable[[list[Any]], list[Any]]
"""What AOTAutograd calls: one list of arguments in, which it may empty."""


def take_views(gm: fx.GraphModule) -> Callable[[Callable[..., Any]], Run] | None:
    """Take results that are views of arguments off `gm`; what makes a function with all results from the one that is
    compiled from the rest. None where there are no such results."""
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    results = list(output.args[0]) if isinstance(output.args[0], tuple | list) else [output.args[0]]
    updated = {n.args[1]: n.args[0] for n in gm.graph.nodes if n.target is torch.ops.aten.copy_.default}
    roots = [_root(result) for result in results]
    # What an argument becomes is another tensor than the argument; only views of it may be views of the argument.
    taken = {
        number
        for number, (result, root) in enumerate(zip(results, roots, strict=True))
        if root is not None and (root.op == "placeholder" or (root in updated and root is not result))
    }
    if not taken:
        return None
    views = _replay(gm, [results[number] for number in sorted(taken)], updated)
    output.args = (tuple(result for number, result in enumerate(results) if number not in taken),)
    gm.recompile()
    copied = {number for number in taken if roots[number] in updated}
    order = sorted(taken)

    def complete(compiled: Callable[..., Any]) -> Run:
        boxed = getattr(compiled, "_boxed_call", False)

        def run(arguments: list[Any]) -> list[Any]:
            held = list(arguments)
            rest = iter(compiled(arguments) if boxed else compiled(*arguments))
            made = dict(zip(order, views(*held), strict=True))
            given = {number: _copy(view) if number in copied else view for number, view in made.items()}
            return [given[number] if number in given else next(rest) for number in range(len(results))]

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    return complete


def has_work(gm: fx.GraphModule) -> bool:
    """`gm` has results or updates."""
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    return bool(output.args[0]) or any(n.target is torch.ops.aten.copy_.default for n in gm.graph.nodes)


def _root(node: Any) -> fx.Node | None:
    """What `node` is a view of, through views whose other operands are numbers known from arguments; else None."""
    while isinstance(node, fx.Node) and _is_view(node):
        if not all(_is_number(other) for other in node.all_input_nodes[1:]):
            return None
        node = node.args[0]
    return node if isinstance(node, fx.Node) else None


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        source = node.args[0] if node.args else None  # a part of a list of views
        return getattr(node.target, "__name__", "") == "getitem" and isinstance(source, fx.Node) and _is_view(source)
    returns = node.target._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _is_number(node: fx.Node) -> bool:
    """A size, or computed from sizes."""
    value = node.meta.get("val")
    if node.op == "placeholder":
        return not isinstance(value, torch.Tensor)
    reads = node.all_input_nodes
    shape = getattr(node.target, "_opname", getattr(node.target, "__name__", "")).startswith("sym_")
    return not isinstance(value, torch.Tensor) and (
        (shape and all(r.op == "placeholder" for r in reads)) or all(map(_is_number, reads))
    )


def _replay(gm: fx.GraphModule, nodes: list[fx.Node], updated: dict[Any, Any]) -> fx.GraphModule:
    """A module that makes `nodes` from all arguments of `gm`, after their updates."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            copies[node] = graph.node_copy(node)

    def copy(node: fx.Node) -> fx.Node:
        source = updated.get(node, node)
        if source not in copies:
            copies[source] = graph.node_copy(source, copy)
        return copies[source]

    graph.output(tuple(copy(node) for node in nodes))
    return fx.GraphModule(torch.nn.Module(), graph)


def _copy(view: torch.Tensor) -> torch.Tensor:
    """A tensor that lies in a copy of the memory as `view` lies in it."""
    storage = view.untyped_storage().clone()
    return torch.empty(0, dtype=view.dtype).set_(storage, view.storage_offset(), view.size(), view.stride())
