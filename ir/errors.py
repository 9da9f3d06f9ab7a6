"""The errors that Lutra raises on purpose: each message names what was wrong, where, and what would be right."""

import difflib
from collections.abc import Iterable


class LutraError(Exception):
    """Base of every error that a user of Lutra can cause; the model stays usable eagerly after any of them."""


class OptionError(LutraError):
    """An option of `torch.compile(..., options=...)` is unknown or has a wrong value."""


class RecipeError(LutraError):
    """A recipe is missing, does not parse, or names a pass, key or parameter that does not exist."""


class SelectorError(LutraError):
    """A selector matches nothing, or cannot be parsed."""


class QuantizationError(LutraError):
    """Bits, group size, scheme and shape of a weight do not fit together."""


class CheckpointError(LutraError):
    """A checkpoint cannot be read: a file is missing, or it is of a kind or holds types that no reader is for."""


class CalibrationError(LutraError):
    """Statistics of real inputs cannot be taken, or a pass needs some that are not there."""


class CaptureError(LutraError):
    """A graph or model cannot be captured (parameters on `meta`, unsupported construct)."""


class ParameterError(CaptureError):
    """A parameter has no values: it is on `meta`, or was released after packing."""


class PackedModelError(LutraError):
    """A folder of packed weights is incomplete, of another version, or does not fit the model."""


class LoweringError(LutraError):
    """Code generation cannot lower an operation and the caller asked for no fallback (`strict`)."""


class TargetError(LutraError):
    """A target is unknown, or not present on this machine."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known spelling of `name`, or lists what exists when nothing is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + (", ".join(options) if options else "(none)")
