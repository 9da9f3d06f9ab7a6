"""Elementwise operators and casts agree with torch: NaN, infinities, zeros of both signs, subnormals, extremes."""

import math

import pytest
import torch
from torch.nn import functional as F

NAN, INF = math.nan, math.inf
SPECIAL = [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3e-42, -3e-42, 1e-38, 88.5, 89.5, -88.5,
           100.0, -100.0, 1e4, -1e4, 8388609.0, 1e30, -1e30, 3.4e38, -3.4e38]  # fmt: skip
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]


def pairs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Every special value beside every other, and random ones."""
    values = torch.tensor(SPECIAL, dtype=torch.float64).to(dtype)
    a, b = torch.cartesian_prod(values, values).unbind(1)
    noise = torch.randn(2, 301).to(dtype)
    return torch.cat([a, noise[0]]), torch.cat([b, noise[1]])


COMPARISONS = {
    "x != x": lambda x, y: x != x,
    "x == x": lambda x, y: x == x,
    "x == x.clone()": lambda x, y: x == x.clone(),
    "x <= x": lambda x, y: x <= x,
    "x >= x": lambda x, y: x >= x,
    "x != x + 0": lambda x, y: x != x + 0,
    "==": lambda x, y: x == y,
    "!=": lambda x, y: x != y,
    "<": lambda x, y: x < y,
    "<=": lambda x, y: x <= y,
    ">": lambda x, y: x > y,
    ">=": lambda x, y: x >= y,
    "x < 0": lambda x, y: x < 0,
    "x <= 0.1": lambda x, y: x <= 0.1,
    "x == nan": lambda x, y: x == NAN,
    "x < inf": lambda x, y: x < INF,
    "not <": lambda x, y: ~(x < y),
    "not <=": lambda x, y: ~(x <= 0),
    "not >": lambda x, y: torch.logical_not(x > 0),
    "not !=": lambda x, y: ~(x != y),
    "bool": lambda x, y: x.bool(),
    "logical_not": lambda x, y: torch.logical_not(x),
    "logical_and": lambda x, y: torch.logical_and(x, y),
    "logical_or": lambda x, y: torch.logical_or(x, x != y),
    "logical_xor": lambda x, y: torch.logical_xor(x, y),
    "where x != x": lambda x, y: torch.where(x != x, 0.0, x),
    "where not <": lambda x, y: torch.where(~(x < y), x, y),
    "where -inf": lambda x, y: torch.where(x > 0, x, -INF),
    "where nan": lambda x, y: torch.where(x > 0, NAN, y),
    "masked_fill": lambda x, y: x.masked_fill(x != x, 0),
    "masked_fill -inf": lambda x, y: x.masked_fill(y > x, -INF),
    "where of tensors": lambda x, y: torch.where(x != x, torch.zeros_like(x), x),
}

ARITHMETIC = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "x - x": lambda x, y: x - x,
    "(x + 1) - (x + 1)": lambda x, y: (x + 1) - (x + 1),
    "x * 2 - x": lambda x, y: x * 2 - x,
    "x / x": lambda x, y: x / x,
    "x * 0": lambda x, y: x * 0,
    "x + 0": lambda x, y: x + 0,
    "0 - x": lambda x, y: 1 / (0 - x),
    "-x": lambda x, y: 1 / -x,
    "x * -0.": lambda x, y: 1 / (x * -0.0),
    "0 / x": lambda x, y: 0 / x,
    "x / 0": lambda x, y: x / 0,
    "0.1 x": lambda x, y: 0.1 * x,
    "x + 0.1": lambda x, y: x + 0.1,
    "x - 1.1": lambda x, y: x - 1.1,
    "1.1 - x": lambda x, y: 1.1 - x,
    "x / 1.1": lambda x, y: x / 1.1,
    "chain": lambda x, y: (x / 1.1 + 0.3) / y - 0.7,
    "x + nan": lambda x, y: x + torch.full_like(x, NAN),
    "x - inf": lambda x, y: x - INF,
    "x + 1e40": lambda x, y: x + 1e40,
    "alpha": lambda x, y: torch.add(x, y, alpha=2),
    "0-dim": lambda x, y: (x * torch.tensor(1.1)) + torch.tensor(0.3, dtype=torch.float64),
    "maximum": lambda x, y: torch.maximum(x, y),
    "minimum": lambda x, y: torch.minimum(x, y),
    "maximum nan": lambda x, y: torch.maximum(x, torch.full_like(x, NAN)),
    "maximum 0-dim": lambda x, y: torch.maximum(x, torch.tensor(1.1)),
    "fmax": lambda x, y: torch.fmax(x, y),
    "clamp": lambda x, y: x.clamp(-1, 1.1),
    "clamp_min": lambda x, y: x.clamp(min=0.3),
    "clamp max < min": lambda x, y: x.clamp(2, 1),
    "clamp nan": lambda x, y: x.clamp(NAN, 1),
    "clamp tensors": lambda x, y: torch.clamp(x, y, y + 1),
    "clamp max tensor": lambda x, y: torch.clamp(x, max=y),
    "relu": lambda x, y: F.relu(x),
    "relu6": lambda x, y: F.relu6(x),
    "hardtanh": lambda x, y: F.hardtanh(x),
    "leaky_relu": lambda x, y: F.leaky_relu(x),
    "threshold": lambda x, y: F.threshold(x, 0.1, 20.0),
    "abs": lambda x, y: x.abs(),
    "floor": lambda x, y: x.floor(),
    "ceil": lambda x, y: x.ceil(),
    "round": lambda x, y: x.round(),
    "sign": lambda x, y: x.sign(),
    "sqrt": lambda x, y: x.sqrt(),
    "reciprocal": lambda x, y: x.reciprocal(),
    "square": lambda x, y: x**2,
    "cube": lambda x, y: x**3,
}

FUNCTIONS = {
    "exp": torch.exp,
    "log": torch.log,
    "rsqrt": torch.rsqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "erf": torch.erf,
    "silu": F.silu,
    "softplus": F.softplus,
    "log of negative": lambda x: torch.log(-x),
    "fourth": lambda x: x**4,
    "sqrt power": lambda x: x**0.5,
    "x ** -1": lambda x: x**-1.0,
    "x ** -0.5": lambda x: x**-0.5,
}


@pytest.mark.parametrize("dtype", FLOATS)
def test_comparisons_know_nan(agree, dtype: torch.dtype):
    agree(COMPARISONS, *pairs(dtype), ulps=0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_arithmetic_is_torchs_to_the_last_bit(agree, dtype: torch.dtype):
    agree(ARITHMETIC, *pairs(dtype), ulps=1 if dtype is torch.float32 else 0)


@pytest.mark.parametrize("dtype", FLOATS)
def test_functions_have_the_right_limits(agree, dtype: torch.dtype):
    agree(FUNCTIONS, pairs(dtype)[0], ulps=8 if dtype is torch.float32 else 1)


@pytest.mark.parametrize("dtype", FLOATS[:1])
def test_trigonometric_functions_and_gelu(agree, dtype: torch.dtype):
    """Of +inf torch's vectors make NaN in gelu, its scalars inf: left out."""
    moderate = torch.cat([torch.randn(500) * 4, torch.tensor([NAN, 0.0, -0.0, -100.0, 50.0])]).to(dtype)
    agree({"sin": torch.sin, "cos": torch.cos, "sin of extremes": lambda x: torch.sin(x * INF)}, moderate, ulps=32)
    agree(
        {"gelu": lambda x: F.gelu(x) + 1, "gelu tanh": lambda x: F.gelu(x, approximate="tanh") + 1}, moderate, ulps=16
    )


def test_tanh_is_as_exact_near_zero(agree):
    x = torch.cat([torch.logspace(-30, 1, 2000), torch.linspace(0, 0.3, 3001)])
    agree({"tanh": lambda x: torch.tanh(x), "of negatives": lambda x: torch.tanh(-x)}, x, ulps=4)


def test_a_cast_that_the_user_wrote_is_kept(agree):
    x = torch.cat([pairs(torch.float32)[0], torch.randn(1000), torch.randn(500) * 1e4, torch.randn(500) * 1e-7])
    # every NaN is one, whatever its bits
    bits = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7F7FFFFF], dtype=torch.int32).view(torch.float32)
    half = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    there = {f"{d} and back": lambda x, d=d: x.to(d).float() for d in half}
    chain = {f"{d} in a chain": lambda x, d=d: ((x.to(d) * 1.5).float() + 0.1).to(d).float() * 3 for d in half[:2]}
    double = {"float32 of float64": lambda x: (x.double() / 3).float().double()}
    stored = {f"{d} kept": lambda x, d=d: x.to(d) for d in half[:2]}
    agree(there | chain | double | stored, torch.cat([x, bits]), ulps=0)


def test_conversions_between_all_types(agree):
    numbers = torch.tensor([0.0, -0.0, 1.5, -1.5, 127.9, 128.0, 200.0, 255.5, 256.0, 300.0, -1.0, -129.0, -200.0])
    x = torch.cat([numbers, torch.tensor([65535.0, 1e9, -1e9, 16777217.0]), torch.rand(64) * 1000 - 500])
    integers = torch.tensor([0, 1, -1, 127, 128, 255, 256, 2**24 + 1, 2**31 - 1, -(2**31), 2**31, 2**53 + 1, 2**63 - 1])
    types = [*FLOATS, *INTEGERS, torch.bool]
    agree({f"float to {d}": lambda x, i, d=d: x.to(d) for d in types}
        | {f"float64 to {d}": lambda x, i, d=d: x.double().to(d) for d in types}
        | {f"half to {d}": lambda x, i, d=d: x.clamp(-6e4, 6e4).half().to(d) for d in types}
        | {f"int64 to {d}": lambda x, i, d=d: i.to(d) for d in types}
        | {f"uint8 to {d}": lambda x, i, d=d: i.to(torch.uint8).to(d) for d in types}
        | {f"bool to {d}": lambda x, i, d=d: (x > 0).to(d) for d in types}, x, integers, ulps=0)  # fmt: skip


def test_a_nan_that_becomes_an_integer(agree):
    x = torch.tensor([NAN, INF, -INF, 3e9, 1e20])
    agree({str(d): lambda x, d=d: x.to(d) for d in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)}, x)


def test_integers_and_bools_follow_torchs_types(agree):
    i64 = torch.tensor([0, 1, -1, 7, -8, 2**31, 2**53 + 1, 2**62, -(2**63), 2**63 - 1])
    u8 = torch.tensor([0, 1, 2, 7, 100, 127, 128, 200, 254, 255], dtype=torch.uint8)
    b, f = torch.tensor([True, False] * 5), torch.randn(10)
    zero_dim, zero_dim_float = torch.tensor(3), torch.tensor(1.5, dtype=torch.float64)
    expressions = {
        "bool + bool": lambda i, u, b, f, z, zf: b + b,
        "bool + True": lambda i, u, b, f, z, zf: b + True,
        "bool * bool": lambda i, u, b, f, z, zf: b * b.flip(0),
        "bool + 2": lambda i, u, b, f, z, zf: b + 2,
        "bool / bool": lambda i, u, b, f, z, zf: b / b,
        "bool * 0.5": lambda i, u, b, f, z, zf: b * 0.5,
        "bool < bool": lambda i, u, b, f, z, zf: b < b.flip(0),
        "bool & ~bool": lambda i, u, b, f, z, zf: b & ~b.flip(0) | (b ^ b),
        "maximum of bools": lambda i, u, b, f, z, zf: torch.maximum(b, b.flip(0)),
        "minimum of bools": lambda i, u, b, f, z, zf: torch.minimum(b, b.flip(0)),
        "int + 1 > int": lambda i, u, b, f, z, zf: i + 1 > i,
        "int32 + 1 > int32": lambda i, u, b, f, z, zf: i.int() + 1 > i.int(),
        "int * int": lambda i, u, b, f, z, zf: i * i,
        "int - int": lambda i, u, b, f, z, zf: i - i.flip(0),
        "-int": lambda i, u, b, f, z, zf: -i,
        "1 - int": lambda i, u, b, f, z, zf: 1 - i,
        "abs": lambda i, u, b, f, z, zf: i.abs(),
        "int / int": lambda i, u, b, f, z, zf: i / 3,
        "int / 0": lambda i, u, b, f, z, zf: i / (i - i),
        "int // 3": lambda i, u, b, f, z, zf: i // 3,
        "int // -3": lambda i, u, b, f, z, zf: i // -3,
        "int % 3": lambda i, u, b, f, z, zf: i % 3,
        "int % -3": lambda i, u, b, f, z, zf: i % -3,
        "fmod": lambda i, u, b, f, z, zf: torch.fmod(i, 3),
        "int ** 2": lambda i, u, b, f, z, zf: i**2,
        "uint8 ** 3": lambda i, u, b, f, z, zf: u**3,
        "uint8 + 300": lambda i, u, b, f, z, zf: u + 300,
        "uint8 - 1": lambda i, u, b, f, z, zf: u - 1,
        "uint8 < -1": lambda i, u, b, f, z, zf: u < -1,
        "int8 == 300": lambda i, u, b, f, z, zf: u.to(torch.int8) == 300,
        "int32 + 2**40": lambda i, u, b, f, z, zf: i.int() + 2**40,
        "uint8 * 2": lambda i, u, b, f, z, zf: u * 2,
        "-uint8": lambda i, u, b, f, z, zf: -u,
        "uint8 + int8": lambda i, u, b, f, z, zf: u + u.to(torch.int8),
        "int64 + uint8": lambda i, u, b, f, z, zf: i + u,
        "int + float": lambda i, u, b, f, z, zf: i + f,
        "int + half": lambda i, u, b, f, z, zf: i * f.half(),
        "int > float": lambda i, u, b, f, z, zf: i > i.float(),
        "int == float64": lambda i, u, b, f, z, zf: i == i.double(),
        "int < 2**53 float": lambda i, u, b, f, z, zf: i < 9007199254740993.0,
        "int >= big": lambda i, u, b, f, z, zf: i >= 2**53 + 1,
        "int32 < int64": lambda i, u, b, f, z, zf: i.int() < i,
        "0-dim int": lambda i, u, b, f, z, zf: u + z,
        "0-dim float64": lambda i, u, b, f, z, zf: f + zf,
        "int + 0-dim float": lambda i, u, b, f, z, zf: i + zf,
        "half * 0-dim float": lambda i, u, b, f, z, zf: f.half() * zf,
        "maximum of ints": lambda i, u, b, f, z, zf: torch.maximum(i, i.flip(0)),
        "maximum of types": lambda i, u, b, f, z, zf: torch.maximum(u, i),
        "clamp": lambda i, u, b, f, z, zf: i.clamp(-3, 5),
        "clamp by floats": lambda i, u, b, f, z, zf: i.clamp(-0.5, 2.5),
        "where": lambda i, u, b, f, z, zf: torch.where(b, i, u),
        "where of types": lambda i, u, b, f, z, zf: torch.where(b, f, u),
        "where scalars": lambda i, u, b, f, z, zf: torch.where(b, 1, 0.5),
        "where uint8 scalar": lambda i, u, b, f, z, zf: torch.where(b, u, 5),
        "where 0-dim": lambda i, u, b, f, z, zf: torch.where(b, f.half(), zf),
        "masked_fill int": lambda i, u, b, f, z, zf: i.masked_fill(b, -1),
        "masked_fill by float": lambda i, u, b, f, z, zf: i.masked_fill(b, 1.5),
        "masked_fill 0-dim": lambda i, u, b, f, z, zf: u.masked_fill(b, z),
        "masked_fill broadcast": lambda i, u, b, f, z, zf: f.masked_fill(b[:, None], 1),
        "alpha": lambda i, u, b, f, z, zf: torch.add(i, u, alpha=3),
        "logical_not of int": lambda i, u, b, f, z, zf: torch.logical_not(i) | torch.logical_xor(u, i),
        "sqrt of int": lambda i, u, b, f, z, zf: torch.sqrt(u),
        "sigmoid of bool": lambda i, u, b, f, z, zf: torch.sigmoid(b),
    }
    agree(expressions, i64, u8, b, f, zero_dim, zero_dim_float)


def test_tensors_without_elements(agree):
    empty, rows = torch.empty(0, 3), torch.empty(2, 0)
    expressions = {
        "cos": lambda x, y: x.cos(),
        "add": lambda x, y: x + 1,
        "compare": lambda x, y: x != x,
        "broadcast": lambda x, y: x + torch.ones(3) * y.sum(),
        "where": lambda x, y: torch.where(y > 0, y, NAN),
        "cast": lambda x, y: y.half(),
        "maximum": lambda x, y: torch.maximum(y, torch.ones(2, 1)),
        "relu": lambda x, y: F.relu(x),
        "sum of rows": lambda x, y: x.sum(0),
        "sum": lambda x, y: y.sum(1, keepdim=True),
        "sum of none": lambda x, y: x.sum(1),
        "mean": lambda x, y: x.mean(0),
        "mean of rows": lambda x, y: y.mean(-1),
        "max of columns": lambda x, y: x.max(1).values,
        "softmax": lambda x, y: torch.softmax(x, 0),
        "softmax of rows": lambda x, y: torch.softmax(y, 0),
        "cumsum": lambda x, y: x.cumsum(0) + x.cumsum(1),
        "layer_norm": lambda x, y: F.layer_norm(x, (3,)),
    }
    agree(expressions, empty, rows)


def test_functions_of_float64_are_computed_in_float64(agree):
    x = torch.randn(5, 33, dtype=torch.float64)
    expressions = {
        "softmax": lambda x: torch.softmax(x, -1),
        "log_softmax": lambda x: torch.log_softmax(x, 0),
        "layer_norm": lambda x: F.layer_norm(x, (33,), x[0], x[1]),
        "rms_norm": lambda x: F.rms_norm(x, (33,), x[0]),
        "rms_norm by hand": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * x[0],
        "gated": lambda x: F.silu(x) * x,
        "gelu": lambda x: F.gelu(x) + torch.tanh(x),
        "var": lambda x: x.var(-1),
        "cumsum": lambda x: x.cumsum(1),
        "mean": lambda x: x.mean(1),
        "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
        "one query": lambda x: F.scaled_dot_product_attention(
            x[None, None, :1, :32], x[None, None, :, :32], x[None, None, :, :32]
        ),
    }
    agree(expressions, x, ulps=64)
