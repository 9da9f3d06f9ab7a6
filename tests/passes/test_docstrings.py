"""What the docstring of a pattern shows is what it does: the IR before, rewritten, is the IR after."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lutra.ir.patterns import Pattern, apply_patterns
from lutra.ir.rewriting import clean_up
from lutra.passes import given_weights, symmetrize_tables  # noqa: F401  patterns of theirs
from lutra.passes.pipeline import run_passes  # noqa: F401  patterns of raising and fuse
from lutra.passes.quantize_weights import quantize_weights  # noqa: F401

from .pattern_text import canonical, example, to_mlir

SHOWN_ELSEWHERE = {"RopeKvUpdate", "TernaryLinear", "TableLinear", "Quantize", "QuantizeExperts", "GivenLinear"}
"""Long ones and those that a pass gives its choices: their module's docstring, `raising/test_patterns.py`."""


def patterns() -> Iterator[type[Pattern]]:
    """All of ours."""
    yield from (cls for cls in Pattern.__subclasses__() if cls.__module__.startswith("lutra."))


@pytest.mark.parametrize("cls", [cls for cls in patterns() if example(cls)], ids=lambda cls: cls.__name__)
def test_a_pattern_does_what_its_docstring_shows(cls: Any, parse: Callable[[str], Any]):
    before, after = example(cls) or ("", "")
    text, arguments = to_mlir(before)
    graph, count = parse(text).graph, []
    apply_patterns(graph, cls(**({"store": graph.store} if "store" in cls.__annotations__ else {})), count.append)
    clean_up(graph.module)
    expected = parse(to_mlir(after, arguments)[0]).graph
    clean_up(expected.module)
    assert count and canonical(graph) == canonical(expected)


def test_every_pattern_has_an_example():
    assert {cls.__name__ for cls in patterns() if example(cls) is None} == SHOWN_ELSEWHERE
