"""How each operation of the IR becomes Relax."""

from .aten import pointwise, reductions, views  # registers the lowerings
from .builder import Lowered, Lowering
from .lutra import attention, linear

__all__ = ["Lowered", "Lowering", "attention", "linear", "pointwise", "reductions", "views"]
