"""The average is kept, the widest layers are those that need it, and impossible budgets are refused."""

import random

import pytest
from lutra.ir.errors import QuantizationError
from lutra.passes.quantize_weights.bit_budget import BitBudget


def test_the_layer_whose_errors_fall_most_gets_the_bits():
    errors = {"a": {2: 100.0, 3: 30.0, 4: 8.0}, "b": {2: 1.0, 3: 0.3, 4: 0.1}}
    assert BitBudget(3).allocate(errors, {"a": 10, "b": 10}) == {"a": 4, "b": 2}
    assert BitBudget(3).allocate(errors, {"a": 30, "b": 10}) == {"a": 3, "b": 3}


@pytest.mark.parametrize("average", [2, 2.5, 3, 3.7, 4])
def test_the_average_is_kept_and_nearly_used(average: float):
    draw = random.Random(1)
    sizes = {i: draw.randint(50, 150) for i in range(60)}
    scale = {i: draw.uniform(1, 9) for i in sizes}
    errors = {i: {b: scale[i] * 4.0**-b for b in (2, 3, 4)} for i in sizes}
    widths = BitBudget(average).allocate(errors, sizes)
    used = sum(widths[i] * sizes[i] for i in sizes) / sum(sizes.values())
    assert average - 0.05 <= used <= average + 1e-9
    uniform = sum(of[int(average)] for of in errors.values())
    assert sum(errors[i][widths[i]] for i in sizes) <= uniform + 1e-9


def test_a_width_that_brings_nothing_is_skipped():
    errors = {"a": {2: 5.0, 3: 5.5, 4: 1.0}}
    assert BitBudget(4).allocate(errors, {"a": 7}) == {"a": 4}
    assert BitBudget(3).allocate(errors, {"a": 7}) == {"a": 2}


@pytest.mark.parametrize(
    ("average", "choices", "message"),
    [(5, (2, 3, 4), "outside the choices"), (3, (3,), "two or more"), (3, (2, 5), "two or more different widths")],
)
def test_impossible_budgets_are_refused(average: float, choices: tuple[int, ...], message: str):
    with pytest.raises(QuantizationError, match=message):
        BitBudget(average, choices)
