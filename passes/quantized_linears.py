"""What passes that give linears quantised weights share."""

from typing import Any, Literal

from ..ir.graph import Graph
from ..ir.ops import GatedMlpOp, LinearOp, ParamOp, quantized_format
from ..ir.rewriting import build, parameter_symbol, paths, quantized_type, set_activations, static_shape, vtensor
from ..ir.types import tensor_type
from ..ir.weights.formats import WeightFormat


def take_weight(op: Any, rewriter: Any, name: str, format: WeightFormat, activations: Literal["int8", "float"]) -> None:
    """Replace a linear by one over the quantised weight `name`; raises `QuantizationError` where it does not fit."""
    n, k = static_shape(op.weight)
    weight = build(ParamOp, rewriter, op, name, quantized_type(n, k, format)).out
    keywords = {key: value for key in ("bias", "residual") if (value := getattr(op, key)) is not None}
    new = build(LinearOp, rewriter, op, op.x, weight, op.out.type, **keywords)
    if activations == "float":
        set_activations(new, "float")
    rewriter.replace_op(op, new.operation)


def unmerge(graph: Graph, op: Any, rewriter: Any, chosen: set[str]) -> bool:
    """Take a merged linear apart again when the selector took only some of its parts."""
    own = paths(op)
    if len(own) < 2 or not (set(own) & chosen) or set(own) <= chosen or quantized_format(op.weight.type) is not None:
        return False
    weights = graph.store.parts(parameter_symbol(op.weight))
    biases = graph.store.parts(parameter_symbol(op.bias)) if op.bias is not None else (None,) * len(own)
    if len(weights) != len(own):
        return False
    linears, start, starts = [], 0, {}
    for path, weight, bias in zip(own, weights, biases, strict=True):
        rows = graph.store.shape(weight)[0]
        operand = build(ParamOp, rewriter, op, weight, vtensor((rows, static_shape(op.weight)[1]), op.weight)).out
        keywords = {}
        if bias is not None:
            keywords["bias"] = build(ParamOp, rewriter, op, bias, vtensor((rows,), op.bias)).out
        type_ = vtensor((*tensor_type(op.out.type).shape[:-1], rows), op.out)
        linears.append(build(LinearOp, rewriter, op, op.x, operand, type_, path=path, **keywords))
        starts[start] = len(linears) - 1
        start += rows
    for use in list(op.out.uses):
        user = use.owner
        if user.operation.name == "lutra.split":
            part = linears[starts[user.attributes["start"].value]]
            rewriter.replace_op(user, part.operation)
        else:
            gate = user.opview
            new = build(
                GatedMlpOp, rewriter, gate, linears[0].out, gate.activation.value, gate.out.type, up=linears[1].out
            )
            rewriter.replace_op(user, new.operation)
    rewriter.erase_op(op)
    return True
