"""What is written into caches, against the references on random inputs."""

import pytest
import torch
from lutra.codegen.kernels.cpu.kv_cache import Columns, kv_update, rope_kv_update
from lutra.codegen.lowering.symbols import dtype_name
from lutra.ir.ops import RopeKvUpdateOp

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def test_kv_update_writes_rows(call, isa):
    cache, new, positions = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 2, 8), torch.tensor([7, 2])
    expected = cache.index_copy(2, positions, new)
    call(kv_update(3, 8, "float32"), isa, cache, new, positions)
    assert torch.equal(cache, expected)


@pytest.mark.parametrize("outside", [10, -1, 10**12])
def test_a_position_outside_of_the_cache_is_an_error_before_anything_is_written(call, rotate, isa, outside):
    cache, new, positions = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 3, 8), torch.tensor([7, 2, outside])
    rows, cos, sin = [torch.randn(2, 3, 40)] * 3, *torch.randn(2, 1, 3, 8)
    caches = [cache.clone() for _ in range(3)]
    with pytest.raises(IndexError, match="index_copy: index out of range"):
        call(kv_update(3, 8, "float32"), isa, caches[0], new, positions)
    with pytest.raises(IndexError, match="index_copy: index out of range"):
        rotate(isa, rows, [0, 0, 0], (1, 3, 8), cos, sin, caches[1:], positions)
    assert all(torch.equal(c, cache) for c in caches)


@pytest.fixture
def rotate(call):
    """`rotate(isa, rows, starts, sizes, cos, sin, caches, positions)`: the query; caches are written."""

    def run(isa, rows, starts, sizes, cos, sin, caches, positions):
        heads, kv_heads, head = sizes
        batch, count = rows[0].shape[:2]
        columns = [Columns(x.shape[2], start) for x, start in zip(rows, starts, strict=True)]
        one = batch == count == 1
        function = rope_kv_update(heads, kv_heads, head, dtype_name(rows[0].dtype), *columns, len(cos) > 1, one)
        out = torch.full((batch, heads, count, head), 7, dtype=rows[0].dtype)
        return call(function, isa, *rows, cos, sin, *caches, positions, out)

    return run


def reference(rows, starts, sizes, cos, sin, caches, positions):
    heads, kv_heads, head = sizes
    parts = [
        x[..., start : start + n * head].unflatten(-1, (n, head))
        for x, start, n in zip(rows, starts, (heads, kv_heads, kv_heads), strict=True)
    ]
    return RopeKvUpdateOp.reference(*parts, cos, sin, *caches, positions)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("sizes", [(4, 2, 32), (3, 1, 10), (2, 2, 24)], ids=str)
@pytest.mark.parametrize(("batch", "count", "tables"), [(1, 1, 1), (3, 1, 3), (2, 5, 1)])
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "apart"])
def test_rope_kv_update_agrees_with_its_reference(rotate, isa, dtype, sizes, batch, count, tables, merged):
    heads, kv_heads, head = sizes
    widths = [heads * head, kv_heads * head, kv_heads * head]
    if merged:
        rows = [torch.randn(batch, count, sum(widths)).to(dtype)] * 3
        starts = [0, widths[0], widths[0] + widths[1]]
    else:
        rows, starts = [torch.randn(batch, count, width).to(dtype) for width in widths], [0, 0, 0]
    cos, sin = torch.randn(2, tables, count, head).to(dtype)
    caches = [torch.randn(batch, kv_heads, 9, head).to(dtype) for _ in range(2)]
    positions = torch.randperm(9)[:count]
    query, *updated = reference(rows, starts, sizes, cos, sin, caches, positions)
    got = rotate(isa, rows, starts, sizes, cos, sin, caches, positions)
    for ours, theirs in zip((got, *caches), (query, *updated), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype is torch.float32 else 0, atol=1e-6)
