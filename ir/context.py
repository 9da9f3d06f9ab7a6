"""MLIR contexts with the torch dialect and ours registered."""

from torch_mlir import ir
from torch_mlir.dialects import torch as torch_dialect

from .ops import load_dialect


def make_context() -> ir.Context:
    """A fresh context; threading stays off, since Python verifiers hang under it."""
    context = ir.Context()
    context.enable_multithreading(False)
    torch_dialect.register_dialect(context)
    load_dialect(context)
    return context
