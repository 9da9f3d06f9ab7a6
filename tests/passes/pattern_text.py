"""Graphs in the short form that docstrings of patterns have: what stands before a rewrite, `=>`, what stands after it.

    %y = lutra.linear(%x, @w)
    %r = aten.add.Tensor(%h, %y, 1)
    =>
    %r = lutra.linear(%x, @w, residual = %h)

A result has the type of the first operand, or those at the end of its line (`: f32[2,3,16]`). Arguments `%x` and
parameters `@w` are f32[2,3,8], or what a line before says (`@w: f32[16,8]`). The graph returns the results of its last
line. Numbers, texts, `none` and lists are constants.
"""

import ast
import re
from typing import Any

from lutra.ir.graph import Graph
from lutra.ir.operator_call import operation_name
from lutra.ir.rewriting import constant, parameter_symbol
from torch_mlir import ir

_OPTIONAL = {
    "lutra.linear": (2, ("bias", "residual")),
    "lutra.attention": (3, ("mask",)),
    "lutra.gated_mlp": (1, ("up",)),
    "lutra.layer_norm": (2, ("bias",)),
}
"""How many operands an operation always has, and the names of those that it may have."""
_LINE = re.compile(r"(%[\w, %]+) = ([\w.]+)\((.*?)\)(?: \{(.*)\})?(?: : (.*))?")
_DECLARED = re.compile(r"([%@][^\s:]+): (\w+\[[\d,]*\])")
_DECLARATIONS = re.compile(rf"(?:{_DECLARED.pattern}(?:, |$))+")
_TYPE = re.compile(r"(\w+)\[([\d,]*)\]")
_OPERAND = re.compile(r"(?:(\w+) = )?(%\w+|@[\w.]*(?:\{[^}]*\}[\w.]*)?|\[.*?\]|\"[^\"]*\"|[\w.+-]+)(?:, |$)")
_USUAL = "f32[2,3,8]"


def example(pattern: type) -> tuple[str, str] | None:
    """What stands before and after a pattern's rewrite, as its docstring says; None where it has no example."""
    lines = map(str.strip, (pattern.__doc__ or "").splitlines())
    parts = [line for line in lines if line == "=>" or _LINE.fullmatch(line) or _DECLARATIONS.fullmatch(line)]
    before, arrow, after = "\n".join(parts).partition("\n=>\n")
    declared = "\n".join(line for line in before.splitlines() if _DECLARATIONS.fullmatch(line))
    return (before, f"{declared}\n{after}") if arrow else None


def to_mlir(text: str, arguments: list[str] | None = None) -> tuple[str, list[str]]:
    """`text` in MLIR's form, and the names of its arguments; `arguments`: those that it is to have."""
    return _Writer(text).written(arguments)


class _Writer:
    def __init__(self, text: str) -> None:
        self._types: dict[str, str] = dict(_DECLARED.findall(text))
        self._head: dict[str, str] = {}
        self._body: list[str] = []
        self._arguments: list[str] = []
        self._names: dict[str, str] = {}
        results: list[str] = []
        for line in text.splitlines():
            if (found := _LINE.fullmatch(line)) is not None:
                results = self._operation(*found.groups(""))
        self._returned = results

    def written(self, arguments: list[str] | None) -> tuple[str, list[str]]:
        names = arguments if arguments is not None else self._arguments
        declared = ", ".join(f"{name}: {self._type(name)}" for name in names)
        types = ", ".join(map(self._type, self._returned))
        lines = [f"{value} = {text}" for text, value in self._head.items()] + self._body
        body = "\n  ".join([*lines, f"return {', '.join(self._returned)} : {types}"])
        return f"func.func @main({declared}) -> ({types}) {{\n  {body}\n}}", names

    def _type(self, name: str) -> str:
        dtype, shape = _TYPE.fullmatch(self._types.get(name, _USUAL)).groups()  # type: ignore[union-attr]
        return f"!torch.vtensor<[{shape}],{dtype}>"

    def _constant(self, text: str) -> str:
        return self._head.setdefault(text, f"%c{len(self._head)}")

    def _operand(self, text: str) -> tuple[str, str]:
        """Name and type of the value that `text` stands for."""
        if text.startswith("%"):
            if text not in self._names and text not in self._arguments:
                self._arguments.append(text)
            return text, self._type(text)
        if text.startswith("@"):
            type_ = self._type(text)
            return self._constant(f'"lutra.param"() {{sym = "{text[1:]}"}} : () -> {type_}'), type_
        if text.startswith("["):
            parts = [self._operand(part) for _, part in _OPERAND.findall(text[1:-1])]
            kind = "!torch.list<int>" if parts[0][1] == "!torch.int" else "!torch.list<vtensor>"
            types = ", ".join(type_ for _, type_ in parts)
            made = f"torch.prim.ListConstruct {', '.join(name for name, _ in parts)} : ({types}) -> {kind}"
            name = f"%l{len(self._body)}_{len(self._head)}"
            self._body.append(f"{name} = {made}")
            return name, kind
        value = None if text == "none" else text == "true" if text in ("true", "false") else ast.literal_eval(text)
        kind = {type(None): "none", bool: "bool", int: "int", float: "float", str: "str"}[type(value)]
        spelt = f"torch.constant.{kind}" if value is None else f"torch.constant.{kind} {text}"
        return self._constant(spelt), f"!torch.{kind}"

    def _operation(self, results: str, name: str, operands: str, attributes: str, types: str) -> list[str]:
        given = [(key, *self._operand(value)) for key, value in _OPERAND.findall(operands)]
        names = results.split(", ")
        told = re.findall(r"\w+\[[\d,]*\]", types)
        first = next((value for _, value, type_ in given if type_.startswith("!torch.vtensor")), "")
        for result, type_ in zip(names, told or [self._types.get(first, _USUAL)] * len(names), strict=True):
            self._types[result] = type_
            self._names[result] = result
        written = [attributes] if attributes else []
        if name in _OPTIONAL:
            always, may = _OPTIONAL[name]
            sizes = [1] * always + [int(key in [k for k, _, _ in given]) for key in may]
            written.append(f"operandSegmentSizes = array<i32: {', '.join(map(str, sizes))}>")
        operation = name if name.startswith("lutra.") else f"torch.{name}"
        if name == "aten.index_copy":  # the torch dialect does not define it
            operation, written = "torch.operator", ['name = "torch.aten.index_copy"']
        signature = f"({', '.join(t for _, _, t in given)}) -> ({', '.join(map(self._type, names))})"
        attached = f" {{{', '.join(written)}}}" if written else ""
        self._body.append(f'{results} = "{operation}"({", ".join(v for _, v, _ in given)}){attached} : {signature}')
        return names


def canonical(graph: Graph) -> str:
    """The operations of a graph in their order, constants where they are used."""
    names: dict[Any, str] = {value: f"%arg{i}" for i, value in enumerate(graph.function.regions[0].blocks[0].arguments)}
    lines = []
    for op in graph.operations:
        name = operation_name(op)
        if name.startswith("torch.constant") or name in ("torch.prim.ListConstruct", "lutra.param"):
            continue
        for result in op.operation.results:
            names[result] = f"%{len(names)}"
        operands = ", ".join(_text(operand, names) for operand in op.operation.operands)
        attributes = ", ".join(f"{each} = {op.operation.attributes[each]}" for each in sorted(op.operation.attributes))
        types = ", ".join(str(result.type) for result in op.operation.results)
        results = ", ".join(names[result] for result in op.operation.results)
        lines.append(f"{results} = {name}({operands}) {{{attributes}}} : {types}")
    return "\n".join(lines)


def _text(value: Any, names: dict[Any, str]) -> str:
    if value in names:
        return names[value]
    if (symbol := parameter_symbol(value)) is not None:
        return f"@{symbol}: {value.type}"
    if isinstance(value.owner, ir.OpView) and operation_name(value.owner) == "prim.ListConstruct":
        return f"[{', '.join(_text(part, names) for part in value.owner.operands)}]"
    return repr(constant(value))
