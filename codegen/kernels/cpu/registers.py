"""Vectors of 64 bytes: buffers that stay in registers, and what is read into them."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...select import Knobs
from ...targets.cpu.isa import Expr

LANES = {"int16": 32, "int32": 16, "float32": 16}
"""Elements of 64 bytes, which is what an accumulator takes."""


@dataclass(frozen=True)
class WeightKnobs(Knobs):
    """Of kernels that stream through a packed weight. prefetch_bytes: how far ahead it is fetched into the cache."""

    prefetch_bytes: int = 4096


def every(element: str) -> Expr:
    """All lanes of a 64-byte vector."""
    return T.ramp(0, 1, LANES[element])


def zero_buffer(element: str, lanes: int | None = None) -> Any:
    """A buffer of zeros (64 bytes unless told) that LLVM keeps in registers: small, in the default scope, because TVM
    takes larger buffers and all of scope "local" from the heap."""
    lanes = lanes or LANES[element]
    buffer = T.alloc_buffer((lanes,), element)
    zero = tirx.const(0, element)
    T.buffer_store(buffer, T.broadcast(zero, lanes) if lanes > 1 else zero, [T.ramp(0, 1, lanes) if lanes > 1 else 0])
    return buffer


def loader(buffer: Any, prefix: tuple[Expr, ...], start: Expr) -> Callable[[Expr], Expr]:
    """`load(index)` of `VectorIsa`'s primitives: from `start` in the last dimension of `buffer`."""
    return lambda index: buffer[(*prefix, start + index)]


def field(vector: Expr, shift: int, bits: int, place: int = 0) -> Expr:
    """`bits` bits of every byte of a uint8x64, from bit `shift`, moved to bit `place`; zeros around them. Shifted as
    16-bit words, since x86 has no shift of bytes."""
    if shift != place:
        words, distance = T.reinterpret("uint16x32", vector), T.broadcast(T.uint16(abs(shift - place)), 32)
        vector = T.reinterpret("uint8x64", words >> distance if shift > place else words << distance)
    return vector if bits == 8 else vector & T.broadcast(T.uint8((2**bits - 1) << place), 64)


def prefetch(distance: int, packed: Any, block: Expr, step: Expr, vector: Expr, start: Expr = 0) -> None:
    """Emit the prefetch of what lies as `packed[block, step, vector, start]` does, about `distance` bytes later.

    One for every vector that is read, and beside its reading: a burst of them takes all the line buffers of a core
    (Sapphire Rapids, 4 bits from memory: 21 GB/s by bursts, 26 one by one)."""
    _, _, vectors, width = packed.shape
    ahead = step + max(1, distance // prod((int(vectors), int(width))))
    prefetch_line(packed[block, ahead, vector, start])


def prefetch_line(element: Expr) -> None:
    """Emit the prefetch of the cache line that holds `element` of a buffer; it may lie outside."""
    address = T.address_of(element)
    T.evaluate(T.call_intrin("void", "tirx.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))
