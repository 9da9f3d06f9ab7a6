"""`release_weights`: give the memory of original weights back once every graph reads their packed form."""

from collections.abc import Iterable

import torch

from ..ir.dialect import ParamOp
from ..ir.graph import Graph
from ..ir.params import ParameterStore

_fillers: dict[torch.dtype, torch.Tensor] = {}


def release_originals(store: ParameterStore, graphs: Iterable[Graph]) -> list[str]:
    """Release every original that no graph reads as a plain tensor; returns their names.

    A released `nn.Parameter` keeps shape, strides and dtype (compiled graphs are guarded on them) but shares one
    NaN-filled buffer with all the others: eager use shows at once instead of giving a wrong answer."""
    read = {op.sym.value for graph in graphs for op in graph.operations if isinstance(op, ParamOp)}
    plain = {name for name in read if store.original(name) is not None}
    tensors = {name: tensor for name in store.originals() if (tensor := store.original(name)) is not None}
    gone = store.release(keep=plain)
    for name in sorted(gone, key=lambda n: -tensors[n].numel()):  # the largest first: one filler then serves all
        tensor = tensors[name]
        if isinstance(tensor, torch.nn.Parameter) and tensor.is_floating_point():
            tensor.data = _nan_like(tensor)
    return gone


def _nan_like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of NaN with `tensor`'s shape, strides and dtype over a buffer shared by all that need no larger one."""
    size = (
        1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if tensor.numel()
        else 0
    )
    filler = _fillers.get(tensor.dtype)
    if filler is None or filler.numel() < size:
        filler = _fillers[tensor.dtype] = torch.full((size,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    return filler.as_strided(tensor.shape, tensor.stride())
