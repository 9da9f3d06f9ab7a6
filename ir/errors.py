"""The errors that Lutra raises on purpose: each message names what was wrong, where, and what would be right."""

import difflib
import reprlib
from collections.abc import Iterable


class LutraError(Exception):
    """Base of every error that a user of Lutra can cause; the model stays usable eagerly after any of them."""


class Mistake(LutraError):
    """Base of what only the user can mend: never caught, and never answered by running the model another way."""


class OptionError(Mistake):
    """An option of `torch.compile(..., options=...)` is unknown or has a wrong value."""


class RecipeError(Mistake):
    """A recipe is missing, does not parse, or names a pass, key or parameter that does not exist."""


class PassError(Mistake):
    """A class is no pass, a pass cannot be loaded, or its name is taken."""


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
    short = [option for option in options[:_COMPARED] if len(option) <= _COMPARED]
    near = difflib.get_close_matches(name, short, n=1, cutoff=0.5) if len(name) <= _COMPARED else []
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + (shortened(", ".join(options)) if options else "(none)")


def shown(value: object) -> str:
    """`value` as a message quotes it: its `repr`, cut to a line, whatever it is and holds."""
    try:
        return shortened(_REPR.repr(value))
    except ValueError:  # a whole number of more digits than Python prints
        return f"a large {type(value).__name__}"


def shortened(text: str, most: int = 400) -> str:
    """`text` with its middle left out where it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


_COMPARED = 100
"""Spellings are compared in time that grows with the square of their length, and messages name people's own words."""
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxdict, _REPR.maxlist, _REPR.maxtuple = 4, 8, 8, 8
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 400
