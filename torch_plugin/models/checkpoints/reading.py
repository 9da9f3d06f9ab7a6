"""One way in for all checkpoints that others quantised."""

import os
from importlib.util import find_spec
from pathlib import Path

from ....ir.errors import CheckpointError
from .checkpoint import Checkpoint
from .folder import read_folder
from .gguf_file import read_gguf


def read_checkpoint(path: Path | str) -> Checkpoint:
    """The model at `path`: a folder of GPTQ or AWQ weights, or a `.gguf` file.

    Files are mapped into memory, and a weight is read and converted when it is asked for. Raises `CheckpointError` for
    what cannot be read, and, from the calls that read one weight, `QuantizationError`."""
    path = Path(path)
    if find_spec("transformers") is None:
        raise CheckpointError(f"{path}: configurations are those of Transformers: pip install transformers")
    if path.suffix == ".gguf" and os.path.exists(path):
        return read_gguf(path)
    if path.is_dir():
        return read_folder(path)
    if not os.path.exists(path):
        raise CheckpointError(f"there is no folder or file {str(path)!r}")
    raise CheckpointError(f"{path} is neither a folder with a config.json nor a .gguf file")
