"""Lookup tables of activations, and the linears that read them (docs/techniques.md, 1.2)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_mlir.dialects.ext import Operand, Result
from torch_mlir.ir import IntegerAttr

from ..analysis.amounts import Amount, ValueSizes
from ..types import tensor_type
from ..weights.formats import QuantizedWeight, bit_planes, symmetrized_zero_points
from .base import Op, add_float, differ, features, quantized_format
from .linear import check_product, product_cost

TABLE_COLUMNS = 4
"""Activations that one lookup table covers."""


class TableOp(Op, name="table"):
    """Lookup tables of an activation: the signed sums of 4 consecutive columns, all patterns.

        out[..., t, w] = sum_k (2 * bit_k(w) - 1) * x[..., 4 t + k]

    float32 `[..., ceil(K / 4), 16]`; K is zero-padded to a multiple of 4. `half`: only the 8 patterns with the top bit
    clear are stored, since `T[w] = -T[~w]`. A lowering may store int8 entries with a scale per group. Source: LUT
    Tensor Core (Mo et al. 2025)."""

    x: Operand[Any]
    half: IntegerAttr
    out: Result[Any]

    @staticmethod
    def check(op: Any) -> str | None:
        k, out = features(op.x), tensor_type(op.out.type).shape
        if len(out) < 2:
            return f"result must be [..., tables, entries], got {list(out)}"
        entries = 8 if op.attributes["half"].value else 16
        if differ(out[-1], entries):
            return f"result must end in {entries} entries, got {out[-1]}"
        if k is not None and differ(out[-2], -(-k // TABLE_COLUMNS)):
            return f"{k} columns make {-(-k // TABLE_COLUMNS)} tables, got {out[-2]}"
        return None

    @staticmethod
    def reference(x: Tensor, *, half: bool) -> Tensor:
        """float32 `[..., ceil(K / 4), 8 or 16]`."""
        k = x.shape[-1]
        columns = F.pad(x.float(), (0, -k % TABLE_COLUMNS)).unflatten(-1, (-1, TABLE_COLUMNS))
        patterns = torch.arange(8 if half else 16, device=x.device).unsqueeze(-1)
        bits = (patterns >> torch.arange(TABLE_COLUMNS, device=x.device)) & 1
        return F.linear(columns, (2 * bits - 1).float())

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """One operation for each entry: each sum builds on another."""
        return sizes.elementwise(op, 1)


class TableLinearOp(Op, name="table_linear"):
    """A quantised linear whose x is given by its tables.

        out = sum_i p_i * (s/2) * T[planes_i] - (s/2) z' sum(x) (+ bias) (+ residual)

    Planes, their weights p_i and z' as in `ir/weights/formats.py`; sum(x) is read off the tables. Bit-exact with
    `lutra.linear` on the same weight in exact arithmetic. Source: LUT Tensor Core (Mo et al. 2025)."""

    table: Operand[Any]
    weight: Operand[Any]
    out: Result[Any]
    bias: Operand[Any] | None = None
    residual: Operand[Any] | None = None

    @staticmethod
    def check(op: Any) -> str | None:
        quantized, table = quantized_format(op.weight.type), tensor_type(op.table.type).shape
        if quantized is None:
            return f"weight must be !lutra.quantized, got {op.weight.type}"
        if len(table) < 2:
            return f"table must be [..., tables, entries], got {list(table)}"
        if differ(table[-2], -(-quantized[1] // TABLE_COLUMNS)):
            return f"weight takes {quantized[1]} columns but there are {table[-2]} tables of {TABLE_COLUMNS}"
        return check_product(op, None)

    @staticmethod
    def reference(
        table: Tensor,
        weight: QuantizedWeight,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Evaluated in float32, rounded once to `dtype`."""
        out = F.linear(table.flatten(-2), _entry_weights(weight, table.shape[-1]))
        return add_float(out, bias, residual).to(dtype)

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """As `lutra.linear` on the x that the tables are of, so that the two can be compared."""
        return product_cost(op, sizes)

    @staticmethod
    def from_result(type_: Any) -> dict[str, Any]:
        return {"dtype": tensor_type(type_).dtype}


def _entry_weights(weight: QuantizedWeight, entries: int) -> Tensor:
    """`[N, T * entries]` float32: how often, and with which scale, each table entry goes into each output.

    A quantised linear is linear in the table entries, so this matrix *is* the table linear. Plane i of table t selects
    the entry whose pattern its four +-1 signs spell; in a half table the patterns with the top bit set read `-T[~w]`.
    sum(x) of a table is its entry of all ones, `T[15]`, in a half table `-T[0]`."""
    n, k = weight.codes.shape
    tables = -(-k // TABLE_COLUMNS)
    device = weight.codes.device
    bits = F.pad(bit_planes(weight) > 0, (0, tables * TABLE_COLUMNS - k)).unflatten(-1, (tables, TABLE_COLUMNS))
    patterns = (bits * (1 << torch.arange(TABLE_COLUMNS, device=device))).sum(-1)
    if entries == 16:
        sign, pattern = torch.ones_like(patterns), patterns
    else:
        sign, pattern = torch.where(patterns >= 8, -1, 1), torch.where(patterns >= 8, 15 - patterns, patterns)
    numbers = torch.arange(entries, device=device)
    counts = torch.zeros(n, tables, entries, device=device)
    for plane, factor in enumerate(weight.format.plane_weights):
        counts += factor * (pattern[plane].unsqueeze(-1) == numbers) * sign[plane].unsqueeze(-1)
    shift = symmetrized_zero_points(weight)
    groups = weight.scales.shape[1]
    counts = counts.unflatten(1, (groups, tables // groups))
    if shift is not None:
        everything, direction = (15, 1) if entries == 16 else (0, -1)
        counts -= direction * shift[:, :, None, None] * (numbers == everything)
    return (counts * (weight.scales.float() / 2)[:, :, None, None]).flatten(1)
