"""Linear layers: recognised, merged when they read the same input, bias and residual folded in."""

from collections.abc import Iterable
from os.path import commonpath
from typing import Any

from ...ir.ops import LinearOp, ParamOp, SplitOp, quantized_format
from ...ir.rewriting import (
    Pattern,
    activations_of,
    build,
    constant,
    defined_by,
    parameter_symbol,
    paths,
    shape_of,
    single_use,
    static_shape,
    users,
    vtensor,
)
from ...ir.types import tensor_type
from ...ir.weights.store import ParameterStore
from ..matching import sizes


def fuse_linear(op: Any, rewriter: Any) -> bool:
    """`aten.linear(x, weight, bias)` -> `lutra.linear`, for weights that are parameters."""
    x, weight, bias = op.operation.operands
    if not _multiplies(x, weight, 1) or not _is_bias(bias, static_shape(weight)[0]):
        return False
    keywords = {} if shape_of(bias) is None else {"bias": bias}
    rewriter.replace_op(
        op, build(LinearOp, rewriter, op, x, weight, op.operation.results[0].type, **keywords).operation
    )
    return True


def _multiplies(x: Any, weight: Any, columns: int) -> bool:
    """`weight` is a floating-point matrix among the parameters, whose dimension `columns` meets x's last."""
    shape, rows = sizes(weight), sizes(x)
    if parameter_symbol(weight) is None or len(shape) != 2 or not rows:
        return False
    return tensor_type(weight.type).dtype.is_floating_point and rows[-1] == shape[columns]


def _is_bias(bias: Any, n: int) -> bool:
    """`bias` is left out, or has one entry for each of `n` features: torch broadcasts others."""
    return shape_of(bias) in (None, (n,))


def _transposed(store: ParameterStore, op: Any, rewriter: Any, weight: Any, symbol: str) -> Any:
    """A `lutra.param` for the transpose of `weight [K, N]`, called `symbol`, evaluated once at compile time."""
    name = store.derive(f"{symbol}.T", [symbol], lambda w: w.t().contiguous())
    return build(ParamOp, rewriter, op, name, vtensor(reversed(static_shape(weight)), weight)).out


def linear_patterns(store: ParameterStore) -> dict[str, list[Pattern]]:
    """Patterns that make `lutra.linear`, `store` receiving transposed weights."""

    def fuse_addmm(op: Any, rewriter: Any) -> bool:
        """`aten.addmm(bias, x, W [K, N])` -> `lutra.linear(x, W^T, bias)` (GPT-2's Conv1D)."""
        bias, x, weight, beta, alpha = op.operation.operands
        symbol = parameter_symbol(weight)
        if symbol is None or constant(beta) != 1 or constant(alpha) != 1 or not _multiplies(x, weight, 0):
            return False
        if shape_of(bias) != (static_shape(weight)[1],):
            return False
        transposed = _transposed(store, op, rewriter, weight, symbol)
        new = build(LinearOp, rewriter, op, x, transposed, op.operation.results[0].type, bias=bias)
        rewriter.replace_op(op, new.operation)
        return True

    def fuse_mm(op: Any, rewriter: Any) -> bool:
        """`aten.mm` or `aten.matmul` with a parameter `W [K, N]` on the right -> `lutra.linear(x, W^T)`."""
        x, weight = op.operation.operands
        symbol = parameter_symbol(weight)
        if symbol is None or not _multiplies(x, weight, 0) or len(shape_of(x) or ()) < 2:
            return False
        transposed = _transposed(store, op, rewriter, weight, symbol)
        rewriter.replace_op(op, build(LinearOp, rewriter, op, x, transposed, op.operation.results[0].type).operation)
        return True

    return {
        "torch.aten.linear": [fuse_linear],
        "torch.aten.addmm": [fuse_addmm],
        "torch.aten.mm": [fuse_mm],
        "torch.aten.matmul": [fuse_mm],
    }


def fuse_residual(op: Any, rewriter: Any) -> bool:
    """`add(x, linear(...))` over equal shapes -> `linear(..., residual = x)`."""
    left, right, alpha = op.operation.operands
    if constant(alpha) != 1:
        return False
    for value, residual in ((left, right), (right, left)):
        producer = defined_by(value, "lutra.linear")
        if producer is None or not single_use(value) or residual.type != value.type or residual == value:
            continue
        linear = producer.opview
        if (
            linear.residual is not None
            or activations_of(linear) is not None
            or value.type != op.operation.results[0].type
        ):
            continue
        keywords = {} if linear.bias is None else {"bias": linear.bias}
        label = "|".join(paths(linear))
        new = build(
            LinearOp, rewriter, op, linear.x, linear.weight, value.type, residual=residual, path=label, **keywords
        )
        rewriter.replace_op(op, new.operation)
        return True
    return False


EPILOGUE_PATTERNS: dict[str, list[Pattern]] = {"torch.aten.add.Tensor": [fuse_residual]}


def merge_patterns(store: ParameterStore) -> dict[str, list[Pattern]]:
    """Patterns that merge linears over one input, `store` receiving the merged weights."""

    def merge_linears(op: Any, rewriter: Any) -> bool:
        """All plain linears that read `op`'s input -> one linear over their stacked weights, a `lutra.split` each."""
        group = [user for user in _siblings(op) if _mergeable(user, op)]
        if len(group) < 2 or group[0] != op.operation:
            return False
        symbols = _symbols(linear.operands[1] for linear in group)
        biases = _symbols(linear.opview.bias for linear in group if linear.opview.bias is not None)
        if len(set(symbols)) < len(symbols) or len(biases) not in (0, len(symbols)) or not store.can_stack(symbols):
            return False
        sizes = [static_shape(linear.operands[1])[0] for linear in group]
        weight = _stacked(store, symbols, op, rewriter, (sum(sizes), static_shape(op.weight)[1]), op.weight)
        keywords = {}
        if biases:
            keywords["bias"] = _stacked(store, biases, op, rewriter, (sum(sizes),), op.bias)
        out = vtensor((*tensor_type(op.x.type).shape[:-1], sum(sizes)), op.out)
        label = "|".join(path for linear in group for path in paths(linear))
        merged = build(LinearOp, rewriter, op, op.x, weight, out, path=label, **keywords).out
        start = 0
        parts = []
        for linear, size in zip(group, sizes, strict=True):
            parts.append(
                build(SplitOp, rewriter, op, merged, start, linear.results[0].type, path="|".join(paths(linear)))
            )
            start += size
        for linear, part in zip(group, parts, strict=True):
            rewriter.replace_op(linear, part.operation)
        return True

    return {"lutra.linear": [merge_linears]}


def _symbols(values: Iterable[Any]) -> list[str]:
    """Parameter symbols of those `values` that are parameters."""
    return [symbol for value in values if (symbol := parameter_symbol(value)) is not None]


def _siblings(op: Any) -> list[Any]:
    """Linears over the same x, in program order."""
    unique: list[Any] = []
    for user in users(op.x):
        if user.operation.name == "lutra.linear" and user.operands[0] == op.x and user not in unique:
            unique.append(user)
    return sorted(unique, key=lambda u: sum(other.is_before_in_block(u) for other in unique if other != u))


def _mergeable(user: Any, op: Any) -> bool:
    linear = user.opview
    return (
        linear.residual is None
        and quantized_format(linear.weight.type) is None
        and parameter_symbol(linear.weight) is not None
        and static_shape(linear.weight)[1] == static_shape(op.weight)[1]
        and (linear.bias is None) == (op.bias is None)
        and tensor_type(linear.weight.type).dtype == tensor_type(op.weight.type).dtype
        and parameter_symbol(linear.x) is None
    )


def _stacked(
    store: ParameterStore, symbols: list[str], op: Any, rewriter: Any, shape: tuple[int, ...], like: Any
) -> Any:
    name = store.stack(stacked_name(symbols), symbols)
    return build(ParamOp, rewriter, op, name, vtensor(shape, like)).out


def stacked_name(symbols: list[str]) -> str:
    """`a.q_proj.weight`, `a.k_proj.weight` -> `a.{q_proj,k_proj}.weight`."""
    prefix = commonpath([s.rsplit(".", 2)[0] + "." if s.count(".") > 1 else "" for s in symbols])
    prefix = prefix[: prefix.rfind(".") + 1]
    suffixes = {s.rsplit(".", 1)[-1] for s in symbols}
    if len(suffixes) == 1 and all(s.startswith(prefix) for s in symbols):
        tail = suffixes.pop()
        return f"{prefix}{{{','.join(s[len(prefix) :].removesuffix('.' + tail) for s in symbols)}}}.{tail}"
    return "{" + ",".join(symbols) + "}"
