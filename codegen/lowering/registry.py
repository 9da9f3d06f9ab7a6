"""Which function lowers which operation. A missing or declining lowering means the torch operator, called inside the
executable."""

from collections.abc import Callable
from typing import Any

from .builder import Lowering

Lower = Callable[[Lowering, Any], Any]
"""`(lowering, op) -> value of the op's result` (a list of values for several results); `DECLINED` when it does not
apply."""

LOWERINGS: dict[str, Lower] = {}


class Declined:
    """What a lowering returns for a case that it does not cover."""


DECLINED = Declined()


def lowers(*names: str) -> Callable[[Lower], Lower]:
    """Register a lowering for operations by their MLIR name (`torch.aten.add.Tensor`, `lutra.rope`)."""

    def register(function: Lower) -> Lower:
        for name in names:
            LOWERINGS[name] = function
        return function

    return register
