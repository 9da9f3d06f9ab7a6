"""The passes that recipes can name: ours and those of third parties (entry-point group `lutra.passes`)."""

import logging
import re
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

from .fuse.fuse import Fuse
from .given_weights import GivenWeights
from .quantize_weights.quantize_weights import QuantizeWeights
from .symmetrize_tables import SymmetrizeTables

BUILT_IN: tuple[type, ...] = (Fuse, GivenWeights, QuantizeWeights, SymmetrizeTables)
logger = logging.getLogger("lutra")


def explained(cls: Any) -> tuple[str, dict[str, str]]:
    """What the pass `cls` does, and what each of its parameters means, as its docstring says: the text up to the first
    `parameter: `, and what follows each of these up to the next. What is not explained is left out."""
    text = " ".join((cls.__doc__ or "").split())
    names = "|".join(re.escape(field.name) for field in fields(cls))
    summary, *rest = re.split(rf"(?:^|(?<=\. ))({names}): ", text) if names else [text]
    return summary.strip(), dict(zip(rest[::2], map(str.strip, rest[1::2]), strict=True))


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
