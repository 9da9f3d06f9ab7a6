"""Kernels as plain Python: a function that is called with buffers and emits TIR through TVM's builder.

Sizes may be Python ints or TIR variables; a variable takes its value from the arguments at run time.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

OPAQUE = {"op_pattern": 8, "tirx.is_scheduled": True, "tirx.noalias": True}
"""Attributes of a kernel that stands as it is: Relax fuses nothing into it and no default schedule touches it."""

Argument = tuple[Sequence[Any], str]
"""Shape and dtype of one buffer."""


def kernel(
    arguments: Sequence[Argument], body: Callable[..., None], attributes: dict[str, Any] | None = None
) -> tirx.PrimFunc:
    """The function whose parameters are compact buffers of `arguments`, aligned to their elements, and whose body
    `body` emits."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("main")
        T.func_attr({**OPAQUE, **(attributes or {})})
        buffers = []
        for number, (shape, dtype) in enumerate(arguments):
            name = f"a{number}"
            if all(isinstance(size, int) for size in shape):
                buffers.append(T.arg(name, T.buffer(tuple(shape), dtype, align=_bytes(dtype))))
            else:
                handle = T.arg(f"{name}_handle", T.handle())
                buffers.append(T.match_buffer(handle, tuple(shape), dtype, align=_bytes(dtype)))
        with T.sblock("root"):  # Relax looks into every function that it calls and expects a root block
            T.reads([])
            T.writes([])
            body(*buffers)
    return builder.get()


def _bytes(dtype: str) -> int:
    digits = "".join(c for c in dtype if c.isdigit())
    return max(int(digits or 8) // 8, 1)
