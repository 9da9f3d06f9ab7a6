"""Only regular files are opened."""

import os
from pathlib import Path

import pytest
from lutra.ir.errors import CheckpointError
from lutra.torch_plugin.models.regular_files import regular_file


def test_files_and_links_to_them_are_regular(tmp_path: Path):
    path = tmp_path / "file"
    path.touch()
    (tmp_path / "link").symlink_to(path)
    assert regular_file(path, CheckpointError) == path
    assert regular_file(tmp_path / "link", CheckpointError) == tmp_path / "link"


def test_everything_else_is_named_without_opening_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, kind in {"pipe": "a FIFO", "link": "a FIFO", ".": "a folder", "/dev/zero": "a device"}.items():
        with pytest.raises(CheckpointError, match=f"is {kind}: a regular file would be right"):
            regular_file(tmp_path / name, CheckpointError)
    for name in ("none", "a\0b", "x" * 5000, "loop"):
        with pytest.raises(CheckpointError, match="there is no file '"):
            regular_file(tmp_path / name, CheckpointError)
