"""Attention of one query, against torch in float64 on random inputs."""

import pytest
import torch
import torch.nn.functional as F
from lutra.codegen.kernels.cpu.attention import AttentionKnobs, decode_attention
from lutra.codegen.lowering.symbols import dtype_name
from lutra.codegen.select import Mask

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
KNOBS = AttentionKnobs()
SPAN = KNOBS.span
LENGTHS = [1, 16, 37, SPAN, SPAN + 1, 2 * SPAN + 21]
"""Below a step of 16 keys, one step, a tail; one span of keys and several, with a tail of one key."""


def some_mask(mask: Mask, batch: int, heads: int, length: int) -> torch.Tensor:
    """Every key with probability 0.6, key 0 always; in the additive form with random numbers beside."""
    keep = torch.rand(batch if mask.per_batch else 1, heads if mask.per_head else 1, 1, length) < 0.6
    keep[..., 0] = True
    if mask.dtype == "bool":
        return keep
    dtype = getattr(torch, mask.dtype)
    return torch.where(keep, torch.randn(keep.shape).to(dtype), torch.finfo(dtype).min)


def expected(q, k, v, mask, scale):
    wide = None if mask is None else mask if mask.dtype is torch.bool else mask.double()
    out = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), wide, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).flatten(2)


def assert_close(got, wanted, dtype=torch.float32):
    assert (got.double() - wanted).norm() / wanted.norm() < TOLERANCE[dtype]


@pytest.fixture
def attend(call):
    """`attend(isa, q, k, v, mask, scale)`: the kernel's result."""

    def run(isa, q, k, v, mask=None, scale=0.2, knobs=KNOBS):
        batch, heads, _, head = q.shape
        form = mask if mask is None else Mask(dtype_name(mask.dtype), mask.shape[0] > 1, mask.shape[1] > 1)
        function = decode_attention(heads, k.shape[1], head, dtype_name(q.dtype), scale, form, knobs)
        out = torch.full((batch, 1, heads * head), 7, dtype=q.dtype)
        return call(function, isa, q, k, v, *([] if mask is None else [mask]), out)

    return run


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "mask",
    [None, Mask("bool", True, False), Mask("float32", False, True), Mask("bool", True, True)],
    ids=["none", "bool", "float per head", "bool per head"],
)
def test_it_agrees_with_torch(attend, isa, mask, length):
    q, (k, v) = torch.randn(3, 6, 1, 32), torch.randn(2, 3, 2, length, 32)
    given = None if mask is None else some_mask(mask, 3, 6, length)
    assert_close(attend(isa, q, k, v, given), expected(q, k, v, given, 0.2))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=dtype_name)
@pytest.mark.parametrize(("heads", "kv_heads", "head"), [(4, 4, 64), (5, 1, 80), (7, 7, 16), (2, 1, 256)])
def test_every_head_reads_its_group(attend, isa, dtype, heads, kv_heads, head):
    q, (k, v) = torch.randn(2, heads, 1, head).to(dtype), torch.randn(2, 2, kv_heads, 43, head).to(dtype)
    given = some_mask(Mask(dtype_name(dtype), True, False), 2, heads, 43)
    assert_close(attend(isa, q, k, v, given), expected(q, k, v, given, 0.2), dtype)


def test_large_scores_do_not_overflow(attend, isa):
    """The largest score comes late, so that what was summed before it vanishes."""
    q, (k, v) = torch.randn(1, 2, 1, 16), torch.randn(2, 1, 2, SPAN + 40, 16)
    k[:, :, -3] = q[:, :, 0] * 400
    got = attend(isa, q, k, v, scale=1.0)
    assert_close(got, expected(q, k, v, None, 1.0))
    assert_close(got, v[:, :, -3].flatten(1)[:, None].double())


def test_sixteens_of_excluded_keys_are_not_read(attend, isa):
    """A cache is longer than what was written into it."""
    q, (k, v) = torch.randn(1, 2, 1, 16), torch.randn(2, 1, 2, 2 * SPAN, 16)
    keep = torch.zeros(1, 1, 1, 2 * SPAN, dtype=torch.bool)
    keep[..., 16:70] = True
    wanted = expected(q, k, v, keep, 0.2)
    for cache in (k, v):
        cache[:, :, :16], cache[:, :, 80:] = float("nan"), float("nan")
    assert_close(attend(isa, q, k, v, keep), wanted)


@pytest.mark.parametrize("length", [20, SPAN + 5])
def test_a_head_without_keys_gives_zeros(attend, isa, length):
    q, (k, v) = torch.randn(2, 4, 1, 16), torch.randn(2, 2, 2, length, 16)
    keep = torch.rand(2, 4, 1, length) < 0.6
    keep[..., 0], keep[1, 2] = True, False
    got = attend(isa, q, k, v, keep).view(2, 4, 16)
    assert (got[1, 2] == 0).all()
    wanted = expected(q, k, v, keep, 0.2).view(2, 4, 16)
    wanted[1, 2] = 0  # where torch's definition has 0 / 0
    assert_close(got, wanted)


@pytest.mark.parametrize("length", [5, 40, SPAN + 40])
def test_large_finite_masks_count_among_their_like(attend, isa, length):
    """Softmax of equal numbers is their mean, however small they are; only -inf excludes."""
    q, (k, v) = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 2, length, 32)
    least = torch.finfo(torch.float32).min
    mask = torch.full((2, 4, 1, length), least)
    mask[0, 1, :, -2] = -1e30  # beside such numbers this one is all
    mask[0, 2, :, 1:4] = 0
    mask[1, 0, :, : length // 2] = -float("inf")
    mask[1, 1, :, 3] = -1e30
    mask[1, 1, :, 4] = -1.00001e30
    got = attend(isa, q, k, v, mask).view(2, 4, 32)
    wide = v.repeat_interleave(2, 1)
    assert_close(got[0, 0], wide[0, 0].double().mean(0))
    assert_close(got[0, 1], wide[0, 1, -2].double())
    assert_close(got[1, 0], wide[1, 0, length // 2 :].double().mean(0))
    assert_close(got[1, 1], wide[1, 1, 3].double())
    assert_close(got[0, 2], expected(q, k[:, :, 1:4], v[:, :, 1:4], None, 0.2).view(2, 4, 32)[0, 2])


def test_what_is_no_number_is_not_hidden(attend, isa):
    q, (k, v) = torch.randn(1, 4, 1, 16), torch.randn(2, 1, 2, 40, 16)
    q[0, 0], k[0, 1, 7], v[0, 1, 20, 3] = float("nan"), float("inf"), float("nan")
    got = attend(isa, q, k, v).view(4, 16)
    assert got[0].isnan().all() and not got[1].isnan().any() and got[2, 3].isnan()


@pytest.mark.parametrize("knobs", [AttentionKnobs(span=32), AttentionKnobs(heads_at_once=1, ahead=1)], ids=str)
def test_knobs_change_no_result(attend, isa, knobs):
    q, (k, v) = torch.randn(1, 4, 1, 32), torch.randn(2, 1, 2, 100, 32)
    assert_close(attend(isa, q, k, v, knobs=knobs), expected(q, k, v, None, 0.2))
