"""Whose memory a value may share: which operand an update may overwrite, and which results must be copies.

A value has *roots*: the arguments, parameters and results of operations in whose memory it may lie. What torch calls a
view (its schemas say so) has the roots of what it views, and so has, for code generation, a copy that may be left out
because the graph itself never writes (`LEFT_OUT`). An update (`lutra.kv_update`) lies in the memory of what it updates
where it may overwrite that, else in its own.

A lowering may move a read (fused into a later kernel, say), so memory is overwritten only where nothing but the update
ever reads it: not even before the update, and not by a view of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from torch_mlir import ir

from ..errors import CaptureError
from ..graph import Graph
from ..operator_call import operation_name, overload
from ..ops import OPERATIONS, ParamOp

LEFT_OUT = {
    "aten.clone",
    "aten.lift_fresh_copy",
    "aten._to_copy",
    "prims.convert_element_type",
    "aten._unsafe_view",
    "aten.cat",
    "aten.stack",
    "aten.clamp",
    "aten.clamp_min",
    "aten.clamp_max",
    "aten.pow.Tensor_Scalar",
    "aten.repeat",
    "aten.tile",
    "aten.constant_pad_nd",
    "aten.roll",
    "aten.flip",
    "aten.nan_to_num",
}
"""Operators that torch gives memory of their own but whose lowering may give an operand back: a clone, a cast to the
same dtype, a `cat` of one, a power of 1."""
_SHAPE_ALONE = {"aten.size", "aten.size.int", "aten.numel", "aten.dim"}
"""What looks at no element."""

Roots = frozenset[Any]


@dataclass(frozen=True)
class Aliases:
    """For one walk over `graph.operations`: values are MLIR handles, dropped before anything rewrites the graph.

    `roots`: of every tensor and list. `in_place`: results of updates that may be written into the operand that they
    update. `lent`: numbers of results of `@main` that need a copy, because they may lie in memory that is not the
    caller's: an argument's, a parameter's, a constant's, or another result's that torch would have copied."""

    roots: dict[Any, Roots] = field(default_factory=dict)
    in_place: frozenset[Any] = frozenset()
    lent: frozenset[int] = frozenset()


def aliases(graph: Graph) -> Aliases:
    """Roots of every value of `@main`, and what follows from them."""
    return _Walk(graph).run()


@dataclass
class _Walk:
    graph: Graph
    roots: dict[Any, Roots] = field(default_factory=dict)
    views: dict[Any, Roots] = field(default_factory=dict)
    """The roots that torch itself gives a value: copies are copies."""
    in_place: set[Any] = field(default_factory=set)
    _fixed: set[Any] = field(default_factory=set)
    """Values that depend on no argument and no parameter: code generation may compute them once and for all."""
    _members: dict[Any, list[Any]] = field(default_factory=dict)
    """Root -> values that have it."""
    _overwritten: list[tuple[int, Roots]] = field(default_factory=list)
    """Numbers of updates in place, and the roots of what each overwrites."""
    _readers: dict[Any, list[tuple[int, str]]] = field(default_factory=dict)
    """Value -> number and name of each operation that reads it, once for each operand."""

    def run(self) -> Aliases:
        operations = [op.operation for op in self.graph.operations]
        names = [operation_name(operation) for operation in operations]
        for number, (operation, name) in enumerate(zip(operations, names, strict=True)):
            for operand in operation.operands if name not in _SHAPE_ALONE else ():
                self._readers.setdefault(operand, []).append((number, name))
        for argument in self.graph.function.regions[0].blocks[0].arguments:
            self._define(argument, frozenset([argument]), frozenset([argument]))
        for number, (operation, name) in enumerate(zip(operations, names, strict=True)):
            self._visit(number, operation, name)
        return Aliases(self.roots, frozenset(self.in_place), frozenset(self._lent(list(operations[-1].operands))))

    def _visit(self, number: int, operation: Any, name: str) -> None:
        operands = [operand for operand in operation.operands if operand in self.roots]
        overwrites = OPERATIONS[name].OVERWRITES if name in OPERATIONS else {}
        updated = {getattr(operation.opview, new): getattr(operation.opview, old) for old, new in overwrites.items()}
        fixed = name != ParamOp.OPERATION_NAME and all(operand in self._fixed for operand in operands)
        for result in operation.results:
            if not _has_memory(result):
                continue
            own = frozenset([result])
            old = updated.get(result)
            if old is not None and self._may_overwrite(number, old):
                self.in_place.add(result)
                self._overwritten.append((number, self.roots[old]))
                self._define(result, self.roots[old], own)
                continue
            sharing = _sharing(name)
            shared = frozenset[Any]().union(*(self.roots[x] for x in operands)) or own
            viewed = frozenset[Any]().union(*(self.views[x] for x in operands)) or own
            self._define(result, own if sharing is None else shared, viewed if sharing == "view" else own)
            if fixed:
                self._fixed.add(result)

    def _define(self, value: Any, roots: Roots, views: Roots) -> None:
        self.roots[value], self.views[value] = roots, views
        for root in roots:
            self._members.setdefault(root, []).append(value)

    def _may_overwrite(self, number: int, old: Any) -> bool:
        """Operation `number` is all that reads the memory of `old`, which is ours to write to."""
        roots = self.roots[old]
        if not all(self._is_ours(root) for root in roots):
            return False
        readers = [reader for value in self._sharing_memory(roots) for reader in self._readers.get(value, [])]
        earlier = {update for update, overwritten in self._overwritten if overwritten & roots}
        reads = [reader for reader, name in readers if _sharing(name) is None and reader not in earlier]
        views = [reader for reader, name in readers if _sharing(name) is not None]
        return reads == [number] and all(view < number for view in views)

    def _sharing_memory(self, roots: Roots) -> Iterator[Any]:
        yield from {value: None for root in roots for value in self._members[root]}

    def _is_ours(self, root: Any) -> bool:
        if isinstance(root.owner, ir.Block):
            return self.graph.inputs[root.arg_number].mutated
        return root not in self._fixed and operation_name(root.owner) != ParamOp.OPERATION_NAME

    def _lent(self, results: list[Any]) -> Iterator[int]:
        given: list[Any] = []
        for number, result in enumerate(results):
            if number in self.graph.mutations or result not in self.roots:
                continue
            roots = self.roots[result]
            foreign = any(isinstance(root.owner, ir.Block) or not self._is_ours(root) for root in roots)
            if foreign or any(self._is_copy(result, other) for other in given):
                yield number
            given.append(result)

    def _is_copy(self, value: Any, other: Any) -> bool:
        """The two may lie in the same memory although torch has one of them copied from the other. (A clone may be
        gone from the graph already: Dynamo gives no result twice.)"""
        shared = self.roots[value] & self.roots[other]
        return value == other or (bool(shared) and not self.views[value] & self.views[other])


def _has_memory(value: Any) -> bool:
    """A tensor, or a list or tuple, which may be of tensors."""
    return not str(value.type).startswith(("!torch.int", "!torch.float", "!torch.bool", "!torch.none", "!torch.str"))


@cache
def _sharing(name: str) -> Literal["view", "copy"] | None:
    """How the results of an operation may lie in the memory of its operands: as torch has it, or as a copy left out."""
    if name in LEFT_OUT:
        return "copy"
    if name in OPERATIONS:
        return "view" if OPERATIONS[name].IS_VIEW else None
    if name.startswith("prim."):
        return "view"
    if name.startswith("lutra.") or "." not in name:  # a region
        return None
    try:
        returns = overload(name)._schema.returns
    except CaptureError:
        return None
    return "view" if any(returned.alias_info is not None for returned in returns) else None
