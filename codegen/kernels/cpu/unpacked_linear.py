"""Products of many rows of activations with a packed weight: some hundred rows of the weight at a time are unpacked
into a scratch matrix that stays in the processor's cache, and multiplied by torch's library from there.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...runtime.callbacks import SCRATCH_BYTES, scratch_rows
from ...select import Knobs
from ...targets.cpu.isa import TILE_ROWS, VectorIsa
from .dequantize import dequantize_tile
from .function import kernel
from .packing import BLOCK_ROWS, PackedLayout
from .scratch_product import PRODUCT


@dataclass(frozen=True)
class UnpackedKnobs(Knobs):
    """scratch_bytes: of the part of a weight that is multiplied at once."""

    scratch_bytes: int = SCRATCH_BYTES


@cache
def unpacked_linear(
    layout: PackedLayout,
    isa: VectorIsa,
    dtype: str,
    compute: str,
    bias: str | None,
    residual: bool,
    knobs: UnpackedKnobs = UnpackedKnobs(),
) -> tirx.PrimFunc:
    """`(x [M, K] in compute, packed, scales[, zeros][, bias [N]][, residual [M, N]], out [M, N])`.

    `out = round(x W^T + bias) + residual` in `dtype`; W is unpacked to, and multiplied in, `compute`. `bias`: its
    dtype."""
    m, n, k = tirx.Var("m", "int64"), layout.n, layout.k
    rows = min(scratch_rows(k, 4 if compute == "float32" else 2, knobs.scratch_bytes), layout.blocks * BLOCK_ROWS)
    buffers = len(layout.buffers)

    def body(x: Any, *rest: Any) -> None:
        weight, extra, out = list(rest[:buffers]), list(rest[buffers:-1]), rest[-1]
        scratch = T.alloc_buffer((rows, k), compute)
        addresses = [buffer.data for buffer in (x, scratch, out, *extra)]
        with T.serial(0, -(-n // rows)) as chunk:
            first = T.bind(chunk * rows)
            count = T.bind(T.min(T.int64(rows), n - first))
            with T.parallel(0, (count + TILE_ROWS - 1) // TILE_ROWS) as tile:
                dequantize_tile(layout, isa, compute, weight, scratch, first // TILE_ROWS, tile)
            sizes = [m, n, k, first, count]
            T.evaluate(T.tvm_call_packed(PRODUCT, compute, dtype, bias or "", int(residual), *sizes, *addresses))

    extra = ([((n,), bias)] if bias else []) + ([((m, n), dtype)] if residual else [])
    return kernel([((m, k), compute), *layout.buffers, *extra, ((m, n), dtype)], body)
