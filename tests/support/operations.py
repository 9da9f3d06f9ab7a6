"""One `lutra` operation at a time: as text, through its verifier, its cost, and operands for its reference."""

from typing import Any

import pytest
import torch
from lutra.ir.analysis.amounts import Amount
from lutra.ir.analysis.cost import graph_costs, total
from lutra.ir.context import make_context
from lutra.ir.graph import Graph, GraphInput, Phase
from lutra.ir.ops import OPERATIONS
from lutra.ir.weights.formats import QuantizedWeight, WeightFormat
from lutra.ir.weights.store import ParameterStore
from torch_mlir import ir

PARAMETERS = ("weight", "bias")
"""Operands that are parameters of the graph; all others are its arguments."""


def tensor(*shape: int | str, dtype: str = "f32") -> str:
    """The type of a tensor; "?" for a size that only a run knows."""
    return f"!torch.vtensor<[{','.join(map(str, shape))}],{dtype}>"


def quantized(n: int, k: int, bits: int = 4, group_size: int = 32, scheme: str = "symmetric") -> str:
    """The type of a weight in low-bit form."""
    return f'!lutra.quantized<{n} : i64, {k} : i64, {bits} : i64, {group_size} : i64, "{scheme}">'


def written(name: str, /, **fields: Any) -> str:
    """A module with one operation, which returns its first result.

    fields: by name, the types of operands and results, the values of attributes; what is left out is not there."""
    signature = OPERATIONS[f"lutra.{name}"].SIGNATURE
    operands = {field.name: fields[field.name] for field in signature.operands if field.name in fields}
    attributes = [f"{f.name} = {_attribute(fields[f.name])}" for f in signature.attributes if f.name in fields]
    if any(field.optional for field in signature.operands):
        present = ", ".join(str(int(field.name in fields)) for field in signature.operands)
        attributes.append(f"operandSegmentSizes = array<i32: {present}>")
    results = [fields[field.name] for field in signature.results]
    arguments = ", ".join(f"%{name}: {type_}" for name, type_ in operands.items() if name not in PARAMETERS)
    given = [name for name in PARAMETERS if name in operands]
    lines = [f'%{name} = "lutra.param"() {{sym = "{name}"}} : () -> {operands[name]}' for name in given]
    lines.append(
        f'%r:{len(results)} = "lutra.{name}"({", ".join(f"%{name}" for name in operands)}) '
        f"{{{', '.join(attributes)}}} : ({', '.join(operands.values())}) -> ({', '.join(results)})"
    )
    lines.append(f"return %r#0 : {results[0]}")
    return f"func.func @main({arguments}) -> {results[0]} {{\n" + "\n".join(lines) + "\n}"


def read_back(text: str) -> None:
    """Assert that the verifier takes `text`, and that MLIR reads it as it wrote it."""
    parsed = ir.Module.parse(text, make_context())
    parsed.operation.verify()
    assert str(ir.Module.parse(str(parsed), make_context())) == str(parsed)


def refusal(text: str) -> str:
    """Why the verifier does not take `text`."""
    with pytest.raises(ir.MLIRError) as refused:
        ir.Module.parse(text, make_context())
    return str(refused.value)


def cost(text: str, phase: Phase = "encode") -> Amount:
    """What a call of the module costs."""
    module = ir.Module.parse(text, make_context())
    arguments = module.body.operations[0].regions[0].blocks[0].arguments
    inputs = [GraphInput(i, f"arg{i}") for i in range(len(arguments))]
    return total(graph_costs(Graph(module, ParameterStore(), phase, inputs)))


def random_weight(n: int, k: int, device: str = "cpu") -> QuantizedWeight:
    """A weight of 3 bits with zero points, scales per channel."""
    codes = torch.randint(0, 8, (n, k), dtype=torch.uint8, device=device)
    scales, zero_points = torch.rand(2, n, 1, device=device).half()
    return QuantizedWeight(codes, scales, zero_points, WeightFormat(3, 0, "asymmetric"))


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that `got` is `expected`, in float64, up to the rounding of its dtype."""
    torch.testing.assert_close(got, expected.to(got.dtype))


def _attribute(value: int | float | str) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value} : i64" if isinstance(value, int) else f"{value:.17e} : f64"
