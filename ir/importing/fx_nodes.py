"""Nodes of an FX graph to MLIR operations, each with its module path, its sizes and its place in the source."""

import operator
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import sympy
import torch
from torch import fx
from torch_mlir import ir
from torch_mlir.dialects import func
from torch_mlir.extras import fx_importer as fxi

from ..analysis.sizes import SIZES_ATTRIBUTE, Described, SymbolicValue, describe, is_static, spelled
from ..ops import NumberOp, ParamOp
from ..torch_private import OpOverload
from .fx_regions import call_region

PATH_ATTRIBUTE = "lutra.path"
PARAMETER_META = "lutra.param"


class Refused(Exception):
    """The importer does not take `node`, which calls `target`."""

    def __init__(self, node: fx.Node, target: Any, error: Exception) -> None:
        super().__init__(f"{target}: {type(error).__name__}: {error}")
        self.node, self.target = node, target


def module_path(node: fx.Node) -> str:
    """Dotted path of the module whose forward made `node` (`model.layers.0.mlp`); "" for the root or unknown."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    return source_path(str(list(stack.values())[-1][0]))


def source_path(source: str) -> str:
    """Dotted path in a Dynamo source name: `L['self']._modules['model'].layers[0]` -> `model.layers.0`."""
    path = re.sub(r"^[LG]\['[^']*'\](\[\d+\])*", "", source)
    path = re.sub(r"\._(?:modules|parameters|buffers)\['([^']+)'\]", r".\1", path)
    path = re.sub(r"\['?([^'\]]+)'?\]", r".\1", path).replace("._orig_mod", "")
    return path.lstrip(".")


class PathContextCache(fxi.ContextCache):
    """Locations that name the module. `sizes`: what the texts of `lutra.sizes` and `lutra.number` stand for."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.sizes: dict[str, Described] = {}

    def get_node_location(self, node: fx.Node) -> ir.Location | None:
        base, path = super().get_node_location(node), module_path(node)
        if not path:
            return base
        return ir.Location.name(path, childLoc=base or ir.Location.unknown(self._c), context=self._c)

    def spelled(self, described: Described) -> ir.StringAttr:
        """The text for `described`, from now on known."""
        text = spelled(described)
        if self.sizes.setdefault(text, described) != described:  # equal sizes of another dtype
            text = f"{text} {described.dtype if isinstance(described, SymbolicValue) else len(self.sizes)}"
            self.sizes[text] = described
        return ir.StringAttr.get(text, self._c)


def _says_nothing(node: fx.Node) -> bool:
    """True for the assertion that a size is not negative."""
    if node.target is not torch.ops.aten._assert_scalar.default or not isinstance(node.args[0], fx.Node):
        return False
    condition = node.args[0].meta["val"].node.expr
    return isinstance(condition, sympy.GreaterThan) and condition.lhs.is_Symbol and condition.rhs == 0


class NodeImporter(fxi.GraphNodeImporter):
    """Imports nodes one by one; says of the one that fails which it was (`Refused`)."""

    def import_nodes(self, nodes: Iterable[fx.Node], **_: Any) -> None:
        self._numbers: dict[str, ir.Value] = {}
        arguments = iter(self._b.arguments)
        with ir.InsertionPoint(self._b):
            for node in nodes:
                location = self._cc.get_node_location(node) or ir.Location.unknown(self._c)
                target = node.target
                try:
                    if node.op == "placeholder":
                        self._placeholder(node, next(arguments))
                    elif node.op == "get_attr" and PARAMETER_META in node.meta:
                        self.bind_node_value(node, partial(self._parameter, location, node))
                    elif node.op == "call_function":
                        self._call(location, node)
                    elif node.op == "output":
                        results = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
                        func.ReturnOp([self._import_argument(location, r) for r in results], loc=location)
                except (NotImplementedError, KeyError, AssertionError, TypeError, ValueError, RuntimeError) as error:
                    raise Refused(node, target, error) from error

    def _import_argument(self, loc: ir.Location, arg: Any, expected_jit_type: Any = None) -> ir.Value:
        if not (isinstance(arg, fx.Node) and PARAMETER_META in arg.meta):
            return super()._import_argument(loc, arg, expected_jit_type)
        with loc:  # the stock importer would look for the parameter's values in the graph module
            return self._convert_type(self.resolve_node_value(arg), expected_jit_type)

    def _convert_type(self, val: ir.Value, expected_type: Any, *rest: Any) -> ir.Value:
        """A truth value where the schema has a number: that number, for nothing folds a conversion."""
        numbers = (torch.IntType, torch.NumberType, torch.FloatType)
        literal = val.owner if str(val.type) == "!torch.bool" and isinstance(expected_type, numbers) else None
        if literal is None or literal.name != "torch.constant.bool":
            return super()._convert_type(val, expected_type, *rest)
        number = float if isinstance(expected_type, torch.FloatType) else int
        return self._import_literal(number(ir.BoolAttr(literal.attributes["value"]).value))

    def _placeholder(self, node: fx.Node, argument: ir.Value) -> None:
        self.bind_node_value(node, argument)
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            self._numbers.setdefault(str(value.node.expr), argument)

    def _parameter(self, location: ir.Location, node: fx.Node) -> ir.Value:
        """All parameters are declared at the top of the function."""
        with location, ir.InsertionPoint.at_block_begin(self._b):
            return ParamOp(ir.StringAttr.get(node.meta[PARAMETER_META]), self._cc.node_val_to_type(node)).out

    def _call(self, location: ir.Location, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | torch.SymFloat) and not node.meta.get("unbacked_bindings"):
            self.bind_node_value(node, self._number(location, value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            self.bind_node_value(node, self._literal(location, value))
        elif isinstance(value, torch.SymBool) or _says_nothing(node):
            pass  # a condition that only an assertion reads
        elif node.target is operator.getitem:
            self._import_getitem(location, node)
        elif node.target is call_region:
            self._region(location, node)
        elif isinstance(node.target, OpOverload):
            self._import_torch_op_overload(location, node)
            self._annotate(node, self._v.get((node, 0)))
        else:
            raise NotImplementedError(f"{node.target} is not an operator of torch")

    def _number(self, location: ir.Location, value: torch.SymInt | torch.SymFloat) -> ir.Value:
        """What torch knows a number to be; the steps that led to it are gone."""
        expression = value.node.expr
        if expression.is_number:
            return self._literal(location, int(expression) if isinstance(value, torch.SymInt) else float(expression))
        text = self._cc.spelled(describe(value))
        if text.value not in self._numbers:
            type_ = self._cc.torch_int_type if isinstance(value, torch.SymInt) else self._cc.torch_float_type
            with location:
                self._numbers[text.value] = NumberOp(text, type_).out
        return self._numbers[text.value]

    def _literal(self, location: ir.Location, value: int | float) -> ir.Value:
        with location:
            return self._import_literal(value)

    def _region(self, location: ir.Location, node: fx.Node) -> None:
        name, *values = node.args
        with location:
            operation = ir.Operation.create(
                "torch.operator",
                attributes={"name": ir.StringAttr.get(f"lutra.{name}")},
                results=[self._cc.value_info_to_type(v) for v in node.meta["val"]],
                operands=[self._import_argument(location, v) for v in values],
            )
        self._multi_result_nodes.add(node)
        for index, result in enumerate(operation.results):
            self.bind_node_value(node, result, index)
        self._annotate(node, operation.results[0] if len(operation.results) else None)

    def _annotate(self, node: fx.Node, value: Any) -> None:
        """Write module path and, where the type leaves them open, sizes beside the operation that makes `value`."""
        if not isinstance(value, ir.Value) or isinstance(value, ir.BlockArgument):
            return
        attributes = value.owner.attributes
        if path := module_path(node):
            attributes[PATH_ATTRIBUTE] = ir.StringAttr.get(path, self._c)
        described = describe(node.meta.get("val"))
        if isinstance(described, tuple) and len(described) == len(value.owner.results) == 1:
            described = described[0] if "vtensor" in str(value.type) and "list" not in str(value.type) else described
        if not is_static(described) or "list" in str(value.type):
            attributes[SIZES_ATTRIBUTE] = self._cc.spelled(described)
