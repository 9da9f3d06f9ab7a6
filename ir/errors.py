"""The errors that Lutra raises on purpose: each message names what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable


class LutraError(Exception):
    """Base of every error that a user of Lutra can cause; the model stays usable eagerly after any of them."""


class Mistake(LutraError):
    """Base of what only the user can mend: never caught, and never answered by running the model another way."""


class OptionError(Mistake):
    """An option of `torch.compile(..., options=...)` is unknown or has a wrong value."""


class RecipeError(Mistake):
    """A recipe is missing, does not parse, or names a pass, key or parameter that does not exist."""


class SelectorError(Mistake):
    """A selector matches nothing, or cannot be parsed."""


class QuantizationError(Mistake):
    """Bits, group size, scheme and shape of a weight do not fit together."""


class CheckpointError(Mistake):
    """A checkpoint cannot be read: a file is missing, or it is of a kind or holds types that no reader is for."""


class CalibrationError(Mistake):
    """Statistics of real inputs cannot be taken, or a pass needs some that are not there."""


class CaptureError(LutraError):
    """A graph or model cannot be captured (parameters on `meta`, unsupported construct)."""


class ParameterError(Mistake, CaptureError):
    """A parameter has no values: it is on `meta`, or was released after packing."""


class PackedModelError(Mistake):
    """A folder of packed weights is incomplete, of another version, or does not fit the model."""


class LoweringError(LutraError):
    """Code generation cannot lower an operation and the caller asked for no fallback (`strict`)."""


class TargetError(Mistake):
    """A target is unknown, or not present on this machine."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known spelling of `name`, or lists what exists when nothing is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + (", ".join(options) if options else "(none)")
