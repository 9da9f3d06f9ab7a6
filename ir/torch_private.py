"""Everything of torch that Lutra leans on beneath its public face, in one place.

torch may change any of it in any release: `tests/ir/test_torch_private.py` has a test of each, which says then what is
gone.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import OptimizedModule, lookup_backend
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._dynamo.exc import TensorifyScalarRestartAnalysis, TorchDynamoException
from torch._dynamo.pgo import CodeId, auto_dynamic, get_code_state
from torch._dynamo.source import ConstantSource
from torch._dynamo.symbolic_convert import InstructionTranslator, TensorifyState
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

__all__ = [
    "ConstantSource",
    "FakeTensorMode",
    "OpOverload",
    "OptimizedModule",
    "TorchDynamoException",
    "aot_autograd",
    "compiled_versions",
    "enable_python_dispatcher",
    "float_arguments",
    "floats_of_one_frame",
    "keep_whole",
    "lookup_backend",
    "make_dynamic",
    "many_versions",
    "once_static",
    "source_name",
    "specialize_floats",
    "trace_again",
    "unset_fake_temporarily",
    "versions_at_most",
]


@contextmanager
def keep_whole(operators: Sequence[OpOverload]) -> Iterator[None]:
    """Inside, AOTAutograd does not take these composite `operators` apart."""
    from torch._export.utils import _special_op_to_preserve_cia
    from torch.export import exported_program

    keep = dict.fromkeys(operators, _special_op_to_preserve_cia)
    with exported_program._override_composite_implicit_decomp(keep):
        yield


def source_name(node: fx.Node) -> str | None:
    """Where Dynamo got a placeholder of its graph from: `L['self']._modules['head']._parameters['weight']`."""
    argument = node.meta.get("grapharg") if node.op == "placeholder" else None
    if argument is None:
        return None
    name = argument.source.name
    return str(name() if callable(name) else name)


# Tracing again --------------------------------------------------------------------------------------------------------


def trace_again(reason: str) -> NoReturn:
    """Called by a backend, makes Dynamo drop the graph and trace the frame once more."""
    raise TensorifyScalarRestartAnalysis(restart_reason=reason)


def float_arguments(gm: fx.GraphModule) -> list[str]:
    """Symbols of the Python floats that Dynamo made tensor arguments of its graph `gm`: a norm's eps under
    `dynamic=True`."""
    values = (node.meta.get("example_value") for node in gm.graph.nodes if node.op == "placeholder")
    items = (getattr(value, "item_memo", None) for value in values)
    return [str(item.node._expr) for item in items if isinstance(item, torch.SymFloat)]


def specialize_floats(symbols: Sequence[str]) -> None:
    """When the frame is traced again, these floats are constants of the graph, and guards of it."""
    for symbol in symbols:
        TensorifyState.specialize(symbol)


@contextmanager
def floats_of_one_frame() -> Iterator[None]:
    """Behind it, floats of other frames are Dynamo's to decide about, unless this frame is to be traced again.

    AOTAutograd belongs inside: it asks for a retrace too where it meets floats that nobody spoke of."""
    try:
        yield
    except TensorifyScalarRestartAnalysis:
        raise
    except BaseException:
        TensorifyState.clear()
        raise
    TensorifyState.clear()


def once_static(suffix: str) -> dict[str, Any]:
    """Source name -> what Dynamo remembers of it, for the numbers in the frame under compilation whose names end with
    `suffix` and that had one value in all calls."""
    frame = InstructionTranslator.current_tx()
    state = get_code_state()[CodeId.make(frame.f_code, frame.closure)]
    return {
        name: entry
        for name, entry in state.automatic_dynamic.items()
        if name.endswith(suffix) and isinstance(entry.scalar, int)
    }


def make_dynamic(remembered: Any) -> None:
    """When the frame is traced again, this number, of those of `once_static`, is a symbol."""
    remembered.scalar = auto_dynamic


# How often Dynamo compiles --------------------------------------------------------------------------------------------


def compiled_versions(code: CodeType) -> int:
    """How many graphs Dynamo keeps for a function."""
    return len(_debug_get_cache_entry_list(code))


def versions_at_most() -> int:
    """How many versions of a function Dynamo compiles, before other calls run eagerly."""
    return torch._dynamo.config.recompile_limit


def many_versions() -> AbstractContextManager[Any]:
    """Inside, Dynamo does not give up on a function that was compiled for many models."""
    return torch._dynamo.config.patch(recompile_limit=1 << 10)
