"""One call of an operator without MLIR handles: what the interpreter executes and what a cached executable stores.

`aten.add.Tensor` and the like resolve to `torch.ops` and are called by their schema: torch-mlir writes dtypes, layouts
and memory formats as integers, which the schema turns back. Operators without a tensor argument are arithmetic on sizes
and run as Python, so that symbolic sizes stay symbolic. `lutra.*` run their reference semantics. What deviates stands
in `_SINGLE` and `_SPECIAL`.
"""

import ast
import json
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch_mlir import ir
from torch_mlir.extras.fx_importer import TORCH_DTYPE_TO_INT, TORCH_LAYOUT_TO_INT, TORCH_MEMORY_FORMAT_TO_INT

from .analysis.sizes import SIZES_ATTRIBUTE
from .errors import CaptureError
from .importing.fx_regions import REGION
from .ops import OPERATIONS
from .types import tensor_type

REGION_CALL = f"lutra.{REGION}"
"""What the names of operators begin with that stand for regions."""
_IGNORED_ATTRIBUTES = {"operandSegmentSizes", "lutra.path", "lutra.activations", SIZES_ATTRIBUTE}


@dataclass(frozen=True)
class Slot:
    """The `index`-th run-time value of a call."""

    index: int


@dataclass(frozen=True)
class OperatorCall:
    """A call of `name` ("aten.add.Tensor", "lutra.rms_norm"): a torch operator or `lutra` operation.

    arguments: in the order of the operator's schema (or of the `lutra` operation's operands, None for one that is left
    out): `Slot`s, literals (int, float, bool, str, None; dtypes as torch-mlir's integers) and tuples of them, which
    stand for lists. attributes: keywords, for operations that have any: int, float, bool, str, dtype and tuples."""

    name: str
    arguments: tuple[Any, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, op: Any) -> tuple["OperatorCall", list[Any]]:
        """The call that an MLIR operation makes, and the values that go into its slots.

        Constants, and constants in lists, become literals; everything else gets a slot, in order of first use."""
        operation = op.operation
        slots: dict[Any, Slot] = {}
        arguments = tuple(_argument(value, slots) for value in _operands(op))
        name = operation_name(operation)
        ignored = _IGNORED_ATTRIBUTES | {"name"} if operation.name == "torch.operator" else _IGNORED_ATTRIBUTES
        attributes = {a: _attribute(operation.attributes[a], a) for a in operation.attributes if a not in ignored}
        if name in OPERATIONS:
            attributes |= OPERATIONS[name].from_result(operation.results[0].type)
        elif name in _FROM_RESULT:
            attributes |= _FROM_RESULT[name](operation.results[0].type)
        return cls(name, arguments, attributes), list(slots)

    def to_json(self) -> str:
        """Text that `from_json` turns into an equal call."""
        return json.dumps([self.name, _encode(self.arguments), _encode(dict(self.attributes))])

    @classmethod
    def from_json(cls, text: str) -> "OperatorCall":
        """The call that `to_json` wrote; raises `ValueError` when `text` is something else."""
        name, arguments, attributes = json.loads(text)
        return cls(name, _decode(arguments), {key: _decode(value) for key, value in attributes.items()})

    def __call__(self, *values: Any) -> tuple[Any, ...]:
        """Run the operator on the values of its slots; always a tuple of results, one per result of the operation.

        Raises `CaptureError` when no such operator exists; the operator's own errors pass through."""
        return self._run(*self.filled(values))

    def filled(self, values: Sequence[Any]) -> list[Any]:
        """The arguments, with `values` in its slots."""
        return [_fill(argument, values) for argument in self.arguments]

    @property
    def region(self) -> str | None:
        """Name of the region of the graph that this runs (`Graph.regions`), if it is no operator."""
        return self.name.removeprefix("lutra.") if self.name.startswith(REGION_CALL) else None

    @property
    def reads_data(self) -> bool:
        """True when values, not only shapes, of its operands decide the shapes or the numbers that it gives."""
        if self.name in OPERATIONS or self.name in _SINGLE or self.name in _SPECIAL:
            return self.name in _READ_DATA
        return not _DATA_TAGS.isdisjoint(overload(self.name).tags)

    @cached_property
    def _run(self) -> Callable[..., tuple[Any, ...]]:
        return _resolve(self.name, self.attributes)


def operation_name(op: Any) -> str:
    """Name of an MLIR operation without "torch."; of a `torch.operator` (what the torch dialect does not define) the
    operator's that it carries."""
    operation = op.operation  # `torch.operator` has an attribute called name
    name = operation.name
    if name == "torch.operator":
        name = ir.StringAttr(operation.attributes["name"]).value
    return name.removeprefix("torch.")


def place(operation: Any) -> str:
    """Where an operation came from, for messages: the module path, else MLIR's location."""
    attributes = operation.attributes
    if "lutra.path" in attributes:
        return f"in module {ir.StringAttr(attributes['lutra.path']).value!r}"
    return str(operation.location)


# From MLIR ------------------------------------------------------------------------------------------------------------


def _operands(op: Any) -> list[Any]:
    """Operands in order of the schema; None where an optional operand of a `lutra` operation is left out."""
    operation = op.operation
    if operation.name not in OPERATIONS:
        return list(operation.operands)
    return [getattr(operation.opview, operand.name) for operand in OPERATIONS[operation.name].SIGNATURE.operands]


def _argument(value: Any, slots: dict[Any, Slot]) -> Any:
    if value is None:
        return None
    if isinstance(value, ir.OpResult):
        owner = value.owner.operation
        if owner.name == "torch.prim.ListConstruct":
            return tuple(_argument(element, slots) for element in owner.operands)
        if owner.name.startswith("torch.constant."):
            return _attribute(owner.attributes["value"], "value") if "value" in owner.attributes else None
    return slots.setdefault(value, Slot(len(slots)))


def _attribute(attribute: Any, name: str) -> Any:
    """An attribute as a Python value; a constant tensor as its dtype, shape and elements (one, if all are equal)."""
    if isinstance(attribute, ir.IntegerAttr | ir.FloatAttr | ir.BoolAttr | ir.StringAttr):
        return attribute.value
    if isinstance(attribute, ir.DenseElementsAttr):
        return _elements(attribute)
    if isinstance(attribute, ir.AffineMapAttr):
        return str(attribute)
    raise CaptureError(f"attribute {name} = {str(attribute)[:80]} cannot be read as a Python value")


def _elements(attribute: Any) -> tuple[Any, ...]:
    if attribute.is_splat:
        return (attribute.get_splat_value().value,)
    try:
        return tuple(np.array(attribute).reshape(-1).tolist())
    except (TypeError, ValueError):  # bfloat16, which numpy does not have
        return _bfloat16_elements(str(attribute).split("<", 1)[1].rsplit("> :", 1)[0])


def _bfloat16_elements(text: str) -> tuple[float, ...]:
    """Elements as MLIR writes them: nested lists, with integers for the bits of inf and nan, or bytes."""
    literal = ast.literal_eval(text)
    if isinstance(literal, str):
        return tuple(torch.frombuffer(bytearray.fromhex(literal[2:]), dtype=torch.bfloat16).tolist())
    bits = [e if isinstance(e, int) else None for e in np.array(literal, dtype=object).reshape(-1)]
    elements = np.array(literal, dtype=float).reshape(-1)
    return tuple(
        float(e) if b is None else torch.tensor(b, dtype=torch.uint16).view(torch.bfloat16).item()
        for e, b in zip(elements, bits, strict=True)
    )


_FROM_RESULT: dict[str, Callable[[Any], dict[str, Any]]] = {
    "prim.NumToTensor.Scalar": lambda t: {"dtype": tensor_type(t).dtype},
    "vtensor.literal": lambda t: {"dtype": tensor_type(t).dtype, "shape": tensor_type(t).shape},
}
"""What the result type of an operation of torch says and its operands do not, as additional attributes."""


# JSON -----------------------------------------------------------------------------------------------------------------


def _encode(value: Any) -> Any:
    if isinstance(value, Slot):
        return {"slot": value.index}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple | list):
        return [_encode(v) for v in value]
    if isinstance(value, dict):
        return {key: _encode(v) for key, v in value.items()}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    if isinstance(value, dict):
        return Slot(value["slot"]) if "slot" in value else getattr(torch, value["dtype"])
    return value


# Running --------------------------------------------------------------------------------------------------------------


def _fill(argument: Any, values: Sequence[Any]) -> Any:
    if isinstance(argument, Slot):
        return values[argument.index]
    if isinstance(argument, tuple):
        return [_fill(element, values) for element in argument]
    return argument


def _resolve(name: str, attributes: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    if name in OPERATIONS and not OPERATIONS[name].NEEDS_GRAPH:
        return _reference(name, attributes)
    if name in _SPECIAL:
        return partial(_SPECIAL[name], **attributes)
    if name in _SINGLE:
        single = _SINGLE[name]
        return lambda *values: (single(*values, **attributes),)
    return _torch_operator(name)


def _reference(name: str, attributes: Mapping[str, Any]) -> Callable[..., tuple[Any, ...]]:
    """The reference semantics of an operation of ours."""
    kind = OPERATIONS[name]
    run = partial(kind.reference, **attributes)
    return run if len(kind.SIGNATURE.results) > 1 else lambda *values: (run(*values),)


@lru_cache(maxsize=4096)
def _torch_operator(name: str) -> Callable[..., tuple[Any, ...]]:
    """`name` as a function of positional arguments in schema order."""
    function = overload(name)
    schema = function._schema
    arithmetic = _ARITHMETIC.get(name.split(".")[1].strip("_"))
    if arithmetic is not None and not any("Tensor" in str(a.type) for a in schema.arguments):
        return lambda *values: (arithmetic(*values),)
    converters = [_CONVERTERS.get(_kind(a.real_type)) for a in schema.arguments]
    positional = sum(not a.kwarg_only for a in schema.arguments)
    keywords = [a.name for a in schema.arguments[positional:]]
    several = len(schema.returns)

    def run(*values: Any) -> tuple[Any, ...]:
        converted = [
            v if convert is None or v is None else convert(v) for v, convert in zip(values, converters, strict=True)
        ]
        out = function(*converted[:positional], **dict(zip(keywords, converted[positional:], strict=True)))
        return tuple(out) if several > 1 else (out,) if several else ()

    return run


@lru_cache(maxsize=4096)
def overload(name: str) -> Any:
    """The `torch.ops` operator called `name`; raises `CaptureError` when there is none."""
    namespace, _, rest = name.partition(".")
    base, _, overload = rest.partition(".")
    try:
        function = getattr(getattr(getattr(torch.ops, namespace), base), overload or "default")
        function._schema  # noqa: B018  (some names that torch.ops gives are no operators)
    except (AttributeError, RuntimeError):
        raise CaptureError(f"{name!r} is not an operator of torch nor of Lutra") from None
    return function


def _kind(type_: Any) -> str:
    return str(type_).removeprefix("Optional[").removesuffix("]")


def _from_number(table: Mapping[Any, int]) -> Callable[[Any], Any]:
    """torch-mlir's integer for a dtype, layout, ... -> the torch object; anything that is no integer passes."""
    numbers = {number: value for value, number in table.items()}
    return lambda value: numbers[value] if isinstance(value, int) else value


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "ScalarType": _from_number(TORCH_DTYPE_TO_INT),
    "Layout": _from_number(TORCH_LAYOUT_TO_INT),
    "MemoryFormat": _from_number(TORCH_MEMORY_FORMAT_TO_INT),
    "Device": torch.device,
}

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "floordiv": operator.floordiv,
    "remainder": operator.mod,
    "fmod": operator.mod,  # the importer's spelling of Python's % (sizes are not negative)
    "neg": operator.neg,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.not_,
    "pow": operator.pow,
    "abs": abs,
    "min": lambda *values: torch.sym_min(*values) if len(values) == 2 else min(values[0]),
    "max": lambda *values: torch.sym_max(*values) if len(values) == 2 else max(values[0]),
    "ceil": math.ceil,
    "floor": math.floor,
    "sqrt": torch.sym_sqrt if hasattr(torch, "sym_sqrt") else math.sqrt,
    "Int": torch.sym_int,
    "Float": torch.sym_float,
    "Bool": bool,
    "len": len,
    "getitem": operator.getitem,
}
"""Operators on Python numbers and lists, by name without overload: used when the schema has no tensor."""


def _literal(*, value: tuple[Any, ...], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    return (
        torch.full(shape, value[0], dtype=dtype) if len(value) == 1 else torch.tensor(value, dtype=dtype).reshape(shape)
    )


def _reshape(x: torch.Tensor, shape: list[Any]) -> torch.Tensor:
    """Values in the IR have no strides, so a view of one is any tensor with the same elements in order."""
    return torch.reshape(x, shape)


_READ_DATA: dict[str, Callable[[Any], Any]] = {
    **{f"aten.{cast}": lambda x: x.item() for cast in ("item", "ScalarImplicit", "IntImplicit", "FloatImplicit")},
    "aten.Int.Tensor": lambda x: torch.sym_int(x.item()),
    "aten.Float.Tensor": lambda x: torch.sym_float(x.item()),
    "aten.Bool.Tensor": lambda x: bool(x.item()),
}
"""Numbers out of tensors."""

_DATA_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}

_SINGLE: dict[str, Callable[..., Any]] = {
    **{f"constant.{kind}": lambda *, value: value for kind in ("int", "float", "bool", "str", "device", "number")},
    "constant.none": lambda: None,
    "vtensor.literal": _literal,
    "prim.ListConstruct": lambda *values: list(values),
    "prim.TupleConstruct": lambda *values: values,
    "prim.NumToTensor.Scalar": lambda value, *, dtype: torch.scalar_tensor(value, dtype=dtype),
    "aten.view": _reshape,
    "aten._unsafe_view": _reshape,
    "aten.size": lambda x: list(x.shape),
    "aten.size.int": lambda x, dim: x.shape[dim],
    "aten.numel": lambda x: x.numel(),
    "aten.dim": lambda x: x.dim(),
    **_READ_DATA,
}
"""Operations with one result that `torch.ops` has not, or that take symbolic sizes or other strides here only."""

_SPECIAL: dict[str, Callable[..., tuple[Any, ...]]] = {
    "prim.ListUnpack": tuple,
    "prim.TupleUnpack": tuple,
}
"""Operations with none or several results that `torch.ops` has not; they go before `_SINGLE`."""
