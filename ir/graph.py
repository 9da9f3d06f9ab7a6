"""One captured graph: its MLIR module together with what the module's text does not say."""

from dataclasses import dataclass, field
from typing import Any, Literal

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .analysis.sizes import Described
from .importing.fx_regions import Region
from .weights.store import ParameterStore

UNLIMITED = 2**62
"""What stands for an end of a range that has none."""

Phase = Literal["prefill", "decode", "encode"]


@dataclass(frozen=True)
class GraphInput:
    """Block argument of `@main`: `position` in the caller's argument list.

    `symbol`: set for a symbolic size (`!torch.int`). `mutated`: the graph updates it in place (a KV cache). `encoded`:
    the foreign dtype of the caller's tensor, which the graph takes as `foreign.encode` writes it."""

    position: int
    name: str
    symbol: sympy.Expr | None = None
    mutated: bool = False
    encoded: torch.dtype | None = None


@dataclass
class Graph:
    """An MLIR module with one function `@main`, in any stage between import and code generation.

    `inputs`: one per block argument, in order. `mutations`: result index of `@main` -> block-argument index that the
    result is written to (those results are not returned to the caller). `parameter_positions`: position in the
    caller's argument list -> name of the parameter that was passed there at capture. `input_shapes`: per block
    argument the symbolic shape (sympy expressions or ints; () for a `!torch.int`). `symbol_ranges`: symbol -> (least,
    greatest) value, `UNLIMITED` for no end. `environment`: torch's own account of the symbols (None for a graph that
    was not captured). `sizes`: what the texts of `lutra.sizes` and `lutra.number` stand for. `regions`: what torch
    runs where the graph has an operator of that name. `encoded_results`: result index -> foreign dtype that it stands
    for. `tokens`: how many of the first arguments, and results, are empty tensors that order side effects; the caller
    has None there."""

    module: Any
    store: ParameterStore
    phase: Phase
    inputs: list[GraphInput]
    mutations: dict[int, int] = field(default_factory=dict)
    parameter_positions: dict[int, str] = field(default_factory=dict)
    input_shapes: list[tuple[sympy.Expr, ...]] = field(default_factory=list)
    symbol_ranges: dict[sympy.Symbol, tuple[int, int]] = field(default_factory=dict)
    environment: ShapeEnv | None = None
    sizes: dict[str, Described] = field(default_factory=dict)
    regions: dict[str, Region] = field(default_factory=dict)
    encoded_results: dict[int, torch.dtype] = field(default_factory=dict)
    tokens: int = 0

    @property
    def function(self) -> Any:
        """The `func.func @main` operation; a fresh handle at each call (handles must not outlive a rewrite)."""
        return next(iter(self.module.body.operations))

    @property
    def operations(self) -> Any:
        """The operations of `@main`'s only block; fresh handles at each call."""
        return self.function.regions[0].blocks[0].operations
