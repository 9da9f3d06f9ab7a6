"""JSON that somebody else wrote."""

import json
from pathlib import Path
from typing import Any

from ....ir.errors import CheckpointError, shown
from ..regular_files import regular_file

_LARGEST = 64 << 20
"""Bytes; the index of the largest models has 10 MB."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises `CheckpointError`."""
    size = regular_file(path, CheckpointError).stat().st_size
    if size > _LARGEST:
        raise CheckpointError(f"{path} has {size} bytes: {_LARGEST} would be the most for JSON")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deep to be read") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {shown(value)}: an object, {{...}}, would be right")
    return value
