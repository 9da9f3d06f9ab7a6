"""FX graphs (from AOTAutograd, functional, fake tensors in `meta["val"]`) to MLIR.

Three things differ from torch-mlir's stock importer. Placeholders that are parameters become `lutra.param`
operations, so that the function's arguments are what changes from call to call. In-place updates of arguments
(`aten.copy_` at the end of the graph) become additional results and a mutation map. Every operation carries its
module path, as the attribute `lutra.path` and as a named location.
"""

import hashlib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch_mlir import ir
from torch_mlir.extras import fx_importer as fxi
from torch_mlir.extras.fx_as_strided import rewrite_as_strided
from torch_mlir.passmanager import PassManager

from .context import make_context
from .dialect import ParamOp
from .errors import CaptureError
from .graph import Graph, GraphInput, Phase
from .params import ParameterStore

PATH_ATTRIBUTE = "lutra.path"
PARAMETER_META = "lutra.param"


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


class _PathContextCache(fxi.ContextCache):
    def get_node_location(self, node: fx.Node) -> ir.Location | None:
        base, path = super().get_node_location(node), module_path(node)
        if not path:
            return base
        return ir.Location.name(path, childLoc=base or ir.Location.unknown(self._c), context=self._c)


class _Importer(fxi.GraphNodeImporter):
    def _import_argument(self, loc: ir.Location, arg: Any, expected_jit_type: Any = None) -> ir.Value:
        if not (isinstance(arg, fx.Node) and PARAMETER_META in arg.meta):
            return super()._import_argument(loc, arg, expected_jit_type)
        if (arg, 0) not in self._v:
            # All parameters are declared at the top of the function.
            with loc, ir.InsertionPoint.at_block_begin(self._b):
                type_ = self._cc.node_val_to_type(arg)
                self.bind_node_value(arg, ParamOp(ir.StringAttr.get(arg.meta[PARAMETER_META]), type_).out)
        with loc:
            return self._convert_type(self.resolve_node_value(arg), expected_jit_type)

    def _import_torch_op_overload(self, loc: ir.Location, node: fx.Node, concrete_target: Any = None) -> None:
        super()._import_torch_op_overload(loc, node, concrete_target)
        path, value = module_path(node), self._v.get((node, 0))
        if path and value is not None and isinstance(value, ir.Value) and not isinstance(value, ir.BlockArgument):
            value.owner.attributes[PATH_ATTRIBUTE] = ir.StringAttr.get(path, self._c)

    def _create_bind_symbolic_shape_ops(self, loc: ir.Location, node: fx.Node) -> None:
        if node.op == "placeholder":
            super()._create_bind_symbolic_shape_ops(loc, node)


def import_graph(
    gm: fx.GraphModule,
    store: ParameterStore,
    parameters: Mapping[int, str],
    names: Sequence[str],
    phase: Phase,
) -> Graph:
    """Import `gm` (modified in the course).

    `parameters`: placeholder index -> name in `store`; `names`: of all placeholders.
    Raises `CaptureError` for constructs that MLIR's importer cannot express."""
    mutated = _strip_mutations(gm)
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    inputs, nodes = [], []
    bound: dict[int, str] = {}
    for position, node in enumerate(placeholders):
        if position in parameters and node not in mutated.values():
            _to_parameter(gm, node, parameters[position])
            bound[position] = parameters[position]
            continue
        value = node.meta["val"]
        symbol = value.node.expr if isinstance(value, torch.SymInt) else None
        inputs.append(GraphInput(position, names[position], symbol, mutated=node in mutated.values()))
        nodes.append(node)
    rewrite_as_strided(gm.graph)  # the importer does too, too late for the constants that this makes
    _constants_to_parameters(gm, store)
    _rewrite_symbolic_arithmetic(gm)
    shapes = [_symbolic_shape(node.meta["val"]) for node in nodes]
    ranges = _symbol_ranges(nodes)

    context = make_context()
    importer = fxi.FxImporter(context=context, graph_node_importer_cls=_Importer, config_check=False)
    importer._cc = _PathContextCache(context, py_attr_tracker=importer._py_attr_tracker)
    importer._cc._symbolic_guards = {str(s): fxi.RangeConstraint(*bounds) for s, bounds in ranges.items()}
    try:
        with context, ir.Location.unknown(context):
            importer.import_stateless_graph(gm.graph, func_name="main", import_symbolic_shape_expressions=True)
            importer.module.operation.verify()
            # Dead parameters and duplicated constants go; nothing else changes.
            PassManager.parse("builtin.module(func.func(cse,canonicalize))").run(importer.module.operation)
    except (NotImplementedError, KeyError, AssertionError, TypeError, RuntimeError, ir.MLIRError) as error:
        raise CaptureError(f"the graph cannot be written as MLIR: {type(error).__name__}: {error}") from error
    mutations = {result: nodes.index(node) for result, node in mutated.items()}
    return Graph(importer.module, store, phase, inputs, mutations, bound, shapes, ranges)


def _strip_mutations(gm: fx.GraphModule) -> dict[int, fx.Node]:
    """Turn `copy_(placeholder, value)` into a result after the existing ones; returns {result index: placeholder}."""
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    results = list(output.args[0]) if isinstance(output.args[0], tuple | list) else [output.args[0]]
    mutated: dict[int, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.aten.copy_.default:
            continue
        target, value = node.args[0], node.args[1]
        if not (isinstance(target, fx.Node) and isinstance(value, fx.Node) and target.op == "placeholder"):
            raise CaptureError(f"in-place update of something that is not an argument: {node.format_node()}")
        node.replace_all_uses_with(value)
        results = [value if r is node else r for r in results]
        gm.graph.erase_node(node)
        mutated[len(results)] = target
        results.append(value)
    output.args = (tuple(results),)
    return mutated


def _to_parameter(gm: fx.GraphModule, node: fx.Node, name: str) -> None:
    with gm.graph.inserting_before(node):
        attribute = gm.graph.create_node("get_attr", re.sub(r"\W", "_", name), name=node.name + "_param")
    attribute.meta = {**node.meta, PARAMETER_META: name}
    node.replace_all_uses_with(attribute)
    gm.graph.erase_node(node)


def _constants_to_parameters(gm: fx.GraphModule, store: ParameterStore) -> None:
    """Tensors that tracing lifted into the graph become parameters, named by content: graphs and processes agree."""
    for node in gm.graph.nodes:
        if node.op != "get_attr" or PARAMETER_META in node.meta:
            continue
        value = operator.attrgetter(node.target)(gm)
        if not isinstance(value, torch.Tensor):
            continue
        data = value.detach().contiguous()
        content = bytes(data.reshape(-1).view(torch.uint8).tolist()) + repr((tuple(data.shape), data.dtype)).encode()
        name = f"constant.{hashlib.sha256(content).hexdigest()[:16]}"
        node.meta[PARAMETER_META] = store.bind(name, data)
        node.meta.setdefault("val", value)


def _rewrite_symbolic_arithmetic(gm: fx.GraphModule) -> None:
    """Write a sum of sizes and a small power of one, which the importer does not know, as chains of two operands."""
    for node in list(gm.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (pow, operator.pow) and isinstance(node.args[1], int) and node.args[1] > 0:
            operands, combine = [node.args[0]] * node.args[1], operator.mul
        elif node.target is torch.sym_sum:
            operands, combine = list(node.args[0]), operator.add
        else:
            continue
        with gm.graph.inserting_before(node):
            total: Any = operands[0]
            for operand in operands[1:]:
                value = combine(_size(total), _size(operand))
                total = gm.graph.call_function(combine, (total, operand))
                total.meta = {**node.meta, "val": value}
        node.replace_all_uses_with(total)
        gm.graph.erase_node(node)


def _size(operand: Any) -> Any:
    return operand.meta["val"] if isinstance(operand, fx.Node) else operand


def _symbolic_shape(value: Any) -> tuple[sympy.Expr, ...]:
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(d.node.expr if isinstance(d, torch.SymInt) else sympy.Integer(d) for d in value.shape)


def _symbol_ranges(nodes: Sequence[fx.Node]) -> dict[sympy.Symbol, tuple[int, int]]:
    """Value range of every symbol that the arguments' sizes use; 2^62 stands for "unbounded"."""
    ranges: dict[sympy.Symbol, tuple[int, int]] = {}
    for node in nodes:
        value = node.meta["val"]
        sizes = value.shape if isinstance(value, torch.Tensor) else [value]
        for size in sizes:
            if not isinstance(size, torch.SymInt):
                continue
            for symbol in size.node.expr.free_symbols:
                bounds = size.node.shape_env.var_to_range[symbol]
                upper = 2**62 if bounds.upper.is_infinite or bounds.upper > 2**62 else int(bounds.upper)
                ranges[symbol] = (int(bounds.lower), upper)
    return ranges
