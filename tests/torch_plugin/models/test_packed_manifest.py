"""What may stand in the manifest of a packed folder."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lutra.ir.errors import PackedModelError
from lutra.torch_plugin.models.packed_manifest import MANIFEST, Manifest, read_manifest
from pydantic import ValidationError

FILE = {"bytes": 3, "crc32": [7]}
PLAIN = {"symbol": "norm.weight", "shape": [64], "dtype": "float32", "where": "plain"}
CONTENT: dict[str, Any] = {
    "lutra": 3,
    "model": "LlamaForCausalLM",
    "dtype": "bfloat16",
    "recipe": {"lutra": 1, "name": "r", "passes": [{"fuse": {}}]},
    "target": "avx2",
    "kernel_family": "auto",
    "tensors": {"norm.weight": PLAIN},
    "choices": [["rule", "a.weight", "a.weight@s4g32", [4, 32, "symmetric"]]],
    "files": {"packed.safetensors": FILE, "plain.safetensors": FILE, "config.json": FILE},
}


def write(folder: Path, content: Any) -> None:
    """With the checksum that belongs to it, where it has one."""
    (folder / MANIFEST).write_text(json.dumps(content))
    with suppress(ValidationError):
        Manifest.model_validate_json(json.dumps(content)).write(folder)


def test_it_is_read_as_it_was_written(tmp_path: Path):
    write(tmp_path, CONTENT)
    manifest = read_manifest(tmp_path)
    assert manifest.recipe == CONTENT["recipe"] and manifest.tensors["norm.weight"].shape == [64]


def test_choices_of_the_version_before_are_those_of_the_weights_that_were_merged(tmp_path: Path):
    merged = "a.{q,k}.weight"
    choices = [["rule", f"{merged}", f"{merged}@s4g32", [4, 32, "symmetric"]], *CONTENT["choices"]]
    write(tmp_path, CONTENT | {"lutra": 2, "choices": choices})
    format = (4, 32, "symmetric")
    assert list(read_manifest(tmp_path).choices_by_weight()) == [
        ("rule", name, f"{name}@s4g32", format) for name in ("a.q.weight", "a.k.weight", "a.weight")
    ]
    odd = {"odd": PLAIN | {"symbol": merged}}  # a name that only looks merged
    write(tmp_path, CONTENT | {"lutra": 2, "choices": choices[:1], "tensors": odd})
    assert [each[1] for each in read_manifest(tmp_path).choices_by_weight()] == [merged]


def tensor(**changes: Any) -> dict[str, Any]:
    return {"tensors": {"t": PLAIN | changes}}


def choice(*format: Any) -> dict[str, Any]:
    return {"choices": [["rule", "a", "b", list(format)]]}


CHANGES = {
    "another version": ({"lutra": 1}, "lutra: Input should be 2 or 3"),
    "an attribute for a dtype": (tensor(dtype="load"), "tensors.t.dtype: Input should be 'float64'"),
    "a negative size": (tensor(shape=[-1]), r"tensors.t.shape.0: Input should be greater than or equal to 0"),
    "a huge size": (tensor(shape=[1 << 60]), r"tensors.t.shape.0: Input should be less than"),
    "a huge product": (tensor(shape=[1 << 30, 1 << 30]), "tensors.t: shape .* has more elements than any memory"),
    "a fraction": (tensor(shape=[1.5]), r"tensors.t.shape.0: Input should be a valid integer"),
    "many dimensions": (tensor(shape=[1] * 65), "tensors.t.shape: List should have at most 64 items"),
    "another place": (tensor(where="elsewhere"), "tensors.t.where: Input should be 'plain', 'rows' or 'packed'"),
    "rows of nothing": (tensor(where="rows"), "tensors.t: rows_of and first_row go with where = 'rows'"),
    "a row of none": (tensor(first_row=3), "tensors.t: rows_of and first_row go with where = 'rows'"),
    "rows of a number": (tensor(where="rows", rows_of="s", shape=[]), "tensors.t: a number has no rows"),
    "packed without a symbol": (tensor(where="packed", symbol=None), "tensors.t: where = 'packed' needs a symbol"),
    "a control character": (tensor(symbol="a\x1b[2J"), "tensors.t.symbol: String should match pattern"),
    "another key": (tensor(evil=1), "tensors.t.evil: Extra inputs are not permitted"),
    "no such target": ({"target": "avx3"}, "target: target 'avx3' is unknown: did you mean 'avx2'"),
    "no such family": ({"kernel_family": "evil"}, "kernel_family: Input should be 'auto', 'lookup'"),
    "bits": (choice(5, 32, "symmetric"), "choices.0.3: bits = 5 is not supported"),
    "group size": (choice(4, 31, "symmetric"), "choices.0.3: group_size = 31 is not supported"),
    "scheme": (choice(4, 32, "evil"), "choices.0.3.2: Input should be 'symmetric'"),
    "ternary bits": (choice(4, 32, "ternary"), "choices.0.3: ternary codes take 2 bits"),
    "a path for a model": ({"model": "../evil"}, "model: String should match pattern"),
    "a private name": ({"model": "__loader__"}, "model: String should match pattern"),
    "a path for a recipe": ({"recipe": "/etc/passwd"}, "recipe: Input should be an object"),
    "a recipe elsewhere": ({"recipe": CONTENT["recipe"] | {"extends": "x.yaml"}}, "recipe: a packed recipe is whole"),
    "no such pass": ({"recipe": CONTENT["recipe"] | {"passes": [{"evil": {}}]}}, "recipe: .*there is no pass 'evil'"),
    "a file elsewhere": ({"files": CONTENT["files"] | {"../evil": FILE}}, "files.../evil.*: String should match"),
    "a file of the root": ({"files": CONTENT["files"] | {"/etc/passwd": FILE}}, "files./etc/passwd.*: String should"),
    "no weights": ({"files": {}}, "files lacks packed.safetensors, plain.safetensors, config.json"),
    "a negative length": (
        {"files": {"packed.safetensors": {"bytes": -1, "crc32": []}}},
        "files.packed.safetensors.bytes: ",
    ),
    "a number for a text": ({"model": 3}, "model: Input should be a valid string"),
    "nothing": ({"tensors": None}, "tensors: Input should be an object"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_cannot_stand_there(tmp_path: Path, kind: str):
    changes, said = CHANGES[kind]
    write(tmp_path, CONTENT | changes)
    with pytest.raises(PackedModelError, match=f"{MANIFEST}: {said}"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("key", CONTENT)
def test_everything_is_needed(tmp_path: Path, key: str):
    write(tmp_path, {name: value for name, value in CONTENT.items() if name != key})
    with pytest.raises(PackedModelError, match=f"{MANIFEST}: {key}: Field required: pack the model again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"a":' * 10**5, '{"lutra": ' + "9" * 5000 + "}", "\xff", " " * (1 << 26)])
def test_what_is_no_manifest(tmp_path: Path, text: str):
    (tmp_path / MANIFEST).write_text(text, encoding="latin1")
    with pytest.raises(PackedModelError, match=MANIFEST):
        read_manifest(tmp_path)


def test_a_changed_value_is_noticed(tmp_path: Path):
    write(tmp_path, CONTENT)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace("norm.weight", "morn.weight"))
    with pytest.raises(PackedModelError, match=f"{MANIFEST} was changed since it was written"):
        read_manifest(tmp_path)
