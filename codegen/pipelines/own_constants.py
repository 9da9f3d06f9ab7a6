"""Constants that leave an executable, or that it updates, are copied: what TVM computed ahead is the same memory at
every call, and a caller who writes into a result would write into all later ones.

No analysis of the IR tells which values these are: TVM folds whatever it finds to depend on no argument, such as a
`zeros_like`.
"""

from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax
from tvm.ir.expr import GenericConst

_UPDATE = "relax.call_tir_inplace"
COPY = "lutra.library.copy"


@tvm.transform.module_pass(opt_level=0, name="OwnConstants")
def own_constants(module: tvm.IRModule, context: Any) -> tvm.IRModule:
    """Rewrite `main`, after constants were folded."""
    del context
    module = module.clone()
    module.update_func(module.get_global_var("main"), _Walk(module).run())
    return module


@dataclass
class _Walk:
    module: tvm.IRModule
    _constants: dict[relax.Var, GenericConst] = field(default_factory=dict)
    """Variables that are bound to constants."""
    _bindings: list[relax.Binding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._builder = relax.BlockBuilder(self.module)

    def run(self) -> relax.Function:
        main = self.module["main"]
        blocks = []
        for block in main.body.blocks:
            self._bindings = []
            for binding in block.bindings:
                self._bindings.append(self._visited(binding, main.body.body))
            blocks.append(type(block)(self._bindings))
        body = relax.SeqExpr(blocks, main.body.body)
        return relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)

    def _visited(self, binding: relax.Binding, output: relax.Var) -> relax.Binding:
        value: Any = getattr(binding, "value", None)
        constant = self._constant(value)
        if constant is not None:
            self._constants[binding.var] = constant
        if isinstance(value, relax.Tuple) and binding.var.same_as(output):
            owned = relax.Tuple([self._owned(item) for item in value.fields])
        elif isinstance(value, relax.Call) and getattr(value.op, "name", "") == _UPDATE:
            function, operands, *rest = value.args
            updated = {int(index) for index in value.attrs.inplace_indices}
            items = [self._owned(x) if number in updated else x for number, x in enumerate(operands.fields)]
            owned = relax.Call(value.op, [function, relax.Tuple(items), *rest], value.attrs, value.ty_args)
        else:
            return binding
        return relax.VarBinding(binding.var, self._builder.normalize(owned))

    def _constant(self, value: Any) -> GenericConst | None:
        if isinstance(value, GenericConst):
            return value
        return self._constants.get(value) if isinstance(value, relax.Var) else None

    def _owned(self, value: Any) -> Any:
        """`value`, or a copy of it that is bound first when it is a constant."""
        constant = self._constant(value)
        if constant is None:
            return value
        call = relax.op.call_dps_packed(COPY, relax.Tuple([constant]), constant.ty)
        copy = relax.DataflowVar(f"own{len(self._bindings)}", constant.ty)
        self._bindings.append(relax.VarBinding(copy, self._builder.normalize(call)))
        return copy
