"""Packed weights on disk: read back bit for bit, mapped and aligned; files that do not fit are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lutra.codegen.kernels.cpu.packing import LAYOUT_VERSION, PackedLayout
from lutra.codegen.runtime import packed_file
from lutra.codegen.runtime.packed_file import restore_packed, write_packed
from lutra.codegen.runtime.weights import PackedWeight
from lutra.ir.errors import PackedModelError
from lutra.ir.weights.formats import QuantizedWeight, WeightFormat
from lutra.ir.weights.store import ParameterStore
from safetensors import safe_open
from safetensors.torch import save_file

LAYOUTS = [
    PackedLayout("lookup", WeightFormat(2, 64), 96, 192, "pair"),
    PackedLayout("dot", WeightFormat(4, 32, "asymmetric"), 70, 64, "row"),
    PackedLayout("triples", WeightFormat(2, 128, "ternary"), 64, 128, "table"),
]


def random_weight(layout: PackedLayout, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    top = 3 if layout.format.scheme == "ternary" else 2**layout.format.bits
    codes = torch.randint(0, top, (layout.n, layout.k), dtype=torch.uint8, generator=generator)
    scales = torch.rand(layout.n, layout.groups, generator=generator).half()
    zeros = torch.rand(layout.n, layout.groups, generator=generator).half() if layout.format.has_zero_points else None
    return QuantizedWeight(codes, scales, zeros, layout.format)


def written(path: Path, prefix: str = "w") -> tuple[ParameterStore, list[PackedWeight]]:
    store, sources = ParameterStore(), []
    for number, layout in enumerate(LAYOUTS):
        symbol, buffers = f"{prefix}{number}@q", layout.pack(random_weight(layout, number))
        store.packed(symbol, layout.key, lambda buffers=buffers: buffers, layout.unpack)
        sources += [PackedWeight(symbol, layout, part) for part in range(len(buffers))]
    assert write_packed(path, [*sources, *sources], store) == path.stat().st_size
    return store, sources


@pytest.mark.parametrize("prefix", ["w" * n for n in range(1, 9)])  # headers of many lengths
def test_buffers_come_back_mapped_and_aligned(tmp_path: Path, prefix: str):
    store, sources = written(tmp_path / "packed.safetensors", prefix)
    again = ParameterStore()
    restore_packed(tmp_path / "packed.safetensors", again)
    maps = Path("/proc/self/maps")
    for source in sources:
        value = source.resolve(again)
        assert torch.equal(value, source.resolve(store))
        assert value.data_ptr() % 64 == 0
        if maps.exists():
            ranges = [line.split()[0].split("-") for line in maps.read_text().splitlines() if str(tmp_path) in line]
            assert any(int(a, 16) <= value.data_ptr() < int(b, 16) for a, b in ranges)
    for number, layout in enumerate(LAYOUTS):
        symbol, expected = f"{prefix}{number}@q", random_weight(layout, number)
        assert symbol in again and torch.equal(again.quantized(symbol).codes, expected.codes)
    assert again.packed_bytes() == sum(layout.nbytes for layout in LAYOUTS)


def test_another_layout_is_packed_from_the_one_on_disk(tmp_path: Path):
    written(tmp_path / "packed.safetensors")
    store = ParameterStore()
    restore_packed(tmp_path / "packed.safetensors", store)
    other = PackedLayout("dot", WeightFormat(2, 64), 96, 192, "row")
    buffers = [PackedWeight("w0@q", other, part).resolve(store) for part in range(2)]
    assert torch.equal(other.unpack(buffers).codes, random_weight(LAYOUTS[0], 0).codes)


def test_what_bytes_mean_changes_with_the_version_alone():
    """A new digest here needs a new `LAYOUT_VERSION`: files that users have would be read wrongly."""
    codes = torch.arange(64 * 128).remainder(251).reshape(64, 128)
    found = hashlib.sha256()
    for layout in (
        PackedLayout("lookup", WeightFormat(2, 64), 64, 128, "pair"),
        PackedLayout("lookup", WeightFormat(3, 64), 64, 128, "row"),
        PackedLayout("lookup", WeightFormat(1, 64), 64, 128, "table"),
        PackedLayout("dot", WeightFormat(3, 64), 64, 128, "row"),
        PackedLayout("dot", WeightFormat(4, 64), 64, 128, "table"),
        PackedLayout("triples", WeightFormat(2, 128, "ternary"), 64, 128, "table"),
        PackedLayout("triples", WeightFormat(2, 128, "ternary"), 64, 128, "row"),
    ):
        top = 3 if layout.format.scheme == "ternary" else 2**layout.format.bits
        weight = QuantizedWeight(codes.remainder(top).byte(), torch.ones(64, layout.groups).half(), None, layout.format)
        found.update(bytes(layout.pack(weight)[0].flatten().tolist()))
    assert (LAYOUT_VERSION, found.hexdigest()[:16]) == (3, "e57e3525fe1e8b87")


def test_files_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "packed.safetensors"
    written(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(PackedModelError, match="not a complete file"):
        restore_packed(path, ParameterStore())
    with pytest.raises(PackedModelError, match="not a complete file"):
        restore_packed(tmp_path / "none", ParameterStore())
    path.write_bytes(whole)
    monkeypatch.setattr(packed_file, "LAYOUT_VERSION", LAYOUT_VERSION + 1)
    message = f"layout version {LAYOUT_VERSION}, this version of lutra reads {LAYOUT_VERSION + 1}: pack"
    with pytest.raises(PackedModelError, match=message):
        restore_packed(path, ParameterStore())


def rewritten(path: Path, change: Callable[[list[Any]], None]) -> None:
    """The file with another description of its weights."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key).clone() for key in file.offset_keys()}
    weights = json.loads(metadata["lutra.weights"])
    change(weights)
    save_file(tensors, path, metadata | {"lutra.weights": json.dumps(weights)})


CHANGES: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "no list": (lambda weights: weights[0].update(layout=3), "lutra.weights.0.layout: Input should be"),
    "a fraction": (
        lambda weights: weights[0]["layout"].update(n=1.5),
        "lutra.weights.0.layout.n: Input should be a valid",
    ),
    "no such family": (lambda weights: weights[0]["layout"].update(family="evil"), "lutra.weights.0.layout.family"),
    "bits": (lambda weights: weights[0]["layout"]["format"].update(bits=5), "lutra.weights: bits = 5 is not supported"),
    "no rows": (lambda weights: weights[0]["layout"].update(n=0), "'w0@q': no kernel packs lookup-pair-s2g64-0x192"),
    "groups": (lambda weights: weights[0]["layout"].update(k=191), "'w0@q': no kernel packs lookup-pair-s2g64-96x191"),
    "an order": (
        lambda weights: weights[2].update(layout=weights[2]["layout"] | {"slot_order": "pair"}),
        "'w1@q': no kernel packs dot-pair-a4g32-70x64",
    ),
    "more rows": (
        lambda weights: [weight["layout"].update(n=10**12) for weight in weights[:2]],
        "alone: pack the model",
    ),
    "a weight less": (lambda weights: weights.clear(), "alone: pack the model again"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_a_file_says_of_its_weights_is_checked(tmp_path: Path, kind: str):
    change, said = CHANGES[kind]
    written(tmp_path / "packed.safetensors")
    rewritten(tmp_path / "packed.safetensors", change)
    with pytest.raises(PackedModelError, match=said):
        restore_packed(tmp_path / "packed.safetensors", ParameterStore())


def test_a_weight_of_another_shape_is_not_packed_in_another_layout(tmp_path: Path):
    written(tmp_path / "packed.safetensors")
    store = ParameterStore()
    restore_packed(tmp_path / "packed.safetensors", store)
    for other in (
        PackedLayout("dot", WeightFormat(2, 64), 160, 192, "row"),
        PackedLayout("dot", WeightFormat(2, 64, "asymmetric"), 96, 192, "row"),
    ):
        with pytest.raises(PackedModelError, match=r"w0@q is \[96, 192\] in s2g64 where the model needs"):
            PackedWeight("w0@q", other, 0).resolve(store)
