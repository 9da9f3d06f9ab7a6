"""Quantised weights: the symmetrised re-interpretation is exact, and lookup tables compute the same linear."""

import pytest
import torch
from lutra.ir.errors import QuantizationError
from lutra.ir.ops import LinearOp, TableLinearOp, TableOp
from lutra.ir.weights.formats import (
    BITS,
    PER_CHANNEL,
    QuantizedWeight,
    WeightFormat,
    bit_planes,
    dequantize,
    symmetrized_zero_points,
)

FORMATS = [
    *(
        WeightFormat(bits, group, scheme)
        for bits in BITS
        for group in (32, PER_CHANNEL)
        for scheme in ("symmetric", "asymmetric")
    ),
    WeightFormat(2, 32, "ternary"),
    WeightFormat(2, PER_CHANNEL, "ternary"),
]
formats = pytest.mark.parametrize("format_", FORMATS, ids=WeightFormat.describe)


def random_weight(format_: WeightFormat, n: int = 6, k: int = 96, exact: bool = False) -> QuantizedWeight:
    """Codes over the whole range. `exact`: scales and zero points with which float32 arithmetic does not round."""
    groups = format_.groups(k)
    codes = torch.randint(0, 3 if format_.scheme == "ternary" else 2**format_.bits, (n, k), dtype=torch.uint8)
    scales = torch.randint(1, 5, (n, groups)) / 8 if exact else torch.rand(n, groups) + 0.01
    zeros = torch.randint(0, 2**format_.bits, (n, groups)) + (0.5 if exact else torch.rand(n, groups))
    return QuantizedWeight(codes, scales.half(), zeros.half() if format_.has_zero_points else None, format_)


def exact_values(weight: QuantizedWeight) -> torch.Tensor:
    """`s * (q - z)` in float64, where it does not round."""
    n, k = weight.codes.shape
    codes = weight.codes.double().reshape(n, -1, weight.format.group_columns(k))
    zero = weight.format.implicit_zero_point if weight.zero_points is None else weight.zero_points.double()[..., None]
    return ((codes - zero) * weight.scales.double()[..., None]).reshape(n, k)


@formats
def test_sums_of_sign_planes_are_exactly_the_weight(format_: WeightFormat):
    weight = random_weight(format_)
    planes = bit_planes(weight).double()
    assert planes.abs().eq(1).all()
    factors = torch.tensor(format_.plane_weights, dtype=torch.float64)
    symmetric = (planes * factors[:, None, None]).sum(0)
    columns = format_.group_columns(symmetric.shape[1])
    zero = symmetrized_zero_points(weight)
    shift = 0 if zero is None else zero.double().repeat_interleave(columns, 1)
    scales = weight.scales.double().repeat_interleave(columns, 1)
    assert torch.equal(scales / 2 * (symmetric - shift), exact_values(weight))


@formats
def test_dequantised_weights_are_exact_up_to_one_rounding(format_: WeightFormat):
    weight = random_weight(format_)
    torch.testing.assert_close(dequantize(weight).double(), exact_values(weight), rtol=2**-22, atol=0)


def test_complementary_patterns_give_opposite_sums():
    entries = TableOp.reference(torch.randint(-99, 100, (3, 22)).float(), half=False)
    assert entries.shape == (3, 6, 16)
    assert torch.equal(entries, -entries.flip(-1))


def test_half_tables_are_the_entries_whose_top_bit_is_clear():
    x = torch.randint(-99, 100, (3, 22)).float()
    assert torch.equal(TableOp.reference(x, half=True), TableOp.reference(x, half=False)[..., :8])


def test_table_entries_are_signed_sums_of_four_columns():
    x = torch.randn(2, 8, dtype=torch.float64)
    entries = TableOp.reference(x, half=False)
    for pattern in range(16):
        signs = torch.tensor([1.0 if pattern >> k & 1 else -1.0 for k in range(4)], dtype=torch.float64)
        torch.testing.assert_close(
            entries[..., pattern].double(), (x.reshape(2, 2, 4) * signs).sum(-1), rtol=1e-5, atol=1e-6
        )


@formats
def test_half_and_full_tables_and_the_linear_give_the_same_sums(format_: WeightFormat):
    weight, x = random_weight(format_, exact=True), torch.randint(-4, 5, (3, 96)).float()
    expected = x.double() @ exact_values(weight).T
    half, full = (TableLinearOp.reference(TableOp.reference(x, half=half), weight) for half in (True, False))
    assert torch.equal(half.double(), expected)
    assert torch.equal(full.double(), expected)
    assert torch.equal(LinearOp.reference(x, weight).double(), expected)


def test_columns_that_do_not_fill_a_table_count_as_zero():
    format_ = WeightFormat(3, PER_CHANNEL, "asymmetric")
    weight, x = random_weight(format_, k=22, exact=True), torch.randint(-4, 5, (3, 22)).float()
    for half in (True, False):
        assert torch.equal(
            TableLinearOp.reference(TableOp.reference(x, half=half), weight).double(),
            x.double() @ exact_values(weight).T,
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 5}, "bits = 5 is not supported: use one of 1, 2, 3, 4, 8"),
        ({"bits": 4, "group_size": 48}, "group_size = 48 is not supported"),
        ({"bits": 4, "scheme": "nf4"}, "scheme = 'nf4' is not one of"),
        ({"bits": 3, "scheme": "ternary"}, "ternary codes take 2 bits, not 3"),
    ],
)
def test_formats_that_do_not_exist_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(QuantizationError, match=message):
        WeightFormat(**arguments)  # type: ignore[arg-type]


def test_groups_must_divide_the_input_features():
    with pytest.raises(QuantizationError, match="does not divide the weight's 96 input features: use one of 32"):
        WeightFormat(4, 64).groups(96)
    assert WeightFormat(4, 32).groups(96) == 3
    assert WeightFormat(4, PER_CHANNEL).groups(97) == 1


def test_descriptions_tell_formats_apart():
    assert len({format_.describe() for format_ in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize(
    ("asked", "columns", "taken"),
    [
        (128, 576, 64),
        (128, 64, 64),
        (256, 384, 128),
        (64, 96, 32),
        (32, 36, 0),
        (128, 1, 0),
        (0, 128, 0),
        (64, 256, 64),
    ],
)
def test_the_largest_groups_up_to_those_asked_for_that_divide_the_columns(asked: int, columns: int, taken: int):
    assert WeightFormat(2, asked, "ternary").fitting(columns) == WeightFormat(2, taken, "ternary")
