"""`when:` conditions over shape and hardware facts."""

import pytest
from lutra.ir.errors import RecipeError
from lutra.recipes.conditions import Condition

FACTS = {"batch": 4, "sequence": 1, "cores": 2, "avx2": 1, "avx512": 0, "neon": 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch <= 4", True),
        ("batch < 4", False),
        ("1 < batch <= 4", True),
        ("batch * sequence == 4 and avx2", True),
        ("avx512 or neon", False),
        ("not avx512", True),
        ("avx2", True),
        ("avx512", False),
        ("cores // 2 + 1 == 2", True),
        ("batch % 3 == 1", True),
        ("cores - 2", False),
        ("batch != 4", False),
        ("True", True),
        ("batch > -1", True),
    ],
)
def test_conditions_evaluate_as_python_would(text: str, expected: bool):
    assert Condition.parse(text).holds(FACTS) is expected
    assert bool(eval(text, {}, dict(FACTS))) is expected


def test_a_condition_on_an_unknown_size_holds_only_when_certain():
    unknown = {k: v for k, v in FACTS.items() if k != "batch"}
    assert not Condition.parse("batch <= 4").holds(unknown)
    assert not Condition.parse("batch").holds(unknown)
    assert Condition.parse("batch <= 4 or avx2").holds(unknown)


def test_a_division_by_a_fact_that_is_zero_is_an_error_where_it_happens():
    condition = Condition.parse("batch // avx512 > 1")
    assert condition.holds({**FACTS, "avx512": 1})
    with pytest.raises(RecipeError, match="divides by zero here \\(avx512 = 0, batch = 4\\)"):
        condition.holds(FACTS)
    assert not Condition.parse("avx512 and batch // avx512 > 1").holds(FACTS)


def test_long_conditions_are_not_read():
    with pytest.raises(RecipeError, match="has 1502 characters, at most 500 are read"):
        Condition.parse("1" * 1500 + ">1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchs > 1", "unknown name 'batchs': did you mean 'batch'?"),
        ("batch >", "does not parse"),
        ("__import__('os')", "may hold names, integers"),
        ("batch.real > 1", "may hold names, integers"),
        ("batch > 'x'", "may hold names, integers"),
        ("batch % 0 == 1", "division by zero"),
        ("batch // 0 == 1", "division by zero"),
        ("(batch < 4) < cores", "compares truth values: join them with and/or/not"),
        ("-(not batch) > 1", "compares truth values: join them with and/or/not"),
        ("9**9**9**9 > batch", "may hold names, integers"),
        ("not " * 60 + "batch", "is nested more than 50 levels deep"),
        ("-" * 499 + "1", "is nested more than 50 levels deep"),
        ("(" * 300, "does not parse"),
        ("batch\0", "does not parse"),
        ("batch\ud800", "does not parse"),
    ],
)
def test_errors_quote_the_condition(text: str, message: str):
    with pytest.raises(RecipeError) as error:
        Condition.parse(text)
    assert repr(text) in str(error.value)
    assert message in str(error.value)
