"""Nodes of an FX graph that the IR has no words for, gathered into regions that torch runs.

Such a node reads or makes a tensor of a foreign dtype (`foreign.py`), or MLIR's importer refuses it: a higher-order
operator, a generator, `as_strided`. Neighbours go into one region. Values cross its border encoded, so that what is
left is a graph of plain tensors with one call where the region was.
"""

import hashlib
import heapq
import operator
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from ..errors import CaptureError
from .foreign import decode, encode, is_foreign

REGION = "region."
"""What the names of regions begin with."""


@dataclass(frozen=True)
class Region:
    """What torch runs in the middle of a graph: `module(*plain tensors and ints)` gives a tuple of plain tensors.

    `operators`: their names, with the reason why they are here, and the node that shows where."""

    name: str
    module: fx.GraphModule
    operators: tuple[tuple[str, str, fx.Node], ...]


@dataclass
class Outlined:
    """A graph without foreign values. `regions`: by name. `encoded`: result of the graph -> dtype that it stands for;
    `encoded_inputs`: placeholder's name -> the same."""

    graph: fx.Graph
    regions: dict[str, Region] = field(default_factory=dict)
    encoded: dict[int, torch.dtype] = field(default_factory=dict)
    encoded_inputs: dict[str, torch.dtype] = field(default_factory=dict)


def copied(graph: fx.Graph) -> fx.Graph:
    """`graph` with nodes of its own."""
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        values[node] = copy.node_copy(node, lambda n: values[n])
    return copy


def call_region(name: str, *values: Any) -> tuple[torch.Tensor, ...]:
    """Stands in an FX graph for the region `name`; the importer knows it."""
    raise AssertionError(f"region {name} of a graph is run by its executable")


def outline(gm: fx.GraphModule, refused: Mapping[Any, str]) -> Outlined:
    """`gm` with regions called where their nodes were; `refused`: target -> why the importer does not take it.

    Raises `CaptureError` when a foreign value cannot cross the border of its region."""
    reasons = {node: why for node in gm.graph.nodes if (why := _reason(node, refused))}
    foreign_borders = [n for n in gm.graph.nodes if n.op == "placeholder" and _foreign(n)]
    if not reasons and not foreign_borders:
        return Outlined(gm.graph)
    regions = _regions(gm.graph, reasons)
    return _Rebuilt(gm, regions, reasons).outlined


_STRIDED = {torch.ops.aten.as_strided.default, torch.ops.aten.as_strided_scatter.default}


def _reason(node: fx.Node, refused: Mapping[Any, str]) -> str | None:
    """Why the IR has no words for `node`; None when it has. Raises `CaptureError` for what no region can do either."""
    if node.op != "call_function":
        return None
    if node.target in refused:
        return refused[node.target]
    if node.target in _STRIDED:
        base = node.all_input_nodes[0].meta["val"]
        if not base.is_contiguous() or base.storage_offset() != 0:
            raise CaptureError(f"{node.target} of a tensor that is not contiguous, which values in the IR are")
        return "values in the IR have no strides"
    for value in (node, *node.all_input_nodes):
        for tensor in _tensors(value):
            if is_foreign(tensor.dtype):
                return f"{tensor.dtype} has no form in the IR"
            if tensor.layout is not torch.strided:
                return f"{tensor.layout} tensors have no form in the IR"
    return None


def _tensors(node: fx.Node) -> list[torch.Tensor]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [v for v in values if isinstance(v, torch.Tensor)]


def _foreign(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) and is_foreign(value.dtype) else None


# Which nodes belong together ------------------------------------------------------------------------------------------


def _regions(graph: fx.Graph, reasons: Mapping[fx.Node, str]) -> list[list[fx.Node]]:
    """Nodes of each region, in order. No way leads out of a region and back into it."""
    region: dict[fx.Node, int] = {}
    members: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        producers = [n for n in node.all_input_nodes if n in region]
        bound = [n for n in producers if not isinstance(n.meta.get("val"), torch.Tensor) and _tensors(n)]
        if node not in reasons and not bound:  # what takes a list apart stays with what made it
            continue
        if node.op == "output":
            raise CaptureError("a result of the graph is a list, or of a kind that no region can hand out")
        homes = [region[n] for n in bound or producers if not _reaches(node, region[n], region, members)]
        home = homes[0] if homes else len(members)
        if any(region[n] != home for n in bound):
            raise CaptureError(f"{node.target} reads a list that another region makes")
        members.setdefault(home, []).append(node)
        region[node] = home
    return list(members.values())


def _reaches(node: fx.Node, home: int, region: Mapping[fx.Node, int], members: Mapping[int, list[fx.Node]]) -> bool:
    """True when an input of `node` outside of region `home` depends on it: with `node` the region would wait for
    itself."""
    waiting = [n for n in node.all_input_nodes if region.get(n) != home]
    seen = set(waiting)
    while waiting:
        current = waiting.pop()
        group = members[region[current]] if current in region else [current]
        for source in (s for member in group for s in member.all_input_nodes):
            if region.get(source) == home:
                return True
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return False


# The graph around them ------------------------------------------------------------------------------------------------


class _Rebuilt:
    """A new graph module in which each region is one call."""

    def __init__(self, gm: fx.GraphModule, regions: list[list[fx.Node]], reasons: Mapping[fx.Node, str]) -> None:
        self._gm, self._graph, self._reasons = gm, fx.Graph(), reasons
        self._new: dict[fx.Node, fx.Node] = {}
        self.outlined = Outlined(self._graph)
        unit_of = {node: unit for unit in regions for node in unit}
        units = [unit_of.get(node, [node]) for node in gm.graph.nodes]
        for unit in _in_order(units):
            self._region(unit) if unit[0] in unit_of else self._node(unit[0])

    def _node(self, node: fx.Node) -> None:
        if node.op == "get_attr" and isinstance(getattr(self._gm, str(node.target), None), torch.nn.Module):
            return  # a branch of a higher-order operator, which is in a region
        new = self._new[node] = self._graph.node_copy(node, lambda n: self._new[n])
        new.meta = dict(node.meta)
        dtype = _foreign(node)
        if node.op in ("placeholder", "get_attr") and dtype is not None:
            new.meta = _meta(node, _encoded(node.meta["val"]))
        if node.op == "placeholder" and dtype is not None:
            self.outlined.encoded_inputs[node.name] = dtype
        if node.op == "output":
            results = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
            nodes = ((i, r) for i, r in enumerate(results) if isinstance(r, fx.Node))
            self.outlined.encoded = {i: dtype for i, r in nodes if (dtype := _foreign(r)) is not None}

    def _region(self, nodes: list[fx.Node]) -> None:
        inside = set(nodes)
        inputs = list(dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in inside))
        outputs = [node for node in nodes if any(user not in inside for user in node.users)]
        modules = [n for n in inputs if n not in self._new]
        inputs = [n for n in inputs if n in self._new]
        region = self._outlined_region(nodes, inputs, modules, [n for n in outputs if _tensors(n)])
        self.outlined.regions[region.name] = region
        call = self._graph.call_function(call_region, (region.name, *(self._new[n] for n in inputs)))
        tensors = [n for n in outputs if _tensors(n)]
        call.meta = _meta(nodes[-1], tuple(_plain(n.meta["val"]) for n in tensors))
        for index, node in enumerate(tensors):
            part = self._new[node] = self._graph.call_function(operator.getitem, (call, index))
            part.meta = _meta(node, call.meta["val"][index])
        for node in outputs:
            if node not in self._new:  # a number, which follows from sizes
                number = self._new[node] = self._graph.call_function(call_region, (region.name,))
                number.meta = dict(node.meta)

    def _outlined_region(
        self, nodes: list[fx.Node], inputs: list[fx.Node], modules: list[fx.Node], outputs: list[fx.Node]
    ) -> Region:
        graph, values = fx.Graph(), {}
        for number, node in enumerate(inputs):
            values[node] = graph.placeholder(f"value{number}")
        for node in inputs:
            if (dtype := _foreign(node)) is not None:
                values[node] = graph.call_function(decode, (values[node], dtype))
        for node in (*modules, *nodes):
            values[node] = graph.node_copy(node, lambda n: values[n])
            values[node].meta = {}
        graph.output(tuple(graph.call_function(encode, (values[n],)) if _foreign(n) else values[n] for n in outputs))
        module = fx.GraphModule(self._gm, graph, class_name="Region")
        operators = tuple((str(n.target), self._reasons[n], n) for n in nodes if n in self._reasons)
        return Region(REGION + _digest(module), module, operators)


def _meta(node: fx.Node, value: Any) -> dict[str, Any]:
    """What is noted beside `node`, for a node that gives `value` in its place."""
    return {key: noted for key, noted in node.meta.items() if key != "tensor_meta"} | {"val": value}


def _plain(value: torch.Tensor) -> torch.Tensor:
    return _encoded(value) if is_foreign(value.dtype) else value


def _encoded(value: Any) -> torch.Tensor:
    with getattr(value, "fake_mode", nullcontext()):  # a constant is no fake
        return encode(value)


def _in_order(units: Iterable[list[fx.Node]]) -> list[list[fx.Node]]:
    """Each unit once, after everything that it reads, as near to the given order as that allows."""
    unique = list({id(unit): unit for unit in units}.values())
    number = {node: i for i, unit in enumerate(unique) for node in unit}
    needs = [{number[n] for node in unit for n in node.all_input_nodes} - {i} for i, unit in enumerate(unique)]
    readers: list[list[int]] = [[] for _ in unique]
    for i, sources in enumerate(needs):
        for source in sources:
            readers[source].append(i)
    ready = [i for i, sources in enumerate(needs) if not sources]
    heapq.heapify(ready)
    order = []
    while ready:
        order.append(unique[current := heapq.heappop(ready)])
        for reader in readers[current]:
            needs[reader].discard(current)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    return order


def _digest(module: fx.GraphModule) -> str:
    """A name by content: equal regions of two graphs, or of two processes, share it."""
    parts = [part.code for part in module.modules() if isinstance(part, fx.GraphModule)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
