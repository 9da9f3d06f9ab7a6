"""A graph as a Python script that runs alone and compares Lutra with eager."""

from typing import Any

import torch
from torch import fx

_SMALL = 256
"""Elements of a constant that is written out; of a larger one the values are left to chance."""


def reproducer(gm: fx.GraphModule, options: dict[str, Any], reason: str) -> str:
    """The script; arguments have the sizes of the call that was traced, and random values. Where torch has to run the
    graph, a warning of Lutra's says so again."""
    constants = [
        f"        self.{node.target} = {_constant(getattr(gm, str(node.target)))}"
        for node in gm.graph.nodes
        if node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), torch.Tensor)
    ]
    arguments = [f"    {_example(n.meta.get('val'))}," for n in gm.graph.nodes if n.op == "placeholder"]
    code = "\n".join(f"    {line}".rstrip() for line in gm.code.strip().splitlines())
    lines = [
        '"""' + reason.replace('"""', "'''").replace("\\", "/") + '"""',
        "import torch",
        "from math import inf, nan",
        "from torch import device",
        "",
        "torch.manual_seed(0)",
        "",
        "",
        "class Graph(torch.nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *dict.fromkeys(constants),
        "",
        code,
        "",
        "",
        "arguments = [",
        *arguments,
        "]",
        "copies = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]",
        "graph = Graph()",
        "with torch.no_grad():",
        "    expected = graph(*arguments)",
        f'    got = torch.compile(graph, backend="lutra", options={options!r})(*copies)',
        "torch.testing.assert_close(list(got), list(expected), equal_nan=True)",
        'print("Lutra agrees with eager")',
    ]
    return "\n".join(lines) + "\n"


def _constant(value: torch.Tensor) -> str:
    if value.numel() <= _SMALL:
        return f"torch.tensor({value.tolist()}, dtype={value.dtype})"
    return _random(tuple(value.shape), value.dtype)


def _example(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _random(tuple(map(_hint, value.shape)), value.dtype)
    return repr(_hint(value))


def _hint(size: Any) -> Any:
    if not isinstance(size, torch.SymInt):
        return size
    environment, expression = size.node.shape_env, size.node.expr
    return int(environment.guarding_hint_or_throw(expression)) if environment.has_guarding_hint(expression) else 8


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    if dtype.is_floating_point or dtype.is_complex:
        return f"torch.randn({list(shape)}).to({dtype})"
    return f"torch.randint(0, 2, {list(shape)}).to({dtype})"
