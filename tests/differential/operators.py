"""Operators as source code: each takes choices and the values so far, and gives an expression over some of them.

A value is exact when every way to compute it gives the same bits: what jumps (comparisons, rounding, casts to integers,
which index is the largest) takes only such values, so that rounding in the last bit is never taken for a wrong answer.
Divisors are kept away from zero, and arguments of logarithms from one, for the same reason.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Value:
    """A variable of the program and what eager has in it."""

    name: str
    tensor: torch.Tensor
    exact: bool = True

    @property
    def floating(self) -> bool:
        return self.tensor.dtype in FLOATS


@dataclass(frozen=True)
class Step:
    """A line of the program. target: None for a statement that updates values in place."""

    source: str
    used: tuple[Value, ...]
    exact: bool
    in_place: bool = False


class Choices:
    """Picks one of many by the next number of a list that hypothesis draws and shrinks; zeros after its end."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers: Iterator[int] = iter(numbers)

    def pick(self, options: Sequence) -> "object":
        return options[next(self._numbers, 0) % len(options)]

    def value(self, values: Sequence[Value], *wanted: Callable[[Value], bool]) -> Value:
        """One of those that have all properties, the youngest for 0; raises `LookupError` when there is none."""
        fitting = [v for v in reversed(values) if all(has(v) for has in wanted)]
        if not fitting:
            raise LookupError("no value fits")
        return fitting[next(self._numbers, 0) % len(fitting)]

    def axis(self, value: Value) -> int:
        return int(str(self.pick(range(-value.tensor.dim(), value.tensor.dim()) or [0])))


def exact(value: Value) -> bool:
    return value.exact


def floating(value: Value) -> bool:
    return value.floating


def boolean(value: Value) -> bool:
    return value.tensor.dtype == torch.bool


def index(value: Value) -> bool:
    return value.tensor.dtype == torch.int64


def number(value: Value) -> bool:
    return value.tensor.dtype != torch.bool


def filled(value: Value) -> bool:
    return value.tensor.numel() > 0


def rank(low: int, high: int = 9) -> Callable[[Value], bool]:
    return lambda value: low <= value.tensor.dim() <= high


def broadcasts(other: Value) -> Callable[[Value], bool]:
    def fits(value: Value) -> bool:
        try:
            torch.broadcast_shapes(value.tensor.shape, other.tensor.shape)
        except RuntimeError:
            return False
        return True

    return fits


def like(other: Value) -> Callable[[Value], bool]:
    return lambda value: value.tensor.shape == other.tensor.shape


SAME_BITS = (
    "{a}.abs()",
    "-{a}",
    "torch.relu({a})",
    "{a}.clamp(-1, 1)",
    "{a}.clamp(min=0)",
    "{a}.clone()",
    "{a}.contiguous()",
    "torch.zeros_like({a})",
    "torch.full_like({a}, 2)",
    "torch.where({a} == {a}, {a}, 0)",
    "{a}.tril() if {a}.dim() > 1 else {a}.flip(0)",
    "{a} if {a}.dim() == 0 else {a}.roll(1, 0)",
)
ROUNDING = (
    "{a} * 0.5",
    "{a} + 1",
    "2 - {a}",
    "{a} / 3",
    "{a} ** 2",
    "{a}.clamp(-4, 4).exp()",
    "torch.log({a}.abs() + 2)",
    "({a}.abs() + 0.5).rsqrt()",
    "{a}.abs().sqrt()",
    "1 / ({a}.abs() + 1)",
    "torch.tanh({a})",
    "torch.sigmoid({a})",
    "torch.sin({a})",
    "torch.cos({a})",
    "torch.erf({a})",
    "F.silu({a})",
    "F.gelu({a})",
    "F.gelu({a}, approximate='tanh')",
    "F.leaky_relu({a}, 0.1)",
    "F.softplus({a})",
)
JUMPING = (
    "{a}.floor()",
    "{a}.round()",
    "{a}.trunc()",
    "{a}.sign()",
    "{a} > 0",
    "~({a} <= 0)",
    "{a} != {a}",
    "torch.isnan({a})",
    "torch.isfinite({a})",
    "torch.logical_not({a})",
    "{a}.nan_to_num(0, 0, 0).clamp(-5, 5).long()",
    "{a}.bool()",
)
BOTH_SAME_BITS = ("torch.maximum({a}, {b})", "torch.minimum({a}, {b})")
BOTH_ROUNDING = ("{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / ({b}.abs() + 1)", "torch.add({a}, {b}, alpha=2)")
BOTH_JUMPING = ("{a} < {b}", "{a} == {b}", "{a} >= {b}", "{a} != {b}")
VIEWS = (
    "{a}.transpose(0, {d})",
    "{a}.unsqueeze({d})",
    "{a}.squeeze()",
    "{a}.flatten()",
    "{a}.reshape(-1)",
    "{a}.reshape({a}.shape[0], -1)",
    "{a}[1:]",
    "{a}[-10::2]",
    "{a}[..., ::2]",
    "{a}[..., :-1]",
    "{a}[0]",
    "{a}[..., None]",
    "{a}[:, None]",
    "{a}.flip({d})",
    "{a}.mT",
    "{a}.narrow({d}, 0, 1)",
    "{a}.chunk(2, {d})[-1]",
    "{a}.split(2, {d})[0]",
    "{a}.tensor_split(2, {d})[1]",
    "{a}.unbind({d})[-1]",
    "{a}.unsqueeze(0).expand(2, *{a}.shape)",
    "{a}.repeat_interleave(2, {d})",
    "{a}.movedim(0, {d})",
    "F.pad({a}, (1, 2))",
    "F.pad({a}, (-1, 1), value=float('inf'))",
)
REDUCTIONS = (
    "{a}.sum({d})",
    "{a}.sum()",
    "{a}.mean({d}, keepdim=True)",
    "{a}.mean()",
    "{a}.cumsum({d})",
    "{a}.softmax({d})",
    "{a}.log_softmax({d})",
    "{a}.logsumexp({d})",
    "{a}.var({d}, correction=0)",
    "{a}.norm(dim={d})",
    "F.layer_norm({a}, {a}.shape[-1:])",
    "F.rms_norm({a}, {a}.shape[-1:])",
    "{a} @ {a}.mT",
    "torch.einsum('...i,...i->...', {a}, {a})",
)
SELECTIONS = (
    "{a}.amax({d})",
    "{a}.amin({d}, keepdim=True)",
    "{a}.max({d}).values",
    "{a}.max()",
    "{a}.sort({d}).values",
)
SELECTED_PLACES = ("{a}.argmax({d})", "{a}.max({d}).indices", "{a}.any({d})", "{a}.all()", "(~{a}.bool()).sum({d})")
CASTS = ("torch.float32", "torch.float64", "torch.bfloat16", "torch.float16")
FACTORIES = (
    "torch.arange({a}.shape[0])",
    "torch.arange({a}.shape[-1], 0, -1)",
    "torch.full((2, 3), float('-inf'))",
    "torch.zeros({a}.shape[0])",
    "torch.ones_like({a}, dtype=torch.bool)",
    "torch.arange(0, 1, 0.3)",
)
INDEXING = (
    "{a}[{i}.remainder({a}.shape[0])]",
    "{a}.index_select({d}, {i}.flatten().remainder({a}.shape[{d}]))",
    "F.embedding({i}.remainder({a}.shape[0]), {a})",
    "{a}.gather(0, {i}.remainder({a}.shape[0]))",
    "{a}[..., {i}.remainder({a}.shape[-1])]",
    "{a}.index_add(0, {i}.flatten().remainder({a}.shape[0]), {a}[{i}.flatten().remainder({a}.shape[0])])",
)
MASKING = ("{a}.masked_fill({m}, 0)", "{a}.masked_fill({m}, float('-inf'))", "torch.where({m}, {a}, -1)")
IN_PLACE = (
    "{a}.zero_()",
    "{a}.relu_()",
    "{a}[..., :1].fill_(3)",
    "{a}[0] = 1",
    "{a}.copy_({a}.flip(0))",
    "{a}.clamp_(-1, 1)",
    "{a}.T.neg_()",
)
IN_PLACE_ROUNDING = ("{a}.add_(1)", "{a}.mul_(0.5)", "{a}[..., 1:] *= 2", "{a}.sub_({b})", "{a}.copy_({b})")
ATTENTION = (
    "F.scaled_dot_product_attention({a}, {a}, {a})",
    "F.scaled_dot_product_attention({a}, {a}, {a}, is_causal=True)",
    "F.scaled_dot_product_attention({a}, {b}, {b}, scale=0.5)",
)


def unary(
    templates: Sequence[str], keeps: bool, *wanted: Callable[[Value], bool], in_place: bool = False
) -> "Operator":
    """An operator on one value; `keeps`: exact results for exact values."""

    def step(choices: Choices, values: Sequence[Value]) -> Step:
        a = choices.value(values, *wanted)
        source = str(choices.pick(templates)).format(a=a.name, d=choices.axis(a))
        return Step(source, (a,), keeps and a.exact, in_place)

    return step


def binary(
    templates: Sequence[str],
    keeps: bool,
    fits: Callable[[Value], Callable[[Value], bool]],
    *wanted: Callable,
    **more: bool,
) -> "Operator":
    """An operator on two values, the second as `fits` asks."""

    def step(choices: Choices, values: Sequence[Value]) -> Step:
        a = choices.value(values, *wanted)
        b = choices.value(values, fits(a), *wanted)
        source = str(choices.pick(templates)).format(a=a.name, b=b.name)
        return Step(source, (a, b), keeps and a.exact and b.exact, **more)

    return step


def cast(choices: Choices, values: Sequence[Value]) -> Step:
    a = choices.value(values, floating)
    return Step(f"{a.name}.to({choices.pick(CASTS)})", (a,), a.exact)


def index_with(choices: Choices, values: Sequence[Value]) -> Step:
    a, i = choices.value(values, rank(1), filled), choices.value(values, index)
    source = str(choices.pick(INDEXING)).format(a=a.name, i=i.name, d=choices.axis(a))
    return Step(source, (a, i), a.exact and "add" not in source)


def mask(choices: Choices, values: Sequence[Value]) -> Step:
    m = choices.value(values, boolean)
    a = choices.value(values, floating, broadcasts(m))
    return Step(str(choices.pick(MASKING)).format(a=a.name, m=m.name), (a, m), a.exact)


def join(choices: Choices, values: Sequence[Value]) -> Step:
    a = choices.value(values, rank(1))
    b, c = choices.value(values, like(a)), choices.value(values, like(a))
    function = choices.pick(("cat", "stack"))
    together = (a, b, c)
    names = ", ".join(v.name for v in together)
    return Step(f"torch.{function}(({names}), {choices.axis(a)})", together, all(v.exact for v in together))


def multiply(choices: Choices, values: Sequence[Value]) -> Step:
    a = choices.value(values, floating, rank(1))
    b = choices.value(values, floating, rank(2, 2), lambda v: v.tensor.shape[-1] == a.tensor.shape[-1])
    template = choices.pick(
        ("F.linear({a}, {b})", "{a} @ {b}.T", "torch.matmul({b}, {a}.mT if {a}.dim() > 1 else {a})")
    )
    return Step(str(template).format(a=a.name, b=b.name), (a, b), False)


Operator = Callable[[Choices, Sequence[Value]], Step]
OPERATORS: dict[str, Operator] = {
    "pointwise": unary(ROUNDING, False, floating),
    "same bits": unary(SAME_BITS, True, number),
    "jump": unary(JUMPING, True, floating, exact),
    "two": binary(BOTH_ROUNDING, False, broadcasts),
    "larger": binary(BOTH_SAME_BITS, True, broadcasts),
    "compare": binary(BOTH_JUMPING, True, broadcasts, exact),
    "view": unary(VIEWS, True),
    "view again": unary(VIEWS, True, rank(2)),
    "reduce": unary(REDUCTIONS, False, floating),
    "reduce integers": unary(REDUCTIONS[:5], True, lambda v: not v.floating),
    "select": unary(SELECTIONS, True, number, rank(1)),
    "place": unary(SELECTED_PLACES, True, exact, rank(1)),
    "cast": cast,
    "make": unary(FACTORIES, True, rank(1)),
    "index": index_with,
    "mask": mask,
    "join": join,
    "multiply": multiply,
    "attention": binary(ATTENTION, False, like, floating, rank(3, 4)),
    "in place": unary(IN_PLACE, True, number, rank(1), in_place=True),
    "in place with another": binary(IN_PLACE_ROUNDING, False, broadcasts, floating, rank(1), in_place=True),
}
"""Kind -> operator; an operator raises `LookupError` when no value fits."""
