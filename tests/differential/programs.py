"""Random programs over tensors, as Python source: eager, lutra and who reads of a failure run the same text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F

from .operators import OPERATORS, Choices, Value

SHAPES = (
    (3,),
    (),
    (1,),
    (0,),
    (2, 3),
    (5, 7),
    (1, 16),
    (4, 0),
    (16, 32),
    (3, 1, 5),
    (2, 4, 6),
    (1, 3, 8, 16),
    (2, 2, 33),
)
"""Of inputs: 0, 1, odd extents and multiples of vectors."""
MAKERS = {
    "float32": "torch.randn({shape})",
    "float64": "torch.randn({shape}, dtype=torch.float64)",
    "bfloat16": "torch.randn({shape}).bfloat16()",
    "float16": "torch.randn({shape}).half()",
    "int64": "torch.randint(-5, 6, {shape})",
    "int32": "torch.randint(-5, 6, {shape}, dtype=torch.int32)",
    "uint8": "torch.randint(0, 9, {shape}, dtype=torch.uint8)",
    "bool": "torch.rand({shape}) < 0.5",
}
SPECIALS = ("", "", "nan", "inf", "-inf", "-0.0", "0.0", "1e-30")
"""What every fifth value of a floating-point input is set to."""
LAYOUTS = ("{m}", "{m}.mT.contiguous().mT", "{m}[..., ::2]", "{m}[..., 1:]", "{m}[1:]", "{m}[:1].expand({m}.shape)")
ALIASES = ("{other}", "{other}[..., 1:]", "{other}.mT", "{other}[:1]")
GROWN = "lambda *sizes: [n + grow if n > 1 else n for n in sizes]"
LARGEST = 1e3
"""Steps with larger results are left out: float16 would overflow in one order of operations and not in another."""


@dataclass(frozen=True)
class Program:
    """`inputs(grow)` makes the arguments and the memory that they lie in, with `grow` added to every size but 0 and 1;
    `program(*arguments)` computes. `dynamic`: compiled for any sizes, and called with two sets of them."""

    prepare: tuple[str, ...]
    arguments: tuple[str, ...]
    body: tuple[str, ...]
    results: tuple[str, ...]
    dynamic: bool = False

    def source(self) -> str:
        """Two functions, `inputs` and `program`."""
        owners = sorted({line.split()[0] for line in self.prepare if line.startswith("m") and "view" not in line})
        comma = "," if len(self.arguments) == 1 else ""
        lines = [
            "def inputs(grow):",
            f"    grown = {GROWN}",
            *(f"    {line}" for line in ("torch.manual_seed(0)", *self.prepare)),
            f"    return ({', '.join(self.arguments)}{comma}), [{', '.join(owners)}]",
            "",
            "",
            f"def program({', '.join(self.arguments)}):",
            *(f"    {line}" for line in self.body),
            f"    return [{', '.join(self.results)}]",
        ]
        return "\n".join(lines) + "\n"

    def script(self) -> str:
        """A file that runs alone and shows both answers."""
        options = ", dynamic=True" if self.dynamic else ""
        return f"""import torch
import torch.nn.functional as F


{self.source()}

compiled = torch.compile(program, backend="lutra"{options})
for grow in {self.calls}:
    with torch.no_grad():
        (arguments, memory), (same, other_memory) = inputs(grow), inputs(grow)
        eager, lutra = program(*arguments), compiled(*same)
    for name, want, got in zip({list(self.results)}, eager, lutra):
        print(name, "eager", want, "lutra", got, sep="\\n")
    for want, got in zip(memory, other_memory):
        print("memory of an input", "eager", want, "lutra", got, sep="\\n")
    for want, got in zip(eager, lutra):  # the next call gives new ones
        if isinstance(want, torch.Tensor) and want.is_contiguous():
            want.fill_(1)
            got.fill_(1)
"""

    @property
    def calls(self) -> tuple[int, ...]:
        """What is added to sizes, call by call."""
        return (0, 0, 1, 1) if self.dynamic else (0, 0)

    def functions(self) -> tuple[Any, Any]:
        names: dict[str, Any] = {"torch": torch, "F": F}
        exec(compile(self.source(), "<random program>", "exec"), names)
        return names["inputs"], names["program"]


@dataclass(frozen=True)
class Input:
    """maker, special, layout: keys and indices of the tables above. alias: that of an earlier input, by this way."""

    shape: tuple[int, ...]
    maker: str
    special: str
    layout: str
    alias: str | None


inputs = st.builds(
    Input,
    st.sampled_from(SHAPES),
    st.sampled_from(["float32"] * 8 + list(MAKERS)),
    st.sampled_from(SPECIALS),
    st.sampled_from((LAYOUTS[0],) * 4 + LAYOUTS),
    st.sampled_from((None,) * 9 + ALIASES),
)
steps = st.tuples(st.sampled_from(sorted(OPERATORS)), st.lists(st.integers(0, 63), min_size=5, max_size=5))


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Programs that eager runs: steps that it refuses are left out."""
    drawn_inputs = draw(st.lists(inputs, min_size=1, max_size=3))
    drawn_steps = draw(st.lists(steps, min_size=1, max_size=14))
    return assembled(drawn_inputs, drawn_steps, dynamic=draw(st.integers(0, 4)) == 4)


def assembled(inputs: Sequence[Input], steps: Sequence[tuple[str, Sequence[int]]], dynamic: bool = False) -> Program:
    """The program of those choices."""
    prepare: list[str] = []
    names: dict[str, Any] = {"torch": torch, "F": F, "grown": lambda *sizes: list(sizes)}
    arguments: list[str] = []
    torch.manual_seed(0)
    with torch.no_grad():
        for number, given in enumerate(inputs):
            name = f"x{number}"
            memory, ways = _input_lines(number, given, arguments)
            prepare += [line for line in memory if _runs(line, names)]
            prepare.append(next(line for line in ways if _runs(line, names)))
            arguments.append(name)
        values = [Value(name, names[name]) for name in arguments]
        body, results = _body(steps, values, names)
    return Program(tuple(prepare), tuple(arguments), tuple(body), tuple(results), dynamic)


def _input_lines(number: int, given: Input, earlier: Sequence[str]) -> tuple[list[str], list[str]]:
    """Statements that make the memory of an input, and ways to make the input of it: the last one always runs."""
    name, memory = f"x{number}", f"m{number}"
    shape = f"grown({', '.join(map(str, given.shape))})"
    lines = [f"{memory} = {MAKERS[given.maker].format(shape=shape)}"]
    if given.special and given.maker in ("float32", "float64", "bfloat16", "float16"):
        lines.append(f"{memory}.view(-1)[::5] = float('{given.special}')")
    if given.alias is not None and earlier:
        ways = [given.alias.format(other=earlier[number % len(earlier)]), earlier[0]]
    else:
        ways = [given.layout.format(m=memory), memory]
    return lines, [f"{name} = {way}" for way in ways]


def _runs(line: str, names: dict[str, Any]) -> bool:
    try:
        exec(line, names)
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
        return False
    return True


def _body(
    steps: Sequence[tuple[str, Sequence[int]]], values: list[Value], names: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """Lines that eager runs, and the values that no line uses."""
    lines: list[str] = []
    used: set[str] = set()
    for kind, numbers in steps:
        try:
            step = OPERATORS[kind](Choices(numbers), values)
        except LookupError:
            continue
        target = f"v{len(lines)}"
        line = step.source if step.in_place else f"{target} = {step.source}"
        if not _runs(line, names):
            continue
        result = names.get(target, step.used[0].tensor)
        if not isinstance(result, torch.Tensor) or _too_large(result):
            if step.in_place:
                lines.append(line)
                break
            del names[target]
            continue
        lines.append(line)
        if step.in_place:
            for value in values:
                value.exact &= step.exact
            continue
        used |= {value.name for value in step.used}
        values.append(Value(target, result, step.exact))
    return lines, [v.name for v in values if v.name.startswith("v") and v.name not in used] or [values[0].name]


def _too_large(tensor: torch.Tensor) -> bool:
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor
    return bool(finite.numel() and finite.double().abs().max() > LARGEST)
