"""Frames that Dynamo traces once more before they are compiled, because what it made of their numbers is not wanted.

*Floats are constants.* Under `dynamic=True` Dynamo turns Python floats (a norm's eps) into tensor arguments, of which
no kernel can be made; they become constants of the graph, with guards.

*Static caches that grow with the prompts cost one compilation, not two.* Dynamo makes a size symbolic when it sees a
second value. Prompts of two lengths over caches of one length give a graph for any prompt; the first prompt that needs
a larger cache then gives a third one. So when a graph has a symbolic size already, and it makes static caches, their
lengths become symbolic with it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..ir.torch_private import (
    float_arguments,
    make_dynamic,
    once_static,
    source_name,
    specialize_floats,
    trace_again,
)

_LENGTH = ".max_cache_len"  # of a layer of Transformers' StaticCache


def trace_as_wanted(gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Returns when `gm` may be compiled; else makes Dynamo trace the frame again."""
    if floats := float_arguments(gm):
        specialize_floats(floats)
        trace_again("floats are constants")
    if not any(isinstance(value, torch.SymInt) for value in inputs):
        return
    given = {source_name(node) for node in gm.graph.nodes}
    fixed = {
        name: entry for name, entry in once_static(_LENGTH).items() if f"{name.removesuffix(_LENGTH)}.keys" not in given
    }
    if fixed and not given & fixed.keys():  # what is given is symbolic: Dynamo writes other numbers into the graph
        for entry in fixed.values():
            make_dynamic(entry)
        trace_again("static caches may have another length at the next call")
