"""What may happen to a packed folder, by accident and on purpose, as hypothesis strategies."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from lutra.ir.errors import PackedModelError
from lutra.torch_plugin.models.packed_manifest import MANIFEST, Manifest
from lutra.torch_plugin.models.stored_files import StoredFile
from pydantic import ValidationError

ODD = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**13, 10**30, 1.5, 1e308, -0.0),
    *("", "x", "../x", "/etc/passwd", "\x1b[31m", "a" * 5000, "__class__", "evil/kernel", "float16", "load"),
    *([], {}, [[]], [10**9] * 3, [-1], {"a": 1}, [None] * 9),
]
"""Values that stand where another belongs."""

Content = dict[str, bytes]


@st.composite
def accidents(draw: st.DrawFn, content: Content) -> Content:
    """The files of a folder, one of which was cut, overwritten, lengthened, exchanged or lost."""
    name = draw(st.sampled_from(sorted(content)))
    old = content[name]
    at = draw(st.integers(0, len(old) - 1))
    new = draw(
        st.one_of(
            st.just(old[:at]),
            st.binary(min_size=1, max_size=9).map(lambda some: (old[:at] + some + old[at + len(some) :])[: len(old)]),
            st.integers(0, 7).map(lambda bit: old[:at] + bytes([old[at] ^ 1 << bit]) + old[at + 1 :]),
            st.binary(min_size=1, max_size=9).map(lambda some: old[:at] + some + old[at:]),
            st.sampled_from(sorted(content)).map(content.__getitem__),
            st.none(),
        )
    )
    rest = {other: data for other, data in content.items() if other != name}
    return rest if new is None else rest | {name: new}


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """`tree`, of JSON, in which up to two values are odd, are those of another place, or are missing."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(tree))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if draw(st.integers(0, 9)) == 0:
            del holder[key]
            continue
        values = [other[k] for other, k in places]
        holder[key] = copy.deepcopy(draw(st.one_of(st.sampled_from(ODD), st.sampled_from(values), st.integers())))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield tree, key
        yield from _places(value)


def read(folder: Path) -> Content:
    """The files of `folder`."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(content: Content, folder: Path) -> None:
    """Make `folder` hold `content`, and nothing else."""
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, data in content.items():
        (folder / name).write_bytes(data)


def seal(folder: Path) -> None:
    """Give `folder` the checksums that belong to what it holds now, as somebody would who changed it on purpose."""
    data = json.loads((folder / MANIFEST).read_text())
    if isinstance(data, dict) and isinstance(data.get("files"), dict):
        for name in data["files"]:
            if name in {path.name for path in folder.iterdir()}:
                data["files"][name] = StoredFile.of(folder / name).model_dump()
    text = json.dumps(data)
    try:
        Manifest.model_validate_json(text).write(folder)
    except (ValidationError, PackedModelError):
        (folder / MANIFEST).write_text(text)


def with_metadata(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A file of safetensors with another header."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
