"""Choosing a target."""

import pytest
from lutra.codegen.targets.cpu.isas import ISAS
from lutra.codegen.targets.registry import TARGETS, get_target
from lutra.ir.errors import TargetError
from lutra.ir.weights.formats import WeightFormat


def test_auto_is_the_first_target_that_this_machine_executes():
    available = [name for name, target in TARGETS.items() if target.available()]
    assert get_target().name == get_target("auto").name == available[0]


def test_the_portable_target_is_always_there():
    assert get_target("portable").available()


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(TargetError, match="did you mean 'avx512'"):
        get_target("avx-512")


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if not target.available()])
def test_a_target_that_this_machine_lacks_is_refused_unless_only_compiled_for(name):
    with pytest.raises(TargetError, match="not present on this machine"):
        get_target(name)
    assert get_target(name, cross=True).tvm_target(cross=True).attrs["mtriple"]


@pytest.mark.parametrize("name", ISAS)
def test_few_bits_are_looked_up_and_many_multiplied(name):
    families = [ISAS[name].prefers.family(WeightFormat(bits)) for bits in (1, 2, 3, 4, 8)]
    assert families == sorted(families, reverse=True)
    assert families[-1] == "dot"
