"""Packed layouts lose nothing and lie in memory as their description says."""

from itertools import product

import pytest
import torch
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.ir.errors import QuantizationError
from lutra.ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat, bit_planes

ISA = ISAS["portable"]
FORMATS = [
    WeightFormat(1, 32),
    WeightFormat(2, 64, "ternary"),
    WeightFormat(2, 96 // 3, "asymmetric"),
    WeightFormat(3, 64, "asymmetric"),
    WeightFormat(4, PER_CHANNEL),
    WeightFormat(8, 64),
]
LAYOUTS = [
    *((format, family, order) for format, family, order in product(FORMATS, ("lookup", "dot"), ("row", "table"))),
    *((format, "lookup", "pair") for format in FORMATS if format.bits % 2 == 0),
    *((WeightFormat(2, 128, "ternary"), "triples", order) for order in ("row", "table")),
]


@pytest.mark.parametrize(("format", "family", "order"), LAYOUTS, ids=str)
def test_unpacking_is_the_exact_inverse(random_weight, format, family, order):
    k = {PER_CHANNEL: 100, 128: 384}.get(format.group_size, 192)
    weight = random_weight(format, 80, k)
    layout = PackedLayout(family, format, 80, k, order)
    buffers = layout.pack(weight)
    again = layout.unpack(buffers)
    assert torch.equal(again.codes, weight.codes)
    assert torch.equal(again.scales, weight.scales)
    assert (again.zero_points is None) == (weight.zero_points is None)
    assert weight.zero_points is None or torch.equal(again.zero_points, weight.zero_points)
    assert layout.nbytes == sum(b.numel() * b.element_size() for b in buffers)
    assert next(tuple(b.shape) for b in buffers) == layout.packed_shape
    assert all(b.is_contiguous() and b.data_ptr() % 64 == 0 for b in buffers)
    assert (buffers[1][1, :, 16:] == 0).all()  # the scales of padded rows


@pytest.mark.parametrize("order", ["row", "table"])
def test_lookup_bytes_hold_two_table_indices(random_weight, order):
    weight = random_weight(WeightFormat(3, 32), 64, 64)
    packed = PackedLayout("lookup", weight.format, 64, 64, order).pack(weight)[0]
    bits = (bit_planes(weight) + 1) // 2
    nibbles = (bits.view(3, 64, 16, 4).int() * torch.tensor([1, 2, 4, 8])).sum(-1)  # [plane, row, table]
    for plane, row, unit, slot in [(0, 0, 0, 0), (1, 37, 1, 2), (2, 63, 1, 3), (2, 16, 0, 1)]:
        tile, r = divmod(row, 16)
        byte = packed[0, unit, plane, 64 * tile + (4 * r + slot if order == "row" else 16 * slot + r)].item()
        low, high = nibbles[plane, row, unit * 8 + slot], nibbles[plane, row, unit * 8 + 4 + slot]
        assert byte == low + 16 * high


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_each_bit_of_a_code_has_a_bit_of_a_dot_weight_to_itself(bits):
    codes = torch.zeros(64 * bits, 64, dtype=torch.uint8)  # row n has bit n // 64 of the code in column n % 64 alone
    rows = torch.arange(64 * bits)
    codes[rows, rows % 64] = (1 << rows // 64).byte()
    layout = PackedLayout("dot", WeightFormat(bits, 64), 64 * bits, 64, "row")
    weight = QuantizedWeight(codes, torch.ones(64 * bits, 1).half(), None, layout.format)
    packed = layout.pack(weight)[0].view(bits, 2, bits, 64, 4)  # [block, unit, vector, row, slot]
    of_row = packed.permute(0, 3, 1, 2, 4).reshape(64 * bits, -1)  # 8 * bits bytes
    set_bits = (of_row[..., None] >> torch.arange(8) & 1).flatten(1)
    assert (set_bits.sum(1) == 1).all()
    assert (set_bits.sum(0) == 1).all()


def test_pair_order_puts_two_planes_of_a_row_side_by_side(random_weight):
    weight = random_weight(WeightFormat(4, 32), 64, 64)
    table, pair = (PackedLayout("lookup", weight.format, 64, 64, order).pack(weight)[0] for order in ("table", "pair"))
    slots = table.view(2, 2, 2, 4, 4, 16)  # [unit, pair of planes, plane in it, tile, slot, row]
    expected = slots.unflatten(4, (2, 2)).permute(0, 1, 4, 3, 5, 6, 2)  # half of the slots before the tile
    assert torch.equal(pair.flatten(), expected.flatten())


def test_triples_are_an_index_and_a_sign(random_weight):
    weight = random_weight(WeightFormat(2, 256, "ternary"), 100, 256)
    packed = PackedLayout("triples", weight.format, 100, 256, "table").pack(weight)[0].int()
    digits = torch.nn.functional.pad(weight.codes.view(100, 2, 128).int() - 1, (0, 1)).view(100, 2, 43, 3)
    numbers = digits @ torch.tensor([9, 3, 1], dtype=torch.int32)
    for row, span, triple in [(0, 0, 0), (99, 1, 39), (17, 0, 40), (64, 1, 42), (63, 0, 7), (5, 1, 8)]:
        number = numbers[row, span, triple].item()
        bytes_ = packed[row // 64, span, :, row % 64].tolist()
        assert bytes_[triple // 2] >> 4 * (triple % 2) & 15 == abs(number)
        sign = bytes_[22 + triple // 8] >> triple % 8 if triple < 40 else bytes_[21] >> triple - 36
        assert sign & 1 == (number < 0)
    assert 8 * packed[0].numel() / (64 * 256) == 1.6875  # bits a weight


def test_triples_in_row_order_go_by_fours(random_weight):
    weight = random_weight(WeightFormat(2, 256, "ternary"), 100, 256)
    table, packed = (
        PackedLayout("triples", weight.format, 100, 256, order).pack(weight)[0] for order in ("table", "row")
    )
    assert packed.shape == table.shape
    span, tile, row = 1, 2, 5
    words = packed[0, span].flatten()[64 * 6 * tile :][: 6 * 64].view(6, 16, 4)[:, row].tolist()  # [vector][slot]
    rest = packed[0, span].flatten()[64 * 24 + 48 * tile + 3 * row :][:3].tolist()
    column = table[0, span, :, 16 * tile + row].tolist()
    for triple in range(43):
        four, slot = divmod(triple, 4)
        index = words[four // 2][slot] >> 4 * (four % 2) & 15 if four < 10 else rest[slot] & 15
        assert index == column[triple // 2] >> 4 * (triple % 2) & 15
        if four < 8:
            sign = words[5][slot] >> four
        else:
            sign = rest[slot] >> four - 4 if slot < 3 else rest[four - 8] >> 7
        wanted = column[22 + triple // 8] >> triple % 8 if triple < 40 else column[21] >> triple - 36
        assert sign & 1 == wanted & 1


@pytest.mark.parametrize(("format", "k"), [(WeightFormat(2, 128), 256), (WeightFormat(2, 64, "ternary"), 256),
                                           (WeightFormat(2, PER_CHANNEL, "ternary"), 192)], ids=str)  # fmt: skip
def test_what_does_not_pack_in_triples_is_refused(format, k):
    with pytest.raises(QuantizationError, match="do not pack in triples"):
        PackedLayout.create("triples", format, 64, k, ISA)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_dot_bytes_hold_the_codes_of_one_column_of_consecutive_quads(random_weight, bits):
    weight = random_weight(WeightFormat(bits, 32), 64, 64)
    packed = PackedLayout("dot", weight.format, 64, 64, "row").pack(weight)[0]
    codes = weight.codes.view(64, 2, bits, 8 // bits, 4).int()  # [row, unit, vector, quad in it, column]
    shifts = torch.arange(8 // bits) * bits
    expected = (codes << shifts[:, None]).sum(3)
    assert torch.equal(packed[0].int().view(2, bits, 64, 4), expected.permute(1, 2, 0, 3))


def test_keys_tell_layouts_apart():
    layouts = [
        PackedLayout.create(family, format, n, k, ISA)
        for family, format, n, k in product(("lookup", "dot"), FORMATS, (64, 128), (192, 384))
    ]
    assert len({layout.key for layout in layouts}) == len(set(layouts))


def test_a_group_size_that_does_not_divide_k_is_refused():
    with pytest.raises(QuantizationError, match="does not divide"):
        PackedLayout.create("dot", WeightFormat(4, 128), 64, 192, ISA)
