"""Linear layers on weights as they are packed: for the few rows of activations of a decode step, and for many where
`targets/cpu/preferences.py` says so.

One task multiplies a block of 64 weight rows, read strictly in order, with the rows of activations. Inside a group of
columns the sum is of integers; at its end scale and zero point are applied once (MixPE; docs/techniques.md, 1.1):

    dot     out[n] = sum_g s_g[n] * (xs_g * acc - z_g[n] * xs_g * sum(q))        acc = sum of code * q
    lookup  out[n] = sum_g s_g[n]/2 * (ts_g * acc - z'_g[n] * sum(x))            acc = sum of plane weight * table entry
    triples out[n] = sum_g s_g[n] * ts_g * acc                                   acc = sum of signed table entries
    float   out[n] = sum_g s_g[n] * (acc - z_g[n] * sum(x))                      acc = sum of code * x, in float32
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...targets.cpu.isa import Activations, VectorIsa
from .activations import precompute_outputs
from .function import Argument, kernel
from .packing import PackedLayout
from .product_step import TILES, ProductStep
from .registers import WeightKnobs
from .step import Operands


@dataclass(frozen=True)
class PackedKnobs(WeightKnobs):
    """static_rows: up to which a kernel is compiled for their number: decode steps of small batches. task_blocks:
    blocks that a task multiplies with the same few of many rows, whose tables come from its cache all times but one."""

    static_rows: int = 8
    task_blocks: int = 4

    def static(self, rows: int | None) -> int | None:
        """`rows`, or None for a kernel that takes any number."""
        return rows if rows is not None and rows <= self.static_rows else None


@cache
def low_bit_linear(
    layout: PackedLayout,
    isa: VectorIsa,
    m: int | None,
    dtype: str,
    bias: str | None = None,
    residual: bool = False,
    activations: Activations | None = None,
    knobs: PackedKnobs = PackedKnobs(),
) -> tirx.PrimFunc:
    """`(q, scale, total, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])`.

    `out = x W^T (+ bias) (+ residual)`; product and bias are rounded once, then the residual is added and rounded. q,
    scale and total are the results of `activations.precompute` for `layout.activation_group`. `dtype`: of out and
    residual; `bias`: the dtype of the bias, if there is one. `m` None: any number of rows. `activations`: the form of q
    (default: the family that the weight is packed for; a weight of the dot family may be read with "float" too)."""
    family = activations or layout.family
    rows: Any = tirx.Var("m", "int64") if m is None else m
    at_once = isa.rows_at_once if m is None else -(-m // -(-m // isa.rows_at_once))

    def body(*buffers: Any) -> None:
        operands, shift, added, out = split_operands(layout, bias, residual, buffers)

        def multiply(block: Any, chosen: list[Any]) -> None:
            distance = knobs.prefetch_bytes
            step = ProductStep(layout, isa, dtype, family, block, range(TILES), chosen, operands, None, distance)
            step.store(step.sums(), shift, added, out)

        if at_once == m:
            with T.parallel(0, layout.blocks) as block:
                multiply(block, [T.int32(i) for i in range(at_once)])
            return
        share = knobs.task_blocks if m is None else 1
        with T.parallel(0, -(-layout.blocks // share)) as task, T.serial(0, (rows + at_once - 1) // at_once) as chunk:
            # A chunk that is not full computes the last row more than once, with the same result.
            chosen = [T.bind(T.min(chunk * at_once + i, rows - 1)) for i in range(at_once)]
            with T.serial(0, T.min(share, layout.blocks - task * share)) as i:
                multiply(T.bind(task * share + i), chosen)

    return kernel(product_arguments(layout, family, rows, dtype, bias, residual), body)


def product_arguments(
    layout: PackedLayout, family: Activations, rows: Any, dtype: str, bias: str | None, residual: bool
) -> list[Argument]:
    """Shapes and dtypes of `low_bit_linear`'s buffers, for activations of `family`."""
    return [
        *precompute_outputs(family, layout.k, layout.activation_group, rows),
        *layout.buffers,
        *([((layout.n,), bias)] if bias else []),
        *([((rows, layout.n), dtype)] if residual else []),
        ((rows, layout.n), dtype),
    ]


def split_operands(
    layout: PackedLayout, bias: str | None, residual: bool, buffers: Sequence[Any]
) -> tuple[Operands, Any, Any, Any]:
    """Buffers of `product_arguments` by name: operands, bias, residual (None where there is none) and out."""
    *rest, out = buffers
    added = rest.pop() if residual else None
    shift = rest.pop() if bias else None
    return Operands(*rest), shift, added, out
