"""Linear layers, and the norms and gates that feed them.

Which kernels compute a linear is the target's to choose (`codegen/select.py`). What makes the input of a quantised one
may be fused with its precompute (quantisation, or lookup tables), which is done once for all linears that read the same
input: norms and gates are deferred for that.
"""

from dataclasses import dataclass
from typing import Any

from tvm import relax

from ....ir.ops import quantized_format
from ....ir.rewriting import activations_of, parameter_symbol
from ...kernels.cpu.norms import norm
from ...kernels.cpu.pointwise import gated_mlp
from ...prologues import GatedMlpPrologue, RmsNormPrologue
from ...select import GroupedLinearProblem, LinearProblem
from ..aten.views import read_in_parts
from ..builder import Lowering
from ..registry import DECLINED, lowers
from ..symbols import FLOATS, dtype_name
from ..values import Deferred, Table


@dataclass(frozen=True)
class LinearOperands:
    """Values of the IR that a linear reads, and the parameters that its weight is made of; `offsets`: where the groups
    of a grouped one end."""

    x: Any
    weight: Any
    symbols: tuple[str, ...]
    bias: Any = None
    residual: Any = None
    offsets: Any = None


@lowers("lutra.linear")
def _linear(low: Lowering, op: Any) -> Any:
    return _emitted(low, op, op.x)


@lowers("lutra.table")
def _table(low: Lowering, op: Any) -> Any:
    return Table(op.x)


@lowers("lutra.table_linear")
def _table_linear(low: Lowering, op: Any) -> Any:
    return _emitted(low, op, low.peek(op.table).x)


def _emitted(low: Lowering, op: Any, x: Any) -> relax.Var:
    quantized = quantized_format(op.weight.type)
    n, k = quantized[:2] if quantized is not None else low.sizes(op.weight)
    symbol = parameter_symbol(op.weight)
    assert quantized is None or symbol is not None, "quantised weights are parameters"
    stacked = quantized is None and read_in_parts(low, op.weight)
    symbols = low.graph.store.parts(symbol) if stacked else () if symbol is None else (symbol,)
    problem = LinearProblem(
        phase=low.graph.phase,
        rows=_known(low.rows(x)),
        features=_known(n),
        columns=_known(k),
        dtype=dtype_name(low.dtype(x)),
        weight=dtype_name(low.dtype(op.weight)) if quantized is None else quantized[2],
        parts=tuple(low.graph.store.shape(part)[0] if stacked else n for part in symbols),
        activations=activations_of(op) if quantized is not None else None,
        family=low.family if quantized is not None else None,
        bias=dtype_name(low.dtype(op.bias)) if op.bias is not None else None,
        residual=op.residual is not None,
    )
    operands = LinearOperands(x, op.weight, tuple(symbols), op.bias, op.residual)
    return low.reshape(low.compute(problem, operands, () if symbol is None else (symbol,)), low.sizes(op.out))


@lowers("lutra.grouped_linear")
def _grouped_linear(low: Lowering, op: Any) -> Any:
    quantized = quantized_format(op.weight.type)
    symbol = parameter_symbol(op.weight)
    assert quantized is not None and symbol is not None, "quantised weights are parameters"
    n, k, format_ = quantized
    problem = GroupedLinearProblem(
        phase=low.graph.phase,
        rows=_known(low.rows(op.x)),
        features=n,
        columns=k,
        dtype=dtype_name(low.dtype(op.x)),
        weight=format_,
        parts=(n,),
        activations=activations_of(op),
        family=low.family,
        groups=low.sizes(op.offsets)[0],
        offsets=dtype_name(low.dtype(op.offsets)),
    )
    operands = LinearOperands(op.x, op.weight, (symbol,), offsets=op.offsets)
    return low.reshape(low.compute(problem, operands, (symbol,)), low.sizes(op.out))


def _known(size: Any) -> int | None:
    return size if isinstance(size, int) else None


@lowers("lutra.rms_norm", "lutra.layer_norm")
def _norm(low: Lowering, op: Any) -> Any:
    kind = "rms" if op.operation.name == "lutra.rms_norm" else "layer"
    sizes, x, out = low.sizes(op.x), op.x, op.out
    k, dtype, weight_dtype = sizes[-1], dtype_name(low.dtype(x)), dtype_name(low.dtype(op.weight))
    bias = op.bias if kind == "layer" else None
    if (
        not isinstance(k, int)
        or dtype not in FLOATS
        or weight_dtype not in FLOATS
        or low.dtype(out) != low.dtype(x)
        or (bias is not None and low.dtype(bias) != low.dtype(op.weight))
    ):
        return DECLINED
    eps, rows, weight = op.eps.value, low.rows(x), op.weight
    before = kind == "rms" and bool(op.round_before_weight.value)
    sizes_out = low.sizes(out)

    def inputs() -> list[relax.Var]:
        parameters = [weight] if bias is None else [weight, bias]
        return [low.flat(low[x], rows, k), *(low[p] for p in parameters)]

    def emit() -> relax.Var:
        function = norm(k, dtype, weight_dtype, eps, kind, bias is not None, before)
        result = low.kernel(f"{kind}_norm", function, inputs(), relax.TensorType([rows, k], dtype))
        return low.reshape(result, sizes_out)

    if kind == "layer":
        return emit()
    return Deferred("rms_norm", RmsNormPrologue(eps, before, weight_dtype), inputs, emit)


@lowers("lutra.gated_mlp")
def _gate(low: Lowering, op: Any) -> Any:
    gate, up, activation, out = op.gate, op.up, op.activation.value, op.out
    rows, dtype, sizes = low.rows(gate), dtype_name(low.dtype(gate)), low.sizes(out)
    features = sizes[-1]
    if not isinstance(features, int) or dtype not in FLOATS:
        return DECLINED

    def inputs() -> list[relax.Var]:
        width = features if up is not None else 2 * features
        return [low.flat(low[v], rows, width) for v in ([gate] if up is None else [gate, up])]

    def emit() -> relax.Var:
        function = gated_mlp(features, activation, dtype, up is None)
        result = low.kernel("gated_mlp", function, inputs(), relax.TensorType([rows, features], dtype))
        return low.reshape(result, sizes)

    if up is not None:
        return emit()
    return Deferred("gated_mlp", GatedMlpPrologue(activation), inputs, emit)


@lowers("torch.aten.linear", "torch.aten.mm", "torch.aten.bmm", "torch.aten.matmul", "torch.aten.addmm")
def _product(low: Lowering, op: Any) -> Any:
    """Products of activations: torch's library is the fastest there is, and no fallback."""
    return low.torch_call(op)


@lowers("torch.aten.scaled_dot_product_attention")
def _attention(low: Lowering, op: Any) -> Any:
    return low.torch_call(op)
