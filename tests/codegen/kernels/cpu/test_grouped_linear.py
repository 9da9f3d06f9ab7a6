"""Products of rows with the matrices of their groups against float64: exact for the activations that they read."""

import pytest
import torch
from lutra.codegen.kernels.cpu.grouped_linear import grouped_linear
from lutra.codegen.kernels.cpu.packing import PackedLayout
from lutra.ir.weights.formats import PER_CHANNEL, QuantizedWeight, WeightFormat, dequantize

CASES = [  # format, features of a group, columns, rows of each group
    (WeightFormat(4, 128), 64, 256, [1, 0, 2, 0]),
    (WeightFormat(4, 32, "asymmetric"), 80, 96, [0, 5, 0, 1]),
    (WeightFormat(2, 64), 128, 192, [7, 3, 20]),
    (WeightFormat(2, PER_CHANNEL, "ternary"), 48, 128, [4]),
    (WeightFormat(3, PER_CHANNEL), 16, 160, [1, 1, 1, 1, 1]),
    (WeightFormat(8, 64), 64, 128, [0, 0, 9]),
    (WeightFormat(1, 128), 64, 256, [0, 0]),
]


@pytest.fixture
def product(activations, call):
    """`product(layout, isa, weight, x, offsets, ...)`: the kernel's result and the activations that it read."""

    def run(layout: PackedLayout, isa, weight: QuantizedWeight, x, offsets, m=None, form=None, unpacked=False):
        family = "dot" if unpacked else form or layout.family
        a = activations(family, layout.activation_group, isa, layout.k, x, m=m)
        dtypes = (str(t.dtype).removeprefix("torch.") for t in (x, offsets))
        function = grouped_linear(layout, isa, len(offsets), m, *dtypes, form, unpacked)
        out = torch.full((len(x), layout.n // len(offsets)), 7, dtype=x.dtype)
        return call(function, isa, *a, *layout.pack(weight), offsets, out), a

    return run


def ends(counts: list[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor(counts).cumsum(0).to(dtype)


def grouped(everything: torch.Tensor, counts: list[int], rows: int) -> torch.Tensor:
    """Of the products with all matrices `[M, E N]` those of each row's own group; zero where there is none."""
    by_group = everything.unflatten(1, (len(counts), -1))
    numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    out = torch.zeros(rows, by_group.shape[2], dtype=everything.dtype)
    out[: len(numbers)] = by_group[torch.arange(len(numbers)), numbers]
    return out


@pytest.mark.parametrize("how", ["lookup", "dot", "float", "unpacked"])
@pytest.mark.parametrize(
    ("format", "n", "k", "counts"),
    CASES,
    ids=[f"{format.describe()}-{n}x{k}-{counts}" for format, n, k, counts in CASES],
)
def test_each_row_meets_the_matrix_of_its_group(random_weight, product, emulate, isa, how, format, n, k, counts):
    rows = sum(counts) + 2  # the last two belong to no group
    weight, x = random_weight(format, n * len(counts), k), torch.randn(rows, k)
    layout = PackedLayout.create("lookup" if how == "lookup" else "dot", format, n * len(counts), k, isa)
    form = "float" if how == "float" else None
    m = rows if rows <= 5 and how != "unpacked" else None
    out, a = product(layout, isa, weight, x, ends(counts), m=m, form=form, unpacked=how == "unpacked")
    if how == "float":
        everything = x.double() @ dequantize(weight).double().T
    else:
        everything = emulate(layout, weight, *a, family="dot" if how == "unpacked" else None)
    expected = grouped(everything, counts, rows)
    assert (out.double() - expected).norm() <= 1e-5 * expected.norm()
    assert (out[sum(counts) :] == 0).all()


@pytest.mark.parametrize("offsets", [[2, 1, 3], [1, 2, 9], [-1, 0, 3]], ids=["falling", "past the rows", "negative"])
def test_offsets_that_point_outside_are_an_index_error(random_weight, product, isa, offsets):
    weight = random_weight(WeightFormat(4, 32), 48, 64)
    layout = PackedLayout.create("dot", weight.format, 48, 64, isa)
    with pytest.raises(IndexError, match="offsets out of order or range"):
        product(layout, isa, weight, torch.randn(3, 64), torch.tensor(offsets))
