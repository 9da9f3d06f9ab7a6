"""How each operation of the IR becomes Relax."""

from . import attention, linear, pointwise, reductions, views  # registers the lowerings
from .builder import Lowered, Lowering

__all__ = ["Lowered", "Lowering", "attention", "linear", "pointwise", "reductions", "views"]
