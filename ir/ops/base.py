"""The `lutra` dialect, and what one operation of it is: a class that says all there is to say about the operation.

Operations say *what* is computed, at the level at which a paper would. Operands and results are `!torch.vtensor`
values, except weights in low-bit form, whose type `!lutra.quantized` carries shape and format.

Shapes: B batch, S query positions, L key positions, H query heads, G key/value heads (G divides H), D head size, K
input and N output features, F features of a feed-forward block.
"""

# No `from __future__ import annotations` in this folder: the base class reads the annotations as types. Its keywords
# (`name`, `traits`) are out of pyright's sight.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch_mlir.dialects import ext
from torch_mlir.dialects.ext import Pure
from torch_mlir.ir import FloatAttr, IntegerAttr, Operation, StringAttr

from ..analysis.amounts import Amount, ValueSizes
from ..errors import LutraError
from ..types import TensorType, tensor_type
from ..weights.formats import WeightFormat

Shape = tuple[sympy.Expr, ...]


class Lutra(ext.Dialect, name="lutra"):
    """The dialect; `load_dialect` registers it in a context."""


class QuantizedType(Lutra.Type, name="quantized"):
    """`!lutra.quantized<n, k, bits, group_size, scheme>`: weight `[n, k]` in the `WeightFormat` of the rest."""

    n: IntegerAttr
    k: IntegerAttr
    bits: IntegerAttr
    group_size: IntegerAttr
    scheme: StringAttr


@dataclass(frozen=True)
class Field:
    """An operand, attribute or result. kind: of an attribute, "integer", "float" or "string"."""

    name: str
    optional: bool
    kind: str | None


@dataclass(frozen=True)
class Signature:
    """What an operation takes and gives, in order."""

    operands: tuple[Field, ...] = ()
    attributes: tuple[Field, ...] = ()
    results: tuple[Field, ...] = ()


_KINDS = {IntegerAttr: "integer", FloatAttr: "float", StringAttr: "string"}


class Op(Lutra.Operation, traits=[Pure]):
    """An operation of the dialect. Its docstring is what `lutra ops` and docs/operations.md print: what it does, the
    formula as an indented block, shapes, the source.

    Annotated fields are operands, attributes and results, in this order; operands that may be left out come last, with
    the value None. Everything else that Lutra knows of it stands in the class as well: `check`, `reference` and `cost`
    in every one, the rest where it differs."""

    def __init_subclass__(cls, *, name: str) -> None:
        super().__init_subclass__(name=name)
        parts = ext.partition_fields(cls._fields)[:3]
        cls.SIGNATURE = Signature(*(tuple(map(_field, fields)) for fields in parts))

    # None of these is annotated: it would be taken for a field.
    SIGNATURE = Signature()
    """The fields."""
    NEEDS_GRAPH = False
    """`reference` takes something of the graph besides operands: no call without a graph can stand for it."""
    IS_VIEW = False
    """The result lies in the operand's memory."""
    OVERWRITES = dict[str, str]()
    """Operands that it may write into: name of the operand -> name of the result that it becomes."""

    @staticmethod
    def check(op: Any) -> str | None:
        """Why `op` is no such operation, None when it is one. An attribute that is missing (`KeyError`) and a value
        that is no tensor (`LutraError`) are complaints by themselves."""
        raise NotImplementedError

    @staticmethod
    def reference(*operands: Any, **attributes: Any) -> Any:
        """What it computes, in torch: the oracle for its lowering, and what the interpreter runs. A tuple for several
        results.

        Takes operands by their names and attributes as keywords, with those of `from_result`. Never looks at values
        (no `.item()`, no branch on data), so that it runs on fake tensors with symbolic sizes too."""
        raise NotImplementedError

    @staticmethod
    def cost(op: Any, sizes: ValueSizes) -> Amount:
        """Bytes and arithmetic of one call, on any machine; the docstring says it in words."""
        raise NotImplementedError

    @staticmethod
    def from_result(type_: Any) -> dict[str, Any]:
        """Keywords of `reference` that are no attributes, from the type of the (first) result."""
        return {}

    @staticmethod
    def result_shape(first: Shape, rank: int) -> Shape | None:
        """Sizes of the only result, of rank `rank`, from those of the first operand, where its type leaves them open;
        None where only running it tells."""
        return None

    @classmethod
    def verify_invariants(cls, op: Any) -> bool:
        """What MLIR calls."""
        view = op.opview if isinstance(op, Operation) else op
        try:
            complaint = cls.check(view)
        except KeyError as missing:
            complaint = f"attribute {missing} is missing"
        except LutraError as error:
            complaint = str(error)
        if complaint:
            view.location.emit_error(f"{view.operation.name}: {complaint}")
        return not complaint


def _field(definition: Any) -> Field:
    optional = definition.variadicity != ext.Variadicity.single
    return Field(definition.name, optional, _KINDS.get(definition.constraint))


def first_rows(first: Shape, rank: int) -> Shape | None:
    """`Op.result_shape` of operations with a row of features for each row of their first operand."""
    return first


def quantized_format(type_: Any) -> tuple[int, int, WeightFormat] | None:
    """`(n, k, format)` of a `!lutra.quantized` type, or None for any other type."""
    if not str(type_).startswith("!lutra.quantized"):
        return None
    view = QuantizedType(type_)
    number = [IntegerAttr(p).value for p in (view.n, view.k, view.bits, view.group_size)]
    return number[0], number[1], WeightFormat(number[2], number[3], StringAttr(view.scheme).value)  # type: ignore[arg-type]


# What verifiers and references share ---------------------------------------------------------------------------------


def weight_shape(value: Any) -> tuple[int | None, ...]:
    """Sizes of a weight, quantised or not."""
    quantized = quantized_format(value.type)
    return quantized[:2] if quantized else tensor_type(value.type).shape


def features(value: Any) -> int | None:
    """The last size of a tensor."""
    return last(tensor_type(value.type))


def last(type_: TensorType) -> int | None:
    """The last size; None where it is symbolic, or there is none."""
    return type_.shape[-1] if type_.shape else None


def differ(a: int | None, b: int | None) -> bool:
    """Two extents are known and differ (None is a symbolic size)."""
    return a is not None and b is not None and a != b


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is."""
    return x if x.dtype is torch.float64 else x.float()


def add_float(out: Tensor, *terms: Tensor | None) -> Tensor:
    """The sum of those that are there, in float32."""
    for term in terms:
        out = out if term is None else out + term.float()
    return out
