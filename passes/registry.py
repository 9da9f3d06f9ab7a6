"""The passes that recipes can name: ours and those of third parties (entry-point group `lutra.passes`)."""

import logging
from importlib.metadata import entry_points

from .fuse import Fuse
from .given_weights import GivenWeights
from .quantize_weights import QuantizeWeights
from .symmetrize_tables import SymmetrizeTables

BUILT_IN: tuple[type, ...] = (Fuse, GivenWeights, QuantizeWeights, SymmetrizeTables)
logger = logging.getLogger("lutra")


def available_passes() -> dict[str, type]:
    """Pass name -> class. A third party's that takes a name of ours, or does not load, is left out and logged."""
    passes = {cls.name: cls for cls in BUILT_IN}
    for entry in entry_points(group="lutra.passes"):
        if entry.name in passes:
            logger.warning("pass %r of %s is left out: the name is taken", entry.name, entry.value)
            continue
        try:
            passes[entry.name] = entry.load()
        except Exception as error:  # whatever a foreign package raises must not stop other recipes
            logger.warning("pass %r of %s does not load: %s: %s", entry.name, entry.value, type(error).__name__, error)
    return passes
