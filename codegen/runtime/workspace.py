"""Small intermediate results in memory that an executable keeps from call to call.

Relax plans which intermediate results share a storage, and makes storages, tensors and their views at every call. In a
decode step that is more calls than there are kernels (a Llama of 16 layers: 334 tensors, 82 tuples, 48 views). Where
sizes are known, these become parameters of the function, made once, when the executable is loaded.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import tvm
from tvm import relax

from ..device import ALIGNMENT, Device

KEPT_BYTES = 1 << 20
"""Larger storages are of prompts, whose kernels take much longer than to allocate them: these stay with the pool that
all executables share."""
_STORAGE, _TENSOR = "relax.memory.alloc_storage", "relax.memory.alloc_tensor"


@dataclass(frozen=True)
class View:
    """A tensor of `shape` and `dtype` that starts `offset` bytes into the workspace."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Workspace:
    """`size` bytes, and the tensors in them that a function takes as its last parameters."""

    size: int = 0
    views: tuple[View, ...] = ()

    def tensors(self, device: Device) -> list[torch.Tensor]:
        """The views in memory of their own."""
        whole = device.empty((self.size,), torch.uint8)

        def view(place: View) -> torch.Tensor:
            dtype = getattr(torch, place.dtype)
            count = math.prod(place.shape) * dtype.itemsize
            return whole[place.offset : place.offset + count].view(dtype).view(place.shape)

        return [view(place) for place in self.views]

    def to_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @staticmethod
    def from_data(data: dict[str, Any]) -> "Workspace":
        """The inverse of `to_data`."""
        views = (View(v["offset"], tuple(v["shape"]), v["dtype"]) for v in data["views"])
        return Workspace(data["size"], tuple(views))


def with_workspace(module: tvm.IRModule) -> tuple[tvm.IRModule, Workspace]:
    """`module` after `StaticPlanBlockMemory`, whose `main` takes small planned tensors of static shape as parameters.

    Only what was planned is taken: nothing that the function returns is in such a storage. `main` has no branches, as
    lowering makes it."""
    main = module["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    hoisting = _Hoisting({b.value.args[0] for b in bindings if _operator(b.value) == _TENSOR and not _is_static(b.var)})
    bindings = [kept for binding in bindings if (kept := hoisting.take(binding)) is not None]
    body = hoisting.substitute(main.body.body)
    function = relax.Function(
        [*main.params, *hoisting.views.values()],
        relax.SeqExpr([relax.BindingBlock(bindings)], body),
        main.ret_ty,
        main.is_pure,
        main.attrs,
    )
    module = module.clone()
    module.update_func(module.get_global_var("main"), function)
    return module, Workspace(hoisting.size, tuple(hoisting.views))


@dataclass
class _Hoisting:
    """What is known of the bindings so far. `shapeless`: storages of tensors whose shape is not known, which stay."""

    shapeless: set[relax.Var]
    size: int = 0
    views: dict[View, relax.Var] = field(default_factory=dict)
    """The new parameters."""
    _offsets: dict[relax.Var, int] = field(default_factory=dict)
    """Where a storage or a parameter begins."""
    _values: dict[relax.Var, relax.Expr] = field(default_factory=dict)
    """What stands for a variable that is no longer bound."""

    def take(self, binding: relax.Binding) -> relax.Binding | None:
        """The binding as it stays, or None."""
        value = self.substitute(binding.value)
        if isinstance(binding, relax.MatchCast):
            return relax.MatchCast(binding.var, value, binding.ty)
        replacement = value if isinstance(value, relax.Var | relax.Tuple) else self._kept(binding.var, value)
        if replacement is None:
            return relax.VarBinding(binding.var, value)
        self._values[binding.var] = replacement
        return None

    def _kept(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """What stands for `var` when it is a storage, a tensor or a view in the workspace."""
        operator = _operator(value)
        if operator == _STORAGE:
            size = _static(value.args[0])
            if size is None or size[0] > KEPT_BYTES or var in self.shapeless:
                return None
            self._offsets[var] = self.size
            self.size += -(-size[0] // ALIGNMENT) * ALIGNMENT
            return var
        if operator not in (_TENSOR, "relax.reshape") or value.args[0] not in self._offsets or not _is_static(var):
            return None
        offset = self._offsets[value.args[0]]
        return self._parameter(offset + int(value.args[1].value) if operator == _TENSOR else offset, var)

    def _parameter(self, offset: int, like: relax.Var) -> relax.Var:
        """The parameter with shape and dtype of `like` at `offset`."""
        view = View(offset, _static(like.ty.shape) or (), str(like.ty.dtype))
        if view not in self.views:
            var = relax.Var(f"workspace{len(self.views)}", relax.TensorType(view.shape, view.dtype))
            self.views[view] = var
            self._offsets[var] = offset
        return self.views[view]

    def substitute(self, expr: Any) -> Any:
        """`expr` in what variables stand for."""
        if isinstance(expr, relax.Var):
            return self._values.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.substitute(part) for part in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            whole = self.substitute(expr.tuple_value)
            return whole.fields[expr.index] if isinstance(whole, relax.Tuple) else relax.TupleGetItem(whole, expr.index)
        if isinstance(expr, relax.Call):
            args = [self.substitute(argument) for argument in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span)
        return expr


def _operator(value: relax.Expr) -> str:
    """The name of the operator that `value` calls, if it does."""
    return value.op.name if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""


def _is_static(tensor: relax.Var) -> bool:
    return _static(tensor.ty.shape) is not None


def _static(shape: Any) -> tuple[int, ...] | None:
    """The sizes of a shape, None unless all are known."""
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(size, tvm.tirx.IntImm) for size in shape.values):
        return None
    return tuple(int(size) for size in shape.values)
