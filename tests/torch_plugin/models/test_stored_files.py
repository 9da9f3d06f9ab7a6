"""Files are compared with their checksums, and what is no file is refused before it is opened."""

import os
import socket
from pathlib import Path

import pytest
from lutra.ir.errors import PackedModelError
from lutra.torch_plugin.models.stored_files import StoredFile, check_files, read_small

CHUNK = 1 << 24


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)))
    return path


def test_a_file_is_what_was_written_also_behind_a_link(file: Path):
    stored = StoredFile.of(file)
    check_files(file.parent, {"file": stored})
    blob = file.rename(file.parent / "blob")
    file.symlink_to(blob)
    check_files(file.parent, {"file": stored})


@pytest.mark.parametrize("where", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 9])
def test_any_bit_that_changed_is_found_and_its_place_is_said(tmp_path: Path, where: int):
    path, content = tmp_path / "large", bytearray(2 * CHUNK + 10)
    path.write_bytes(content)
    stored = StoredFile.of(path)
    assert len(stored.crc32) == 3
    content[where] ^= 16
    path.write_bytes(content)
    first = where // CHUNK * CHUNK
    with pytest.raises(PackedModelError, match=f"large is damaged: between bytes {first} and {first + CHUNK} it is"):
        check_files(tmp_path, {"large": stored})


def test_a_file_of_another_length_is_refused(file: Path):
    stored = StoredFile.of(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PackedModelError, match="has 255 bytes, 256 were written"):
        check_files(file.parent, {"file": stored})
    with pytest.raises(PackedModelError, match="has 2 checksums for 255 bytes"):
        check_files(file.parent, {"file": StoredFile(bytes=255, crc32=[1, 2])})
    file.unlink()
    with pytest.raises(PackedModelError, match="there is no file"):
        check_files(file.parent, {"file": stored})


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device", "link to itself"])
def test_what_is_no_file_is_refused_before_it_is_opened(file: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    stored = StoredFile.of(file)
    file.unlink()
    monkeypatch.chdir(file.parent)  # names of sockets are short
    match kind:
        case "FIFO":
            os.mkfifo(file)
        case "socket":
            socket.socket(socket.AF_UNIX).bind(file.name)
        case "folder":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
        case _:
            file.symlink_to(file)
    said = "there is no file" if "link" in kind else f"is a {kind}: a regular file would be right"
    with pytest.raises(PackedModelError, match=said):
        check_files(file.parent, {"file": stored})
    with pytest.raises(PackedModelError, match=said):
        read_small(file, 1000)


def test_no_more_is_read_than_was_allowed(file: Path):
    assert read_small(file, 256) == file.read_bytes()
    with pytest.raises(PackedModelError, match="has 256 bytes: 255 are more than any"):
        read_small(file, 255)
