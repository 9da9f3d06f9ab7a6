"""What a graph computes from parameters alone, as a function that outlives the graph: `unpack(weight) - 1`, say."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch_mlir import ir

from ..operator_call import OperatorCall
from ..ops import ParamOp

_MOST_STEPS = 64
"""Weights are expanded in a few steps; a chain that is longer is no weight."""


@dataclass(frozen=True)
class ParameterExpression:
    """`self(*values of sources)`. A step is a call, which of its results is wanted, and where its slots come from:
    source number i is place i, step number j is place `len(sources) + j`."""

    sources: tuple[str, ...]
    steps: tuple[tuple[OperatorCall, int, tuple[int, ...]], ...]

    @classmethod
    def of(cls, value: Any) -> "ParameterExpression | None":
        """How `value` (of MLIR) is computed; None when an argument of the graph goes into it or nothing but
        constants."""
        order: list[Any] = []
        if not _trace(value, {}, order):
            return None
        parameters = [v for v in order if v.owner.operation.name == ParamOp.OPERATION_NAME]
        computed = [v for v in order if v.owner.operation.name != ParamOp.OPERATION_NAME]
        if not parameters:
            return None
        place = {v: i for i, v in enumerate([*parameters, *computed])}
        steps = []
        for each in computed:
            call, operands = OperatorCall.of(each.owner)
            steps.append((call, ir.OpResult(each).result_number, tuple(place[v] for v in operands)))
        return cls(tuple(ir.StringAttr(v.owner.attributes["sym"]).value for v in parameters), tuple(steps))

    def __call__(self, *values: torch.Tensor) -> torch.Tensor:
        known: list[Any] = list(values)
        for call, result, places in self.steps:
            known.append(call(*(known[place] for place in places))[result])
        return known[-1]

    @property
    def name(self) -> str:
        """What the value may be called in a store: different for different values."""
        return f"{'+'.join(self.sources)}#{self.digest()}"

    def digest(self) -> str:
        """Short and equal for equal steps, whatever the sources are called."""
        text = repr([(call.to_json(), result, places) for call, result, places in self.steps])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _trace(value: Any, seen: dict[Any, bool], order: list[Any]) -> bool:
    """Append to `order` what `value` is computed from, then itself; False when that is more than parameters."""
    if value in seen:
        return seen[value]
    seen[value] = False
    if isinstance(value.owner, ir.Block) or len(order) > _MOST_STEPS:
        return False
    operands: list[Any] = []
    if value.owner.operation.name != ParamOp.OPERATION_NAME:
        operands = OperatorCall.of(value.owner)[1]
    if all(_trace(operand, seen, order) for operand in operands):
        order.append(value)
        seen[value] = True
    return seen[value]
