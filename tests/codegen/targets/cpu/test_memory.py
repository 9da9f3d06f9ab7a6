"""Memory for packed weights."""

import gc
import weakref

import pytest
import torch
from lutra.codegen.targets.cpu import memory


@pytest.fixture(autouse=True)
def chunk(monkeypatch):
    monkeypatch.setattr(memory, "CHUNK", 1 << 16)
    monkeypatch.setattr(memory, "_current", None)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_tensors_are_aligned_compact_and_apart(dtype):
    sizes = [(3, 5), (1,), (70, 1000), (0, 4), (1 << 17,), (7, 9)]
    tensors = [memory.empty(size, dtype).fill_(number) for number, size in enumerate(sizes)]
    for number, (size, tensor) in enumerate(zip(sizes, tensors, strict=True)):
        assert tuple(tensor.shape) == size and tensor.dtype is dtype
        assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
        assert (tensor == number).all(), "another tensor lies over it"


def test_a_chunk_goes_with_its_last_tensor():
    first, second = memory.empty((100,), torch.uint8), memory.empty((100,), torch.uint8)
    chunk = weakref.ref(memory._current)
    memory.empty((4 << 20,), torch.uint8)  # has no room in it
    del first
    gc.collect()
    assert (second.fill_(3) == 3).all()
    assert chunk() is None  # the object; its memory is kept by `second`
