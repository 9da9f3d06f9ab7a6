"""Static caches that grow with the prompts cost one compilation, not two.

Dynamo makes a size symbolic when it sees a second value. Prompts of two lengths over caches of one length give a graph
for any prompt; the first prompt that needs a larger cache then gives a third one. So when a graph has a symbolic size
already, and it makes static caches, their lengths become symbolic with it.

What leans on private torch interfaces is `_lengths` and the exception; `tests/torch_plugin/test_generate.py` guards it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._dynamo.pgo import CodeId, auto_dynamic, get_code_state
from torch._dynamo.symbolic_convert import InstructionTranslator

_LENGTH = ".max_cache_len"  # of a layer of Transformers' StaticCache


def trace_for_any_cache_length(gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Returns when `gm` may be compiled; else makes Dynamo trace the frame again, with the lengths symbolic."""
    if not any(isinstance(value, torch.SymInt) for value in inputs):
        return
    given = {_source(node) for node in gm.graph.nodes}
    fixed = {name: entry for name, entry in _lengths().items() if f"{name.removesuffix(_LENGTH)}.keys" not in given}
    if fixed and not given & fixed.keys():  # what is given is symbolic: Dynamo writes other numbers into the graph
        for entry in fixed.values():
            entry.scalar = auto_dynamic
        raise TensorifyScalarRestartAnalysis(restart_reason="static caches may have another length at the next call")


def _source(node: fx.Node) -> Any:
    argument = node.meta.get("grapharg") if node.op == "placeholder" else None
    name = argument.source.name if argument is not None else None
    return str(name() if callable(name) else name)


def _lengths() -> dict[str, Any]:
    """Name -> what Dynamo remembers of it, for the lengths in the frame under compilation that had only one value."""
    frame = InstructionTranslator.current_tx()
    state = get_code_state()[CodeId.make(frame.f_code, frame.closure)]
    return {
        name: entry
        for name, entry in state.automatic_dynamic.items()
        if name.endswith(_LENGTH) and isinstance(entry.scalar, int)
    }
