"""What lowerings read of a graph of the IR and write into the Relax function that it becomes.

The function takes the symbolic integers (as one shape), the graph's tensors, and the weights it turned out to need.
Sizes of every value come from `ir.analysis.shapes`, as sympy expressions, and are asserted on values whose size Relax
cannot infer. A value may be *deferred* (`values.py`): it is computed only when somebody asks for the tensor, so that a
consumer may take over the computation (a norm inside the quantisation of its result).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
import tvm
import tvm_ffi
from tvm import relax, te, tirx

from ...ir.analysis.aliases import Aliases, aliases
from ...ir.analysis.shapes import SymbolicValue, symbolic_values
from ...ir.errors import LoweringError
from ...ir.graph import Graph
from ...ir.operator_call import OperatorCall
from ...ir.types import as_tensor_type
from ..kernels.cpu.packing import PackedLayout
from ..runtime.torch_calls import TorchCall
from ..runtime.weights import PackedWeight, PlainWeight, WeightSource
from ..select import Choice, Database, Family, HasImplementations, Problem, choose
from .symbols import Symbols, dtype_name
from .values import Deferred

TORCH_CALL = "lutra.torch_call"
"""Packed function (`runtime/callbacks.py`) that runs an `OperatorCall` given as JSON; of a region a list of results."""


@dataclass
class Made:
    """What was chosen for an operation, and the weights that it reads."""

    choice: Choice
    symbols: tuple[str, ...]


@dataclass
class Lowering:
    """State of one lowering; `low[value]` is the lowered form of an MLIR value.

    family: what weights have to be packed for; None leaves it to the target. updated: value -> number of the input in
    whose memory it was written. memo: what several operations share."""

    graph: Graph
    target: HasImplementations
    family: Family | None = None
    database: Database = field(default_factory=dict)
    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    symbols: Symbols = field(default_factory=Symbols)
    kernels: Counter[str] = field(default_factory=Counter)
    chosen: list[Made] = field(default_factory=list)
    fallbacks: list[TorchCall] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)
    updated: dict[Any, int] = field(default_factory=dict)
    weights: dict[WeightSource, relax.Var] = field(default_factory=dict)
    aliases: Aliases = field(init=False)
    _described: Mapping[Any, Any] = field(init=False)
    _values: dict[Any, Any] = field(default_factory=dict)
    _functions: dict[tirx.PrimFunc, tvm.ir.GlobalVar] = field(default_factory=dict)
    _reshaped: dict[relax.Var, relax.Var] = field(default_factory=dict)
    """Result of a reshape -> what it has the elements of."""

    def __post_init__(self) -> None:
        self._described = symbolic_values(self.graph).by_value(self.graph)
        self.aliases = aliases(self.graph)

    # What lowerings read
    # -----------------------------------------------------------------------------------------------

    def __getitem__(self, value: Any) -> Any:
        """A Relax variable for a tensor, else a Python constant, a TIR expression for a symbolic integer, or a list
        of those."""
        item = self._values[value]
        if isinstance(item, Deferred):
            item = self._values[value] = item.emit()
        return item

    def peek(self, value: Any) -> Any:
        """As `self[value]`, but a deferred value stays what it is."""
        return self._values[value]

    def shape(self, value: Any) -> tuple[sympy.Expr, ...]:
        """Sizes of a tensor value as sympy expressions."""
        described = self._described[value]
        if not isinstance(described, SymbolicValue) or described.shape is None:
            raise LoweringError(f"a tensor was expected, got a value of type {value.type}")
        return described.shape

    def number(self, value: Any) -> sympy.Expr | None:
        """The expression of an integer or a float that is known from sizes, else None."""
        described = self._described[value]
        return described.number if isinstance(described, SymbolicValue) else None

    def is_empty(self, value: Any) -> bool:
        """A tensor that has no elements, whatever the operation."""
        described = self._described[value]
        return isinstance(described, SymbolicValue) and described.dtype is not None and 0 in (described.shape or ())

    def sizes(self, value: Any) -> list[Any]:
        """Sizes of a tensor value, Python ints where static, TIR expressions elsewhere."""
        return self.symbols.shape(self.shape(value))

    def dtype(self, value: Any) -> torch.dtype:
        """Element type of a tensor value."""
        described = self._described[value]
        if not isinstance(described, SymbolicValue) or described.dtype is None:
            raise LoweringError(f"a tensor was expected, got a value of type {value.type}")
        return described.dtype

    def tensor_type(self, value: Any) -> relax.TensorType:
        """The Relax type of a tensor value."""
        return relax.TensorType(self.sizes(value), dtype_name(self.dtype(value)))

    def rows(self, value: Any) -> Any:
        """Product of all sizes but the last: the M of a matrix product."""
        product: Any = 1
        for size in self.sizes(value)[:-1]:
            product = product * size
        return product

    # What lowerings write
    # ----------------------------------------------------------------------------------------------

    def define(self, value: Any, item: Any) -> None:
        """`item` is the lowered form of `value`."""
        self._values[value] = item

    def compute(self, problem: Problem, operands: Any, symbols: Sequence[str] = ()) -> Any:
        """The result of `problem` by the implementation that is chosen for it; `symbols`: the weights that it reads."""
        choice = choose(problem, self.target, self.database)
        self.chosen.append(Made(choice, tuple(symbols)))
        return choice.implementation.emit(self, problem, operands, choice.knobs)

    def emit(self, expression: relax.Expr, like: Any | None = None) -> relax.Var:
        """Bind `expression`; with `like` (an MLIR value) its sizes are asserted where Relax did not infer them."""
        var = self.builder.emit(expression)
        if like is None:
            return var
        wanted = self.tensor_type(like)
        return var if tvm_ffi.structural_equal(var.ty, wanted) else self.builder.match_cast(var, wanted)

    def kernel(
        self,
        name: str,
        function: tirx.PrimFunc,
        arguments: Sequence[relax.Expr],
        types: relax.TensorType | list[relax.TensorType],
        inplace: Sequence[int] | None = None,
    ) -> Any:
        """Call a kernel (equal ones are compiled once); a variable, or a list of them when `types` is a list.

        inplace: for each result the argument in whose memory it is, -1 for memory of its own."""
        self.kernels[name] += 1
        if function not in self._functions:
            self._functions[function] = self.builder.add_func(function.without_attr("global_symbol"), name)
        symbol = self._functions[function]
        operands = relax.Tuple(list(arguments))
        if inplace is None:
            call = relax.call_tir(symbol, operands, types)
        else:
            call = relax.op.call_tir_inplace(symbol, operands, list(inplace), types)
        result = self.builder.emit(call)
        return (
            [self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]
            if isinstance(types, list)
            else result
        )

    def library(self, name: str, arguments: Sequence[relax.Expr], type_: relax.TensorType) -> relax.Var:
        """Call a function of `runtime/callbacks.py` that writes into its last argument."""
        self.kernels[f"torch:{name}"] += 1
        return self.builder.emit(relax.op.call_dps_packed(f"lutra.library.{name}", relax.Tuple(list(arguments)), type_))

    def reshape(self, value: relax.Var, sizes: Sequence[Any]) -> relax.Var:
        """`value` with other sizes over the same elements: each is a step of the virtual machine, so none twice."""
        source = self._reshaped.get(value, value)
        shape = relax.ShapeExpr(list(sizes))
        if tvm_ffi.structural_equal(source.ty.shape, shape):
            return source
        if any(isinstance(size, int) and size == 0 for size in sizes):  # which says to `reshape`: as it was
            return self.empty(relax.TensorType(shape, source.ty.dtype))
        result = self.builder.emit(relax.op.reshape(source, shape))
        self._reshaped[result] = source
        return result

    def empty(self, type_: relax.TensorType) -> relax.Var:
        """A tensor without elements. No constant: the machine cannot load one of no bytes."""
        return self.builder.emit(relax.op.call_dps_packed("lutra.library.empty", relax.Tuple([]), type_))

    def scalar(self, number: Any, dtype: torch.dtype) -> relax.Var:
        """A number that is known at run time, as a tensor without dimensions."""
        name = dtype_name(dtype)

        def element(value: Any) -> te.Tensor:
            return te.compute((), lambda: value.astype(name), name="scalar")

        return self.builder.emit(self.builder.call_te(element, number, primfunc_name_hint="scalar"))

    def flat(self, value: relax.Var, rows: Any, columns: Any) -> relax.Var:
        """`value` as a matrix."""
        return self.reshape(value, [rows, columns])

    # Weights
    # -----------------------------------------------------------------------------------------------------------

    def weight(
        self, symbol: str, shape: Sequence[int], dtype: torch.dtype, view: torch.dtype | None = None
    ) -> relax.Var:
        """The plain tensor `symbol`; `view` reads its bits as another type of the same size."""
        source = PlainWeight(symbol, None if view is None else dtype_name(view))
        return self._weight(source, relax.TensorType(list(shape), dtype_name(view or dtype)))

    @staticmethod
    def bits_view(dtype: torch.dtype) -> torch.dtype | None:
        """The integer type that kernels read the bits of `dtype` as, or None where they read `dtype` itself."""
        return torch.uint16 if dtype is torch.bfloat16 else None

    def packed(self, symbol: str, layout: PackedLayout) -> list[relax.Var]:
        """The buffers of quantised weight `symbol` in `layout`."""
        return [
            self._weight(PackedWeight(symbol, layout, part), relax.TensorType(list(shape), dtype))
            for part, (shape, dtype) in enumerate(layout.buffers)
        ]

    def _weight(self, source: WeightSource, type_: relax.TensorType) -> relax.Var:
        if source not in self.weights:
            self.weights[source] = relax.Var(f"weight{len(self.weights)}", type_)
        return self.weights[source]

    # Torch fallback
    # ----------------------------------------------------------------------------------------------------

    def torch_call(self, op: Any) -> Any:
        """Run `op` as the torch operator that it is, where torch's library is the best there is."""
        call, slots = OperatorCall.of(op)
        self.kernels[f"torch:{call.name}"] += 1
        return self.call_torch(op, call, slots)

    def call_torch(self, op: Any, call: OperatorCall, slots: list[Any]) -> Any:
        """Let torch make the results of `op`; raises `LoweringError` for what torch cannot hand over."""
        results = list(op.operation.results)
        for result in results:
            if as_tensor_type(result.type) is None:
                raise LoweringError(f"{call.name} gives a {result.type}, which torch cannot hand to compiled code")
        operands = [item if is_tensor(item := self[slot]) else relax.prim_value(item) for slot in slots]
        types = [relax.TensorType(dtype=dtype_name(self.dtype(r)), ndim=len(self.shape(r))) for r in results]
        several = len(types) != 1 or call.region is not None
        type_ = relax.TupleType(types) if several else types[0]
        call_ = relax.call_pure_packed(TORCH_CALL, tvm.ir.StringImm(call.to_json()), *operands, ty_args=[type_])
        out = self.builder.emit(call_)
        if not several:
            return self.builder.match_cast(out, self.tensor_type(results[0]))
        items = [self.builder.emit(relax.TupleGetItem(out, i)) for i in range(len(results))]
        values = [self.builder.match_cast(v, self.tensor_type(r)) for v, r in zip(items, results, strict=True)]
        return values if len(values) != 1 else values[0]


def is_tensor(item: Any) -> bool:
    """A lowered value is a tensor: Relax and TIR share their classes of variables, only types tell them apart."""
    return isinstance(getattr(item, "ty", None), relax.TensorType)


def is_size(item: Any) -> bool:
    """A lowered value is an integer, known now or at run time."""
    return isinstance(item, int | relax.Expr) and not isinstance(item, bool) and not is_tensor(item)
