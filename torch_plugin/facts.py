"""What a recipe's `when:` conditions may ask about a graph and this machine."""

import sympy
import torch

from ..codegen.targets.registry import TARGETS
from ..ir.graph import Graph
from ..ir.types import as_tensor_type
from ..recipes.conditions import FACTS


def graph_facts(graph: Graph) -> dict[str, int]:
    """Values for the names of `FACTS`; a size that is symbolic, or that `graph` does not have, is left out.

    `batch` and `sequence` are read off the first argument that has a batch: token ids `[B, S]`, embeddings `[B, S, H]`,
    features `[B, K]` or images `[B, C, H, W]` (the last two have no sequence)."""
    machine = {name: int(target.available()) for name, target in TARGETS.items() if name in FACTS}
    return {"cores": torch.get_num_threads(), **machine, **_sizes(graph)}


def _sizes(graph: Graph) -> dict[str, int]:
    arguments = graph.function.regions[0].blocks[0].arguments
    for argument, info, shape in zip(arguments, graph.inputs, graph.input_shapes, strict=True):
        kind = as_tensor_type(argument.type)
        if kind is None or info.mutated or len(shape) < 2:
            continue
        has_sequence = len(shape) == (3 if kind.dtype.is_floating_point else 2)
        named = {"batch": shape[0], **({"sequence": shape[1]} if has_sequence else {})}
        return {name: int(size) for name, size in named.items() if sympy.sympify(size).is_Integer}
    return {}
