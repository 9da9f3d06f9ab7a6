"""What passes need from MLIR: matchers for constants, and builders for `lutra` operations (patterns: `patterns.py`).

An operation made from several modules' operations (q/k/v in one linear) carries all their paths in `lutra.path`,
joined with "|", in the order of its parts.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch_mlir import ir
from torch_mlir.extras.fx_importer import TORCH_DTYPE_TO_INT
from torch_mlir.passmanager import PassManager

from .errors import LutraError
from .graph import Graph
from .importing.fx_nodes import PATH_ATTRIBUTE
from .operator_call import operation_name
from .ops import ParamOp, QuantizedType
from .ops.base import weight_shape
from .types import TensorType, as_tensor_type, tensor_type
from .weights.formats import WeightFormat

ACTIVATIONS_ATTRIBUTE = "lutra.activations"
LinearActivations = Literal["float", "integers"]
"""`float`: the input is read as it is. `integers`: it holds whole numbers from -128 to 127, and sums are exact."""

Value = Any


def clean_up(module: Any) -> None:
    """Merge duplicates, remove operations that nobody reads.

    Nothing is folded: torch-mlir's folders take NaN to equal itself, and read beyond constants of one element (a
    comparison with a number ends the process)."""
    with module.context:
        PassManager.parse("builtin.module(func.func(cse))").run(module.operation)
    # MLIR's dead-code elimination keeps torch operators, which declare no effects; captured graphs are functional.
    for op in reversed(list(next(iter(module.body.operations)).regions[0].blocks[0].operations)):
        operation = op.operation
        if len(operation.results) and all(not list(result.uses) for result in operation.results):
            operation.erase()


def verify(graph: Graph, stage: str) -> None:
    """Raise `LutraError` naming `stage` when the module is not valid."""
    try:
        graph.module.operation.verify()
    except ir.MLIRError as error:
        raise LutraError(f"the module is not valid after {stage!r}: {error}") from error


# Reading --------------------------------------------------------------------------------------------------------------


def is_argument(value: Value) -> bool:
    """True for an argument of the graph: no operation defines it."""
    return isinstance(value.owner, ir.Block)


def defined_by(value: Value, *names: str) -> Any | None:
    """The operation that defines `value` when its name is one of `names` (`torch.` may be left out), else None."""
    if is_argument(value):
        return None
    name = operation_name(value.owner)
    return value.owner if name in names or f"torch.{name}" in names else None


def constant(value: Value) -> Any:
    """Python value of a `torch.constant.*` (None for `torch.constant.none`); `NotConstant` when it is computed."""
    op = defined_by(value, "constant.int", "constant.float", "constant.bool", "constant.str", "constant.none")
    if op is None:
        return NotConstant
    if op.operation.name == "torch.constant.none":
        return None
    attribute = op.attributes["value"]
    if isinstance(attribute, ir.IntegerAttr | ir.FloatAttr | ir.BoolAttr | ir.StringAttr):
        return attribute.value
    return NotConstant


def literal(op: Any) -> torch.Tensor | None:
    """The tensor of a `torch.vtensor.literal`; None where its elements are not spelled out."""
    attribute, type_ = op.operation.attributes["value"], tensor_type(op.operation.results[0].type)
    if not isinstance(attribute, ir.DenseElementsAttr):
        return None
    shape = [n or 0 for n in type_.shape]
    if attribute.is_splat:
        return torch.full(shape, attribute.get_splat_value().value, dtype=type_.dtype)
    if type_.dtype is torch.bfloat16:  # numpy has no such type
        return None
    return torch.tensor(np.array(attribute)).to(type_.dtype).reshape(-1).expand(math.prod(shape)).reshape(shape).clone()


class NotConstant:
    """Stands for a value that is not known at compile time."""


def constant_list(value: Value) -> list[Any] | None:
    """Python values of a `torch.prim.ListConstruct`; None when `value` is no list."""
    op = defined_by(value, "prim.ListConstruct")
    return None if op is None else [constant(v) for v in op.operands]


def single_use(value: Value) -> bool:
    """True when exactly one operand reads `value`."""
    return len(list(value.uses)) == 1


def users(value: Value) -> list[Any]:
    """Operations that read `value`."""
    return [use.owner for use in value.uses]


def parameter_symbol(value: Value) -> str | None:
    """Symbol of the `lutra.param` that defines `value`, or None."""
    op = defined_by(value, ParamOp.OPERATION_NAME)
    return None if op is None else ir.StringAttr(op.attributes["sym"]).value


def paths(op: Any) -> tuple[str, ...]:
    """Module paths that `op` was made from, in order of its parts; () when unknown."""
    attributes = op.operation.attributes
    return tuple(ir.StringAttr(attributes[PATH_ATTRIBUTE]).value.split("|")) if PATH_ATTRIBUTE in attributes else ()


# Building -------------------------------------------------------------------------------------------------------------


def build(cls: type, rewriter: Any, at: Any, *arguments: Any, path: str | None = None, **keywords: Any) -> Any:
    """A new operation of `cls` before `at`, with its `lutra.path`; Python numbers and strings become attributes."""
    with rewriter.ip, at.location:
        op = cls(*map(_attribute, arguments), **{key: _attribute(value) for key, value in keywords.items()})
    label = path if path is not None else "|".join(paths(at))
    if label:
        op.operation.attributes[PATH_ATTRIBUTE] = ir.StringAttr.get(label)
    return op


def move_behind(op: Any, value: Value) -> None:
    """Move `op` right behind the definition of `value`, so that it stands before every reader of it."""
    if is_argument(value):
        op.operation.move_before(value.owner.operations[0])
    else:
        op.operation.move_after(value.owner)


def vtensor(shape: Iterable[int | None], like: Value | TensorType) -> ir.Type:
    """`!torch.vtensor` of `shape` with the dtype of `like`."""
    dtype = like.dtype if isinstance(like, TensorType) else tensor_type(like.type).dtype
    return ir.Type.parse(str(TensorType(tuple(shape), dtype)))


def build_torch(name: str, rewriter: Any, at: Any, operands: Sequence[Any], type_: ir.Type) -> Value:
    """The result of a new torch operator before `at`; ints and dtypes among its operands become constants."""
    with rewriter.ip, at.location:
        values = [operand if isinstance(operand, ir.Value) else _integer(operand) for operand in operands]
        op = ir.Operation.create(f"torch.{name}", results=[type_], operands=values)
    if PATH_ATTRIBUTE in at.operation.attributes:
        op.attributes[PATH_ATTRIBUTE] = at.operation.attributes[PATH_ATTRIBUTE]
    return op.results[0]


def list_type() -> ir.Type:
    """The type of a list of tensors."""
    return ir.Type.parse("!torch.list<vtensor>")


def _integer(value: int | torch.dtype) -> Value:
    number = TORCH_DTYPE_TO_INT[value] if isinstance(value, torch.dtype) else value
    attribute = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)
    type_ = ir.Type.parse("!torch.int")
    return ir.Operation.create("torch.constant.int", results=[type_], attributes={"value": attribute}).results[0]


def set_activations(linear: Any, form: LinearActivations) -> None:
    """Say how the product of a quantised linear reads its input."""
    linear.operation.attributes[ACTIVATIONS_ATTRIBUTE] = ir.StringAttr.get(form)


def activations_of(linear: Any) -> LinearActivations | None:
    """What `set_activations` said; None when a lowering may quantise the input to int8 with scales of its own."""
    attributes = linear.operation.attributes
    form = attributes[ACTIVATIONS_ATTRIBUTE].value if ACTIVATIONS_ATTRIBUTE in attributes else None
    return cast(LinearActivations | None, form)


def quantized_type(n: int, k: int, format_: WeightFormat) -> ir.Type:
    """`!lutra.quantized` for a weight `[n, k]`; raises `QuantizationError` when the groups do not divide k."""
    format_.groups(k)
    i64 = ir.IntegerType.get_signless(64)
    numbers = [ir.IntegerAttr.get(i64, v) for v in (n, k, format_.bits, format_.group_size)]
    return QuantizedType.get(*numbers, ir.StringAttr.get(format_.scheme))


def shape_of(value: Value) -> tuple[int | None, ...] | None:
    """Shape of a tensor value, None for anything else."""
    parsed = as_tensor_type(value.type)
    return None if parsed is None else parsed.shape


def static_shape(value: Value) -> tuple[int, ...]:
    """Shape of a tensor or `!lutra.quantized` value whose sizes are all known: a parameter's.

    Raises `LutraError` for any other value."""
    shape = weight_shape(value)
    if None in shape:
        raise LutraError(f"{value.type} was expected to have a static shape")
    return tuple(n for n in shape if n is not None)


def _attribute(value: Any) -> Any:
    if isinstance(
        value, int
    ):  # bools too: a false BoolAttr is falsy, and the dialect base takes it for a missing attribute
        return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
    if isinstance(value, float):
        return ir.FloatAttr.get(ir.F64Type.get(), value)
    if isinstance(value, str):
        return ir.StringAttr.get(value)
    return value
