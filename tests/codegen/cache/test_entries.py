"""Entries on disk: what is damaged or another user's is never used, and what is not ours is never removed."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lutra.codegen.cache import entries
from lutra.codegen.cache.entries import CHECKSUMS, MANIFEST, Damaged, Refused, Stored

NAME, OTHER = "0123456789abcdef" * 2, "f" * 32
STORED = Stored("graph.so", {"outputs": [["tensor", 0]], "workspace": {"size": 512}}, b"\x7fELF" * 100)
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    entries.make_private(folder)
    entries.write(folder, NAME, {"graph": "g"}, STORED)
    return folder


def test_an_entry_is_read_as_it_was_written_and_is_this_users_alone(place: Path):
    assert entries.read(place, NAME) == STORED
    assert list(entries.keys(place)) == [{"graph": "g"}]
    for path in (place, *place.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    with pytest.raises(FileNotFoundError):
        entries.read(place, OTHER)


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_no_umask_makes_a_folder_that_is_then_refused(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        folder = tmp_path / "above" / "cache"
        entries.make_private(folder)
        entries.write(folder, NAME, {}, STORED)
    finally:
        os.umask(before)
    entries.trusted(folder)
    assert entries.read(folder, NAME) == STORED


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["content"]["outputs"] = [["tensor", 1]]
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize("file", ["graph.so", MANIFEST, CHECKSUMS])
@pytest.mark.parametrize(
    "damage",
    [
        flip,
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes() + b"0"),
        lambda path: path.write_bytes(b"[" * 100_000),
    ],
    ids=["a bit", "missing", "empty", "cut short", "longer", "deep"],
)
def test_any_damage_to_any_file_is_found(place: Path, file: str, damage: Callable[[Path], None]):
    damage(place / NAME / file)
    with pytest.raises(Damaged):
        entries.read(place, NAME)


def test_damage_is_named(place: Path):
    edit(place / NAME / MANIFEST)
    with pytest.raises(Damaged, match=r"^manifest\.json does not match its checksum$"):
        entries.read(place, NAME)
    assert list(entries.keys(place)) == []
    (place / NAME / MANIFEST).unlink()
    with pytest.raises(Damaged, match=r"^manifest\.json is missing$"):
        entries.read(place, NAME)


def refused(place: Path) -> str:
    with pytest.raises(Refused) as error:
        entries.trusted(place)
        entries.read(place, NAME)
    return str(error.value)


@pytest.mark.parametrize("what", [".", NAME, *(f"{NAME}/{file}" for file in ("graph.so", MANIFEST, CHECKSUMS))])
def test_what_others_may_write_is_refused(place: Path, what: str):
    path = place / what
    path.chmod(path.stat().st_mode | stat.S_IWOTH)
    assert refused(place) == f"others may write to {path.resolve()}: chmod go-w"
    path.chmod(path.stat().st_mode & ~stat.S_IWOTH)
    assert entries.read(place, NAME) == STORED


@as_root
@pytest.mark.parametrize("what", [".", NAME, *(f"{NAME}/{file}" for file in ("graph.so", MANIFEST, CHECKSUMS))])
def test_what_another_user_owns_is_refused(place: Path, what: str):
    os.chown(place / what, NOBODY, NOBODY)
    assert refused(place) == f"{(place / what).resolve()} belongs to user {NOBODY}, this is user 0"


@as_root
def test_only_a_users_own_group_may_write(place: Path):
    place.chmod(0o770)
    entries.trusted(place)  # root's own group
    os.chown(place, 0, NOBODY)
    assert "others may write" in refused(place)


def test_a_folder_that_others_may_exchange_is_refused_and_a_sticky_one_above_is_not(place: Path):
    place.parent.chmod(0o777)
    assert refused(place) == f"others may exchange it, since they may write to {place.parent.resolve()}"
    place.parent.chmod(0o1777)
    place.chmod(0o1777)
    (link := place.parent / "link").symlink_to(place)
    assert entries.trusted(link) == entries.trusted(place) == place.resolve()


@pytest.mark.parametrize("what", [NAME, f"{NAME}/graph.so", f"{NAME}/{MANIFEST}", f"{NAME}/{CHECKSUMS}"])
def test_nothing_is_read_through_links(place: Path, tmp_path: Path, what: str):
    path, elsewhere = place / what, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    refused(place)
    path.unlink()
    os.mkfifo(path)
    refused(place)  # and does not wait for a writer


# Removing -------------------------------------------------------------------------------------------------------------


def kinds(place: Path) -> dict[str, str | None]:
    return {item.name: item.kind for item in entries.items(place)}


def test_entries_of_every_kind_and_damage_are_ours(place: Path):
    entries.write(place, "1" * 32, {}, Stored("launcher.so", {}, b"x"))
    entries.write(place, "2" * 32, {}, Stored(None, {"read": 1.0}, b""))
    (place / NAME / "graph.so").unlink()
    assert kinds(place) == {NAME: "executable", "1" * 32: "launcher", "2" * 32: "measurement"}
    assert all(entries.remove(place, item.name) for item in entries.items(place))
    assert not list(place.iterdir())


def test_folders_of_other_makers_are_not_ours(place: Path, tmp_path: Path):
    """A web application, a name like ours with other contents, an entry under another name, links, files."""
    strangers = ["app", OTHER, "a" * 32, "b" * 32, "c" * 32, "d" * 32, ".new-abc", ".new-mine", "data.json"]
    for name in strangers[:4]:  # the third stays empty
        (place / name).mkdir()
    (place / "app" / MANIFEST).write_text('{"name": "app"}')
    (place / OTHER / MANIFEST).write_text('{"name": "app"}')
    (place / OTHER / "graph.so").write_bytes(b"x")
    (place / ("b" * 32) / MANIFEST).mkdir()
    (place / ("c" * 32)).symlink_to(tmp_path)
    (place / ("d" * 32)).write_text("a file")
    (place / ".new-abc").mkdir()
    (place / ".new-mine").write_text("a file")
    (place / "data.json").write_text("{}")
    entries.write(place, "e" * 32, {}, STORED)
    (place / ("e" * 32)).rename(place / "backup")
    assert {name for name, kind in kinds(place).items() if kind is None} == {*strangers, "backup"}
    assert all(item.why for item in entries.items(place) if item.kind is None)


@as_root
def test_an_entry_of_another_user_is_not_removed(place: Path):
    os.chown(place / NAME, NOBODY, NOBODY)
    assert kinds(place) == {NAME: None}
    assert not entries.remove(place, NAME)
    assert len(list((place / NAME).iterdir())) == 3


def test_a_file_that_somebody_put_into_an_entry_stays(place: Path, tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("data")
    (place / NAME / "notes.txt").write_text("mine")
    (place / NAME / "launcher.so").symlink_to(precious)
    assert not entries.remove(place, NAME)
    assert sorted(p.name for p in (place / NAME).iterdir()) == ["launcher.so", "notes.txt"]
    assert precious.read_text() == "data"


def test_links_are_not_followed_to_be_removed(place: Path, tmp_path: Path):
    target = tmp_path / "target"
    (place / NAME).rename(target)
    (place / NAME).symlink_to(target)
    assert not entries.remove(place, NAME)
    assert len(list(target.iterdir())) == 3


WRITER = """
import sys, time
from pathlib import Path
from lutra.codegen.cache import entries
with entries.scratch(Path(sys.argv[1]), sys.argv[2]) as folder:
    (folder / "lib0.o").write_bytes(b"x")
    print(folder.name, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_ours_and_what_a_living_one_writes_is_not(place: Path):
    command = [sys.executable, "-c", WRITER, str(place), OTHER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        name = writer.stdout.readline().strip()
        assert kinds(place) == {name: None, NAME: "executable"}
        writer.kill()
    assert kinds(place) == {name: "leftover", NAME: "executable"}
    assert entries.remove(place, name)
    assert kinds(place) == {NAME: "executable"}
