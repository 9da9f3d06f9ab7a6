"""Linear layers, and the norms and gates that feed them.

A quantised linear becomes two kernels: the precompute of its input (quantisation, or lookup tables), done once for all
linears that read the same input and fused with the norm or gate that makes it, and the product: with the weight as it
is packed for few rows, with tiles of it that are unpacked first for many. A linear that keeps floating-point
activations has many rows multiplied by torch's library, with parts of the weight that were unpacked a moment before.
"""

from typing import Any

from tvm import relax

from ....ir.ops import quantized_format
from ....ir.rewriting import activations_of, parameter_symbol
from ....ir.weights.formats import WeightFormat
from ...kernels.cpu import triples
from ...kernels.cpu.activations import precompute, precompute_outputs
from ...kernels.cpu.dense_linear import dense_linear
from ...kernels.cpu.grouped_linear import grouped_linear
from ...kernels.cpu.lowbit_gemm import low_bit_gemm
from ...kernels.cpu.lowbit_linear import STATIC_ROWS, low_bit_linear
from ...kernels.cpu.norms import norm
from ...kernels.cpu.packing import PackedLayout
from ...kernels.cpu.pointwise import gated_mlp
from ...kernels.cpu.unpacked_linear import unpacked_linear
from ...targets.base import Activations, Family
from ..aten.views import read_in_parts
from ..builder import Deferred, Lowering
from ..registry import DECLINED, lowers
from ..symbols import dtype_name

SMALL_M = 16
"""Rows up to which our own kernel multiplies by floating-point weights: it reads them once."""
FLOATS = ("float32", "bfloat16", "float16")
"""What our kernels compute in float32; torch computes with float64."""


@lowers("lutra.linear")
def _linear(low: Lowering, op: Any) -> Any:
    quantized = quantized_format(op.weight.type)
    if quantized is None:
        return _dense(low, op)
    return _low_bit(low, op, op.x, quantized)


@lowers("lutra.table")
def _table(low: Lowering, op: Any) -> Any:
    """Nothing yet: what is precomputed depends on the kernels that the linears choose."""
    return ("table", op.x)


@lowers("lutra.table_linear")
def _table_linear(low: Lowering, op: Any) -> Any:
    quantized = quantized_format(op.weight.type)
    assert quantized is not None, "the verifier of lutra.table_linear"
    return _low_bit(low, op, low.peek(op.table)[1], quantized)


def _epilogue(low: Lowering, op: Any, rows: Any, n: int) -> list[relax.Var]:
    """Bias and residual, where they are."""
    extra = [low[op.bias]] if op.bias is not None else []
    return extra + ([low.flat(low[op.residual], rows, n)] if op.residual is not None else [])


def _dense(low: Lowering, op: Any) -> Any:
    out, (n, k) = op.out, low.sizes(op.weight)
    rows, dtype, weight_dtype = low.rows(op.x), dtype_name(low.dtype(op.x)), dtype_name(low.dtype(op.weight))
    symbol = parameter_symbol(op.weight)
    type_ = relax.TensorType([rows, n], dtype)
    x = low.flat(low[op.x], rows, k)
    bias = dtype_name(low.dtype(op.bias)) if op.bias is not None else None
    extra = _epilogue(low, op, rows, n)
    stacked = read_in_parts(low, op.weight)
    names = low.graph.store.parts(symbol) if stacked else () if symbol is None else (symbol,)
    parts = [(name, low.graph.store.shape(name)[0] if stacked else n) for name in names]
    function = None
    if parts and isinstance(rows, int) and rows <= SMALL_M and dtype in FLOATS and weight_dtype in FLOATS:
        sizes = tuple(size for _, size in parts)
        function = dense_linear(rows, n, k, weight_dtype, dtype, bias, op.residual is not None, sizes)
    if function is not None:
        view = low.bits_view(low.dtype(op.weight))
        weights = [low.weight(part, (size, k), low.dtype(op.weight), view) for part, size in parts]
        result = low.kernel("dense_linear", function, [x, *weights, *extra], type_)
    else:
        compute = low.target.product_dtype(dtype)
        name = "linear" + ("_bias" if op.bias is not None else "") + ("_residual" if op.residual is not None else "")
        own = [low.weight(part, (size, k), low.dtype(op.weight)) for part, size in parts] if stacked else []
        weights = own or [low[op.weight]]
        result = low.library(name, [_for_product(low, op.x, k, compute), *weights, *extra], type_)
    return low.reshape(result, low.sizes(out))


def _for_product(low: Lowering, x: Any, k: int, dtype: str) -> relax.Var:
    """`x` as a matrix in `dtype`, converted once for all linears that read it."""
    rows = low.rows(x)
    if dtype_name(low.dtype(x)) == dtype:
        return low.flat(low[x], rows, k)
    key = ("product input", x, dtype)
    if key not in low.memo:
        low.memo[key] = low.emit(relax.op.astype(low.flat(low[x], rows, k), dtype))
    return low.memo[key]


def _low_bit(low: Lowering, op: Any, x: Any, quantized: tuple[int, int, WeightFormat]) -> Any:
    n, k, format_ = quantized
    rows, dtype = low.rows(x), dtype_name(low.dtype(x))
    symbol = parameter_symbol(op.weight)
    assert symbol is not None, "quantised weights are parameters"
    type_ = relax.TensorType([rows, n], dtype)
    extra = _epilogue(low, op, rows, n)
    m = rows if isinstance(rows, int) else None
    said = activations_of(op)
    family = "dot" if said else _family(low, format_, k)
    few = m is None and low.graph.phase == "decode"
    packed = few or low.target.multiplies_packed(family, format_, m)
    layout = PackedLayout.create(family, format_, n, k, low.target)
    weight = low.packed(symbol, layout)
    bias = dtype_name(low.dtype(op.bias)) if op.bias is not None else None
    if packed:
        static = m if m is not None and m <= STATIC_ROWS else None
        form = "float" if said == "float" else family
        activations = _precomputed(low, x, said or family, layout, static)
        name, function = form, low_bit_linear(layout, low.target, static, dtype, bias, op.residual is not None, form)
    elif said == "float":
        compute = low.target.product_dtype(dtype)
        activations = [_for_product(low, x, k, compute)]
        name = "unpack+torch:linear"
        function = unpacked_linear(layout, low.target, dtype, compute, bias, op.residual is not None)
    else:
        activations = _precomputed(low, x, said or "dot", layout, None)
        name, function = "gemm", low_bit_gemm(layout, low.target, dtype, bias, op.residual is not None)
    result = low.kernel(f"{name}_{format_.describe()}", function, [*activations, *weight, *extra], type_)
    return low.reshape(result, low.sizes(op.out))


@lowers("lutra.grouped_linear")
def _grouped_linear(low: Lowering, op: Any) -> Any:
    quantized = quantized_format(op.weight.type)
    symbol = parameter_symbol(op.weight)
    assert quantized is not None and symbol is not None, "quantised weights are parameters"
    n, k, format_ = quantized
    (groups,), rows = low.sizes(op.offsets), low.rows(op.x)
    said = activations_of(op)
    family = "dot" if said else _family(low, format_, k)
    static = rows if isinstance(rows, int) and rows <= STATIC_ROWS else None
    unpacked = static is None and said != "float" and not low.target.multiplies_packed(family, format_, None)
    form = "float" if said == "float" else family
    layout = PackedLayout.create(family, format_, n, k, low.target)
    activations = _precomputed(low, op.x, said or ("dot" if unpacked else family), layout, static)
    dtype, offsets = dtype_name(low.dtype(op.x)), dtype_name(low.dtype(op.offsets))
    function = grouped_linear(layout, low.target, groups, static, dtype, offsets, form, unpacked)
    name = f"grouped_{'gemm' if unpacked else form}_{format_.describe()}"
    arguments = [*activations, *low.packed(symbol, layout), low[op.offsets]]
    return low.kernel(name, function, arguments, low.tensor_type(op.out))


def _family(low: Lowering, format_: WeightFormat, k: int) -> Family:
    """The same for any number of rows: prefill and decode graphs share one packed form."""
    family = low.kernel_family
    if family == "auto":
        family = low.target.faster_family(format_)
    return "lookup" if family == "triples" and not triples.fits(format_, k) else family


def _precomputed(low: Lowering, x: Any, family: Activations, layout: PackedLayout, m: int | None) -> list[relax.Var]:
    """Quantised activations or tables of `x`, computed once for all linears over it that read the same form."""
    group, rows, k = layout.activation_group, low.rows(x), layout.k
    key = ("precompute", x, family, group)
    if key in low.memo:
        return low.memo[key]
    source, dtype = low.peek(x), dtype_name(low.dtype(x))
    types = [relax.TensorType(list(shape), t) for shape, t in precompute_outputs(family, k, group, rows)]
    if isinstance(source, Deferred):
        prologue, inputs = source.operands["prologue"], source.operands["inputs"]()
        name = f"{source.kind}+{family}_activations"
    else:
        prologue, inputs, name = None, [low.flat(low[x], rows, k)], f"{family}_activations"
    function = precompute(family, k, group, m, dtype, low.target, prologue)
    low.memo[key] = low.kernel(name, function, inputs, types)
    return low.memo[key]


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
    prologue = ("rms_norm", eps, before, weight_dtype)
    return Deferred("rms_norm", {"prologue": prologue, "inputs": inputs}, emit)


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
    return Deferred("gated_mlp", {"prologue": ("gated_mlp", activation), "inputs": inputs}, emit)


@lowers("torch.aten.linear", "torch.aten.mm", "torch.aten.bmm", "torch.aten.matmul", "torch.aten.addmm")
def _product(low: Lowering, op: Any) -> Any:
    """Products of activations: torch's library is the fastest there is, and no fallback."""
    return low.torch_call(op)


@lowers("torch.aten.scaled_dot_product_attention")
def _attention(low: Lowering, op: Any) -> Any:
    return low.torch_call(op)
