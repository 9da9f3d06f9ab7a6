"""One captured graph: its MLIR module together with what the module's text does not say."""

from dataclasses import dataclass, field
from typing import Any, Literal

import sympy

from .params import ParameterStore

Phase = Literal["prefill", "decode", "encode"]


@dataclass(frozen=True)
class GraphInput:
    """Block argument of `@main`: `position` in the caller's argument list.

    `symbol`: set for a symbolic size (`!torch.int`). `mutated`: the graph updates it in place (a KV cache)."""

    position: int
    name: str
    symbol: sympy.Symbol | None = None
    mutated: bool = False


@dataclass
class Graph:
    """An MLIR module with one function `@main`, in any stage between import and code generation.

    `inputs`: one per block argument, in order. `mutations`: result index of `@main` -> block-argument index that the
    result is written to (those results are not returned to the caller). `parameter_positions`: position in the
    caller's argument list -> name of the parameter that was passed there at capture. `input_shapes`: per block
    argument the symbolic shape (sympy expressions or ints; () for a `!torch.int`). `symbol_ranges`: symbol -> (least,
    greatest) value."""

    module: Any
    store: ParameterStore
    phase: Phase
    inputs: list[GraphInput]
    mutations: dict[int, int] = field(default_factory=dict)
    parameter_positions: dict[int, str] = field(default_factory=dict)
    input_shapes: list[tuple[sympy.Expr, ...]] = field(default_factory=list)
    symbol_ranges: dict[sympy.Symbol, tuple[int, int]] = field(default_factory=dict)

    @property
    def function(self) -> Any:
        """The `func.func @main` operation; a fresh handle at each call (handles must not outlive a rewrite)."""
        return next(iter(self.module.body.operations))

    @property
    def operations(self) -> Any:
        """The operations of `@main`'s only block; fresh handles at each call."""
        return self.function.regions[0].blocks[0].operations
