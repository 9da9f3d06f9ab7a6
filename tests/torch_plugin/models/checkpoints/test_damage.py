"""Whatever is in the files of others: they are read, or an error of Lutra says what is wrong with them.

What ends the process is still in the folder of temporary files, as `lutra-file-*`.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from lutra.ir.errors import CheckpointError, QuantizationError
from lutra.tests.support.fuzzing import random
from lutra.tests.torch_plugin.models.checkpoints.damage import Folder, folders, gguf_files, sound_folder, sound_gguf
from lutra.torch_plugin.models.causal_lm import load_causal_lm
from lutra.torch_plugin.models.checkpoints.reading import read_checkpoint
from lutra.torch_plugin.models.given_model import is_quantized_checkpoint

LAST = Path(tempfile.gettempdir()) / f"lutra-file-{os.getpid()}"


def read_all(path: Path) -> None:
    """The model, and every tensor of it that is read later."""
    load_causal_lm(str(path), "auto", None, {}, "none")
    if not is_quantized_checkpoint(path):
        return
    checkpoint = read_checkpoint(path)
    for plain in checkpoint.plain.values():
        assert plain().shape == plain.shape and plain().dtype == plain.dtype
    for quantized in checkpoint.quantized.values():
        assert quantized().codes.shape == quantized.shape


def is_read_or_refused(path: Path) -> None:
    try:
        read_all(path)
    except (CheckpointError, QuantizationError) as error:
        assert str(path) in str(error)


def test_sound_files_are_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(sound_gguf().written())
    read_all(path)
    for method in ("gptq", "awq", None):
        read_all(sound_folder(method).write(tmp_path / str(method)))


@pytest.mark.fuzz
def test_damaged_gguf_files_are_refused():
    path = LAST.with_suffix(".gguf")

    @random(400, seconds=None)
    @given(gguf_files())
    def refused(content: bytes) -> None:
        path.write_bytes(content)
        is_read_or_refused(path)

    refused()
    path.unlink()


@pytest.mark.fuzz
def test_damaged_folders_are_refused():
    @random(400, seconds=None)
    @given(folders())
    def refused(folder: Folder) -> None:
        shutil.rmtree(LAST, ignore_errors=True)
        is_read_or_refused(folder.write(LAST))

    refused()
    shutil.rmtree(LAST)
