"""The executable cache: hits, damage, folders that refuse, and libraries that cannot be loaded where they lie."""

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lutra.codegen.cache import entries
from lutra.codegen.cache import executables as caches
from lutra.codegen.cache.executables import Entry, ExecutableCache, Key, temporary
from lutra.codegen.targets.cpu.launcher import _launcher

KEY = Key({"graph": "g", "versions": "1"})
NOBODY = 65534


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small shared library that returns 42."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "answer.c").write_text("int answer(void) { return 42; }")
    command = ["gcc", "-shared", "-fPIC", "-o", str(folder / "answer.so"), str(folder / "answer.c")]
    subprocess.run(command, check=True)
    return (folder / "answer.so").read_bytes()


def load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def add(cache: ExecutableCache, library: bytes, content: int = 1) -> Entry:
    return cache.add(KEY, {"content": content}, lambda path: path.write_bytes(library) and None, load)


def found(folder: Path | None, key: Key = KEY) -> tuple[int | None, str]:
    """What the library answers, and the outcome."""
    entry, outcome = ExecutableCache(folder).find(key, load)
    return (None if entry is None else entry.library.answer()), outcome


def test_what_was_added_is_found_by_equal_keys_alone(tmp_path: Path, library: bytes):
    assert found(tmp_path) == (None, "miss: this graph is new")
    entry = add(ExecutableCache(tmp_path), library)
    assert entry.library.answer() == 42 and entry.content == {"content": 1}
    assert found(tmp_path) == (42, "hit")
    assert found(tmp_path, Key({"graph": "g", "versions": "2"})) == (None, "miss: versions changed")
    assert found(tmp_path, Key({"graph": "h", "versions": "1"})) == (None, "miss: this graph is new")


def replace(path: Path, data: bytes) -> None:
    """As another file: a library that is mapped must not be written to."""
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o600)


def test_damage_is_told_and_built_again(tmp_path: Path, library: bytes, caplog: pytest.LogCaptureFixture):
    add(ExecutableCache(tmp_path), library)
    replace(tmp_path / KEY.digest / "graph.so", library[:-100])
    assert found(tmp_path) == (None, "miss: the entry was damaged: graph.so does not match its checksum")
    assert "is damaged (graph.so does not match its checksum): it is removed and built again" in caplog.text
    assert not (tmp_path / KEY.digest).exists()
    add(ExecutableCache(tmp_path), library)
    assert found(tmp_path) == (42, "hit")


def test_a_damaged_entry_with_somebodys_file_in_it_costs_the_cache_and_not_the_file(
    tmp_path: Path, library: bytes, caplog: pytest.LogCaptureFixture
):
    add(ExecutableCache(tmp_path), library)
    (tmp_path / KEY.digest / "entries.txt").write_text("mine")
    replace(tmp_path / KEY.digest / "manifest.json", b"{}")
    store = ExecutableCache(tmp_path)
    assert store.find(KEY, load)[0] is None
    assert add(store, library).library.answer() == 42
    assert "cannot be written (Directory not empty): compiled code is not kept" in caplog.text
    assert [path.name for path in (tmp_path / KEY.digest).iterdir()] == ["entries.txt"]


def test_of_two_that_write_at_once_both_are_served(tmp_path: Path, library: bytes):
    for _ in range(2):
        assert add(ExecutableCache(tmp_path), library).library.answer() == 42
    assert [path.name for path in tmp_path.iterdir()] == [KEY.digest]


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path, library: bytes, caplog: pytest.LogCaptureFixture):
    add(ExecutableCache(tmp_path), library)
    tmp_path.chmod(0o777)
    before = sorted(tmp_path.rglob("*"))
    store = ExecutableCache(tmp_path)
    entry, outcome = store.find(Key({"graph": "g", "versions": "3"}), load)
    assert entry is None
    assert outcome == f"miss: the cache folder is not used: others may write to {tmp_path}: chmod go-w"
    assert f"{outcome.removeprefix('miss: ')}: compiled code is not kept" in caplog.text
    assert add(store, library).library.answer() == 42
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_entry_is_neither_loaded_nor_removed(
    tmp_path: Path, library: bytes, caplog: pytest.LogCaptureFixture
):
    add(ExecutableCache(tmp_path), library)
    path = tmp_path / KEY.digest / "graph.so"
    os.chown(path, NOBODY, NOBODY)
    store = ExecutableCache(tmp_path)
    entry, outcome = store.find(KEY, load)
    assert entry is None
    assert outcome == f"miss: the entry is not used: {path} belongs to user {NOBODY}, this is user 0"
    assert "compiled code is not kept" in caplog.text
    assert add(store, library).library.answer() == 42
    assert path.stat().st_uid == NOBODY


def test_content_alone_is_kept_and_replaced(tmp_path: Path):
    store = ExecutableCache(tmp_path)
    assert store.recall(KEY) is None
    for content in ({"read": 1.5}, {"read": 2.5, "more": [1]}):
        store.keep(KEY, content)
        assert ExecutableCache(tmp_path).recall(KEY) == content
    manifest = tmp_path / KEY.digest / "manifest.json"
    manifest.write_text(manifest.read_text().replace("2.5", "9.5"))
    assert ExecutableCache(tmp_path).recall(KEY) is None


# Folders that refuse --------------------------------------------------------------------------------------------------


@pytest.fixture
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with the options of the parameter."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("mounted", ["noexec,size=1m"], indirect=True)
def test_where_nothing_may_be_executed_code_is_loaded_from_a_copy(
    mounted: Path, library: bytes, caplog: pytest.LogCaptureFixture
):
    assert add(ExecutableCache(mounted), library).library.answer() == 42
    assert found(mounted) == (42, "hit")
    reason = "failed to map segment from shared object"
    assert f"code cannot be loaded from {mounted} ({reason}): it is loaded from {temporary()}" in caplog.text


def test_code_that_loads_nowhere_is_one_error_that_says_what_to_do(tmp_path: Path):
    with pytest.raises(OSError, match=r"loaded neither from .* nor from .*: let TMPDIR or cache_dir name a folder"):
        add(ExecutableCache(tmp_path), b"not a library")


@pytest.fixture
def small_temporary(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the cache in a file system that is too small to link in."""
    monkeypatch.setattr(caches, "temporary", lambda: mounted)
    return mounted


@pytest.mark.parametrize("mounted", ["size=16k"], indirect=True)
def test_code_is_linked_in_the_cache_folder_when_the_temporary_one_is_full(
    small_temporary: Path, tmp_path: Path, library: bytes
):
    folder = tmp_path / "cache"
    assert add(ExecutableCache(folder), library).library.answer() == 42
    assert [path.name for path in folder.iterdir()] == [KEY.digest]
    assert not list(small_temporary.iterdir())


@pytest.mark.parametrize("mounted", ["size=16k"], indirect=True)
def test_no_room_anywhere_is_an_error_before_anything_is_linked(small_temporary: Path, library: bytes):
    with pytest.raises(OSError, match=f"no folder to link code in: less than 32 MB are free in {small_temporary}"):
        add(ExecutableCache(None), library)


# The launcher, an entry as any other ----------------------------------------------------------------------------------


def test_a_damaged_launcher_is_built_again_and_not_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert _launcher(tmp_path / "first") is not None
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    launcher = next((tmp_path / "second").glob("*/launcher.so"))
    launcher.write_bytes(launcher.read_bytes()[:5000])
    assert _launcher(tmp_path / "second") is not None
    assert "is damaged (launcher.so does not match its checksum)" in caplog.text
    name = launcher.parent.name
    assert entries.read(tmp_path / "second", name) == entries.read(tmp_path / "first", name)


def test_a_launcher_in_a_folder_that_others_may_write_is_not_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    assert _launcher(tmp_path / "first") is not None
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    launcher = next((tmp_path / "second").glob("*/launcher.so"))
    (tmp_path / "second").chmod(0o777)
    assert _launcher(tmp_path / "second") is not None
    assert "others may write" in caplog.text
    assert str(launcher) not in Path("/proc/self/maps").read_text()


def test_manifests_say_what_they_are(tmp_path: Path, library: bytes):
    add(ExecutableCache(tmp_path), library)
    manifest = json.loads((tmp_path / KEY.digest / "manifest.json").read_text())
    assert manifest == {"format": 1, "key": dict(KEY.parts), "library": "graph.so", "content": {"content": 1}}


def test_the_temporary_folder_is_this_users_alone_and_made_again_where_it_was_tidied_away(library: bytes):
    assert temporary().stat().st_mode & 0o077 == 0
    shutil.rmtree(temporary())
    assert add(ExecutableCache(None), library).library.answer() == 42
    assert found(None) == (42, "hit")
