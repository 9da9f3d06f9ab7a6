"""Which reader a path goes to."""

from pathlib import Path

import pytest
from lutra.ir.errors import CheckpointError
from lutra.torch_plugin.models.checkpoints.reading import read_checkpoint


def test_paths_go_to_their_readers(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "model.gguf").write_text("no such thing")
    with pytest.raises(CheckpointError, match="it is no GGUF file"):
        read_checkpoint(str(tmp_path / "model.gguf"))
    with pytest.raises(CheckpointError, match=r"there is no folder or file '.*none.gguf'"):
        read_checkpoint(tmp_path / "none.gguf")
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match=r"model.bin is neither a folder with a config.json nor a .gguf file"):
        read_checkpoint(tmp_path / "model.bin")
