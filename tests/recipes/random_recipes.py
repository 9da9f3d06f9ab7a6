"""Strategies for recipes that nobody would write: texts, data that YAML has not, changed recipes of the library."""

import datetime
from typing import Any

import yaml
from hypothesis import strategies as st
from lutra.recipes.loading import library

LIBRARY = {name: path.read_text() for name, path in library().items()}

_FRAGMENTS = """
&a|*a|&a [*a, *a]|{<<: *a}|<<: *a|<<: [*a, *a]|!!python/object/apply:os.system [x]|!!binary aGk=|!!int x|!!bool 3
!!set {a}|!!omap [a: 1]|!!str|!!float|2024-01-01|2024-13-45|0x_|0b_|1:1:1|.nan|-.inf|1e400|? [a]|? {a: b}|---|...
%YAML 9.9|~|=|null|true|4.0|"4"|-1|[]|{}|[[[[[[|{a: {a: {a:|- - - -|${bits}|${|$|re:(a*)*b|re:(?R)|re:((a{9}){9}){9}
4..2|outside|passes:|quantize-weights:|bits:|select:|not:|layers:|modules:|when:|batch <= 4|9**9**9|batch // avx512
not not 1|extends:|extends: w4|extends: /dev/zero|vars:|phase: decode|allow_empty: true
{average: 3, choices: [2, 3]}|channel|lutra: 1|name: x
""".strip().replace("\n", "|").split("|")  # fmt: skip
_SIGNS = st.text(alphabet="-:[]{}&*!|>'\"#%@`,?<~.\\$= \n\t\r0aAé\x00\x07\x85\u2028\ufeff\ud800", max_size=6)
_PIECES = st.sampled_from(_FRAGMENTS) | _SIGNS | st.text(max_size=4) | st.just("\n") | st.just(": ")


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Pieces of YAML in any order, alone or at random places of a library recipe."""
    text = draw(st.sampled_from(["", *LIBRARY.values()]))
    for piece in draw(st.lists(_PIECES, min_size=1, max_size=6 if text else 30)):
        start = draw(st.integers(0, len(text))) if text else 0
        end = start + draw(st.integers(0, 12))
        repeated = piece * draw(st.sampled_from([1, 1, 1, 2, 50, 3000]))
        text = text[:start] + repeated + text[end:] if text else repeated + "\n"
    return text


def _own() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["not"] = circle
    return circle


_SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**19, -(10**4000), 4.0, 1 << 40]),
    st.floats(),
    st.sampled_from(_FRAGMENTS),
    st.text(alphabet=st.characters(), max_size=8),
    st.sampled_from([b"x", {1, 2}, datetime.date(2024, 1, 1), object(), int, "x" * 200_000, "${bits}" * 20_000]),
)
_KEYS: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([*_FRAGMENTS, "select", "modules", "bits", "not", "layers", "shape", "operators", "average"]),
    st.text(max_size=4),
    st.sampled_from([1, None, True, b"x", (1, 2), 1.5]),
)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS | st.builds(_own),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | inner.map(lambda value: {"not": {"not": [value]}})
    ),
    max_leaves=8,
)


@st.composite
def mappings(draw: st.DrawFn) -> dict[Any, Any]:
    """The data of a library recipe with a few values or keys exchanged, added or taken away."""
    data: Any = yaml.safe_load(draw(st.sampled_from(list(LIBRARY.values()))))
    for _ in range(draw(st.integers(1, 4))):
        at = data
        while True:  # down to some list or mapping
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            inner = [key for key in keys if isinstance(at[key], dict | list)]
            if not inner or draw(st.booleans()):
                break
            at = at[draw(st.sampled_from(inner))]
        kind = draw(st.sampled_from(["set", "add", "remove"]))
        if keys and kind != "add":
            key = draw(st.sampled_from(keys))
            if kind == "remove":
                del at[key]
            else:
                at[key] = draw(_VALUES)
        elif isinstance(at, dict):
            at[draw(_KEYS)] = draw(_VALUES)
        else:
            at.append(draw(_VALUES))
        if not isinstance(data, dict):
            break
    return data


def variables() -> st.SearchStrategy[Any]:
    """What may be given as `vars`."""
    names = st.sampled_from(["bits", "group_size", "head_bits", "bitz"]) | _KEYS
    return st.none() | st.dictionaries(names, _VALUES, max_size=2) | _SCALARS


def conditions() -> st.SearchStrategy[str]:
    """Words of conditions in any order."""
    words = ["batch", "avx512", "cores", "4", "0", "9" * 300, "<=", "==", "and", "or", "not", "(", ")", "//", "%", "**"]
    signs = ["*", "-", "~", "x", "'a'", "\0", "\n", "1.5", "1j", "lambda: 1", "[]", "if", "else", ":=", "\ud800", "in"]
    return st.lists(st.sampled_from([*words, *signs]) | st.text(max_size=3), max_size=30).map(" ".join)


def patterns() -> st.SearchStrategy[str]:
    """Globs and regular expressions."""
    signs = [
        "a",
        "*",
        "+",
        "?",
        "(",
        ")",
        "(?:",
        "(?=",
        "(?P<a>",
        "[",
        "]",
        "[^",
        "|",
        "{9}",
        "{1000}",
        "\\1",
        "\\",
        "^",
    ]
    body = st.lists(st.sampled_from([*signs, "$", ".", "(?i)", "\\p{L}", "é", "\0"]) | st.text(max_size=2), max_size=30)
    return st.tuples(st.sampled_from(["", "re:"]), body).map(lambda pair: pair[0] + "".join(pair[1]))
