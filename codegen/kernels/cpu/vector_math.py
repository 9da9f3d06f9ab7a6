"""Elementary functions on float32 TIR vectors, without the scalar call a lane that LLVM makes of libm's functions.

Every function takes and returns an expression of type `float32x{lanes}` and may bind intermediate values in the
statement that is being built, because TIR is generated as a tree: what is used twice unbound is compiled twice.
Cody-Waite reduction and the minimax polynomials are those of the Cephes library (Moshier), the tail of erf is
Abramowitz and Stegun 7.1.26.
"""

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script import tirx as T
from tvm.script.ir_builder import tirx as builder

from ...targets.cpu.isa import Expr, half

ROUND_MAGIC = 12582912.0
"""1.5 * 2**23: adding it to |x| < 2**22 leaves round-to-nearest-even(x) in the low bits of the sum, on every ISA."""
_ROUND_MAGIC_BITS = 0x4B400000


def constant(value: float, lanes: int) -> Expr:
    """`value` in every lane."""
    return T.float32(value) if lanes == 1 else T.broadcast(T.float32(value), lanes)


def constants(values: Sequence[float], dtype: str) -> Expr:
    """A vector of `values`."""
    return T.Shuffle([tirx.const(value, dtype) for value in values], list(range(len(values))))


def integer(value: int, lanes: int) -> Expr:
    """int32 `value` in every lane."""
    return T.int32(value) if lanes == 1 else T.broadcast(T.int32(value), lanes)


def vector_type(element: str, lanes: int) -> str:
    """`float32x16`, or `float32` for one lane."""
    return element if lanes == 1 else f"{element}x{lanes}"


def reduce_lanes(combine: Callable[[Expr, Expr], Expr], vector: Expr, element: str, lanes: int) -> Expr:
    """The scalar that `combine` (associative, commutative) makes of all lanes (a power of two), as a tree."""
    while lanes > 2:
        lanes //= 2
        vector = combine(*(half(vector, vector_type(element, lanes), high) for high in (False, True)))
    # Not `half`: LLVM would make vectors of one lane, which casts to float16 reject.
    return combine(*(tirx.Shuffle([vector], [T.int32(lane)]) for lane in range(2)))


def sums_of_lanes(vectors: Sequence[Expr]) -> Expr:
    """float32x16 whose lane i is the sum of the lanes of `vectors[i]`, 16 of float32x16.

    A tree over pairs: each level adds the two halves of every vector and leaves half as many vectors."""
    values = [vectors[number] for number in _LEAVES]
    for first, second in _PAIR_SUMS:
        bound = [T.bind(value) for value in values]
        pairs = zip(bound[::2], bound[1::2], strict=True)
        values = [T.Shuffle([a, b], list(first)) + T.Shuffle([a, b], list(second)) for a, b in pairs]
    return values[0]


def _pair_sums() -> list[tuple[list[int], list[int]]]:
    """Which lanes of two vectors are added, level by level: halves, which cost 256-bit registers no instruction, then
    within 128 bits, then across."""
    halves = [lane + 8 * (lane // 8) for lane in range(16)]
    blocks = [lane % 4 + 8 * (lane // 4) for lane in range(16)]

    def quads(*chosen: int) -> list[int]:
        return [start + 4 * q + lane for q in range(4) for start in (0, 16) for lane in chosen]

    return [
        (halves, [lane + 8 for lane in halves]),
        (quads(0, 1), quads(2, 3)),
        (quads(0, 2), quads(1, 3)),
        (blocks, [lane + 4 for lane in blocks]),
    ]


def _leaves() -> list[int]:
    """The order of vectors at which the sums come out in order."""
    values = [[number] * 16 for number in range(16)]
    for first, _ in _PAIR_SUMS:
        values = [[(a + b)[lane] for lane in first] for a, b in zip(values[::2], values[1::2], strict=True)]
    return [values[0].index(number) for number in range(16)]


_PAIR_SUMS = _pair_sums()
_LEAVES = _leaves()


def widened(value: Expr, lanes: int) -> Expr:
    """A half-precision value as float32. bfloat16 goes through a buffer: TVM overlooks it in values that `T.bind`
    names."""
    wide = T.Cast(vector_type("float32", lanes), value)
    if not str(value.ty.dtype).startswith("bfloat16"):
        return wide
    own = builder.alloc_buffer((lanes,), "float32")
    place = [0 if lanes == 1 else T.ramp(0, 1, lanes)]
    builder.buffer_store(own, wide, place)
    return own[tuple(place)]


def round_to_int(x: Expr, lanes: int) -> Expr:
    """Nearest int32, ties to even, of |x| < 2**22."""
    shifted = x + constant(ROUND_MAGIC, lanes)
    return T.reinterpret(vector_type("int32", lanes), shifted) - integer(_ROUND_MAGIC_BITS, lanes)


def rounded(x: Expr, dtype: str, lanes: int) -> Expr:
    """float32 rounded to `dtype` (to nearest, ties to even) and back.

    Not by two casts for bfloat16: TVM's legalisation takes a cast there and back for no operation and drops both."""
    if dtype == "float32":
        return x
    if dtype != "bfloat16":
        return T.Cast(vector_type("float32", lanes), T.Cast(vector_type(dtype, lanes), x))
    bits = T.bind(T.reinterpret(vector_type("int32", lanes), x))
    odd = (bits >> integer(16, lanes)) & integer(1, lanes)
    nearest = (bits + integer(0x7FFF, lanes) + odd) & integer(-0x10000, lanes)
    return T.reinterpret(vector_type("float32", lanes), nearest)


def _polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Horner's rule, highest coefficient first."""
    total = constant(coefficients[0], lanes)
    for c in coefficients[1:]:
        total = total * x + constant(c, lanes)
    return total


def exp(x: Expr, lanes: int) -> Expr:
    """e**x, relative error below 3e-7; 0 below -87.7 (results would be subnormal), infinity above 88.4."""
    x = T.bind(T.max(T.min(x, constant(89.0, lanes)), constant(-88.0, lanes)))
    n = T.bind(round_to_int(x * constant(1.44269504088896341, lanes), lanes))
    n_float = T.bind(T.Cast(vector_type("float32", lanes), n))
    r = T.bind(x - n_float * constant(0.693359375, lanes) - n_float * constant(-2.12194440e-4, lanes))
    coefficients = (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
    mantissa = _polynomial(r, coefficients, lanes) * r * r + r + constant(1.0, lanes)
    power = T.reinterpret(vector_type("float32", lanes), T.shift_left(n + integer(127, lanes), integer(23, lanes)))
    return mantissa * power


def sigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e**-x)."""
    return constant(1.0, lanes) / (constant(1.0, lanes) + exp(constant(0.0, lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """Hyperbolic tangent, relative error below 5e-7."""
    x = T.bind(x)
    one, magnitude, square = constant(1.0, lanes), absolute(x, lanes), T.bind(x * x)
    coefficients = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
    small = x * square * _polynomial(square, coefficients, lanes) + x
    decay = T.bind(exp(constant(-2.0, lanes) * magnitude, lanes))
    large = _with_sign_of(x, (one - decay) / (one + decay), lanes)
    return T.Select(magnitude < constant(0.625, lanes), small, large)


def erf(x: Expr, lanes: int) -> Expr:
    """Error function, absolute error below 3e-7."""
    x = T.bind(x)
    one, magnitude = constant(1.0, lanes), absolute(x, lanes)
    near = (7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2,
            1.128358514861418e-1, -3.761262582423300e-1, 1.128379165726710)  # fmt: skip
    small = x * _polynomial(T.bind(x * x), near, lanes)
    t = T.bind(one / (one + constant(0.3275911, lanes) * magnitude))
    tail = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    decay = exp(constant(0.0, lanes) - x * x, lanes)
    large = _with_sign_of(x, one - t * _polynomial(t, tail, lanes) * decay, lanes)
    return T.Select(magnitude < one, small, large)


def silu(x: Expr, lanes: int) -> Expr:
    """`x * sigmoid(x)`."""
    x = T.bind(x)
    return x / (constant(1.0, lanes) + exp(constant(0.0, lanes) - x, lanes))


def gelu(x: Expr, lanes: int) -> Expr:
    """PyTorch's `gelu`: `x / 2 * (1 + erf(x / sqrt(2)))`."""
    x = T.bind(x)
    return constant(0.5, lanes) * x * (constant(1.0, lanes) + erf(x * constant(0.70710678118654752, lanes), lanes))


def gelu_tanh(x: Expr, lanes: int) -> Expr:
    """PyTorch's `gelu(approximate="tanh")`."""
    x = T.bind(x)
    inner = constant(0.79788456080286536, lanes) * (x + constant(0.044715, lanes) * x * x * x)
    return constant(0.5, lanes) * x * (constant(1.0, lanes) + tanh(inner, lanes))


def relu(x: Expr, lanes: int) -> Expr:
    """`max(x, 0)`; NaN stays."""
    x = T.bind(x)
    return T.Select(x < constant(0.0, lanes), constant(0.0, lanes), x)


ACTIVATIONS: dict[str, Callable[[Expr, int], Expr]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
}
"""The functions of `ir.ops.gate.ACTIVATIONS`."""


def absolute(x: Expr, lanes: int) -> Expr:
    bits = T.reinterpret(vector_type("int32", lanes), x) & integer(0x7FFFFFFF, lanes)
    return T.reinterpret(vector_type("float32", lanes), bits)


def _with_sign_of(sign: Expr, x: Expr, lanes: int) -> Expr:
    """`x` >= 0 with the sign of `sign`."""
    word = vector_type("int32", lanes)
    bits = T.reinterpret(word, x) | (T.reinterpret(word, sign) & integer(-(2**31), lanes))
    return T.reinterpret(vector_type("float32", lanes), bits)
