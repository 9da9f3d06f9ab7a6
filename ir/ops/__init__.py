"""The operations of the IR, a file a subject: `base.py` says what makes one, `OPERATIONS` has all of them."""

import sys

from torch_mlir.dialects import ext
from torch_mlir.ir import Context

from .attention import AttentionOp
from .base import Lutra, Op, QuantizedType, quantized_format
from .cache import KvUpdateOp, RopeKvUpdateOp
from .gate import GatedMlpOp
from .linear import GroupedLinearOp, LinearOp, SplitOp
from .norm import LayerNormOp, RmsNormOp
from .param import NumberOp, ParamOp
from .rope import RopeOp
from .table import TableLinearOp, TableOp

__all__ = [
    "OPERATIONS",
    "AttentionOp",
    "GatedMlpOp",
    "GroupedLinearOp",
    "KvUpdateOp",
    "LayerNormOp",
    "LinearOp",
    "NumberOp",
    "Op",
    "ParamOp",
    "QuantizedType",
    "RmsNormOp",
    "RopeKvUpdateOp",
    "RopeOp",
    "SplitOp",
    "TableLinearOp",
    "TableOp",
    "load_dialect",
    "quantized_format",
]

OPERATIONS: dict[str, type[Op]] = {
    cls.OPERATION_NAME: cls for cls in sorted(Lutra.operations, key=lambda cls: cls.__module__)
}
"""Every operation by its MLIR name (`lutra.linear`), by subject."""


def load_dialect(context: Context) -> None:
    """Register the dialect in `context`, once per context."""
    # Whenever an operation is read the bindings look for its dialect in their own package, and do not remember that
    # they found none: without this entry that was half the time of all passes.
    sys.modules.setdefault(f"{ext.__package__}.{Lutra.DIALECT_NAMESPACE}", sys.modules[__name__])
    with context:
        Lutra.load()
