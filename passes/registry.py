"""The passes that recipes can name: ours and those of third parties (entry-point group `lutra.passes`)."""

from importlib.metadata import entry_points

from .fuse import Fuse
from .quantize_weights import QuantizeWeights
from .symmetrize_tables import SymmetrizeTables

BUILT_IN: tuple[type, ...] = (Fuse, QuantizeWeights, SymmetrizeTables)


def available_passes() -> dict[str, type]:
    """Pass name -> class; a third party's pass must not take the name of one of ours."""
    passes = {cls.name: cls for cls in BUILT_IN}
    for entry in entry_points(group="lutra.passes"):
        passes.setdefault(entry.name, entry.load())
    return passes
