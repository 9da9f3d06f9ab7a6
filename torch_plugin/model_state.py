"""What the graphs of one compiled model share: parameters, recipe, target, and the list of compiled graphs."""

import weakref
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.weak import WeakIdKeyDictionary

from ..codegen.cache import ExecutableCache
from ..codegen.compile import CodegenOptions, compile_graph
from ..codegen.targets import get_target
from ..ir.errors import ParameterError
from ..ir.graph import Graph, Phase
from ..ir.params import ParameterStore
from ..passes.pipeline import run_passes
from ..passes.registry import available_passes
from ..recipes.loading import load_recipe
from .compiled_graph import CompiledGraph
from .dump import Dump, dump_fallen
from .facts import graph_facts
from .nets import FallenGraph, TorchGraph, described, must_raise, warn_of_calls, warn_once
from .options import Options
from .progress import CompileProgress
from .release import release_originals

_kept: MutableMapping[torch.nn.Module, "ModelState"] = weakref.WeakKeyDictionary()
"""States that were made before the first graph of their model, which keeps them alive until then and after."""
_states: MutableMapping[Any, Any] = WeakIdKeyDictionary()
"""Parameter -> {options: weak reference to the state}; a state lives as long as a compiled graph that uses it."""


def state_for(inputs: Sequence[Any], options: Options) -> "ModelState":
    """The state of an earlier graph over any of the same parameters and equal options, or a new one."""
    parameters = [x for x in inputs if isinstance(x, torch.nn.Parameter)]
    key = options.fingerprint()
    for parameter in parameters:
        state = _states.get(parameter, {}).get(key, lambda: None)()
        if state is not None:
            break
    else:
        state = ModelState(options)
    share_state(parameters, state)
    return state


def share_state(parameters: Iterable[torch.nn.Parameter], state: "ModelState") -> None:
    """From now on `state_for` finds `state` by any of `parameters`; a graph, or the caller, keeps it alive."""
    for parameter in parameters:
        _states.setdefault(parameter, {})[state.options.fingerprint()] = weakref.ref(state)


def keep_state(model: torch.nn.Module, state: "ModelState") -> None:
    """`state` is that of all graphs of `model` that are compiled with its options, for as long as the model lives."""
    share_state(model.parameters(), state)
    _kept[model] = state


class ModelState:
    """Compiles the graphs of one model under one set of options. Graphs share packed weights through `store`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.recipe = load_recipe(options.recipe, available_passes(), vars=options.vars)
        self.target = get_target(options.target)
        self.store = ParameterStore()
        self.cache = ExecutableCache(options.cache_directory()) if options.cache else None
        self.graphs: list[CompiledGraph] = []
        self.fallen: list[FallenGraph] = []

    def compile(self, graph: Graph, functional: fx.GraphModule) -> Callable[..., Any]:
        """Passes, code generation, and the callable that AOTAutograd runs; raises `LutraError`."""
        dump = Dump.start(self.options.dump, graph, functional)
        with CompileProgress(self.options.progress, graph) as progress:
            progress.step("passes")
            reports = run_passes(graph, self.recipe.steps, graph_facts(graph), dump, self.options.calibration)
            progress.step("code")
            codegen = CodegenOptions(
                strict=self.options.strict,
                kernel_family=self.options.kernel_family,
                cache=self.cache,
                dump=dump,
                progress=progress.step,
            )
            in_torch = None if self.options.strict else TorchGraph.of(functional)
            compiled = CompiledGraph(self, graph, reports, lambda g: compile_graph(g, self.target, codegen), in_torch)
        warn_of_calls(compiled.executable.summary.fallbacks)
        self.graphs.append(compiled)
        if self.options.release_weights and not self.fallen:  # a graph that torch runs reads the originals
            release_originals(self.store, [g.graph for g in self.graphs])
            compiled.remember_parameters()
        return compiled.boxed()

    def refuse(self, error: Exception, gm: fx.GraphModule, phase: Phase) -> Callable[..., Any]:
        """The boxed function that lets torch run `gm`, which cannot be compiled; raises where `error` is the user's to
        mend, or torch has no weights to run with."""
        if (raised := must_raise(error, self.options.strict)) is not None:
            raise raised
        if self.store.released_names():
            raise ParameterError(
                f"the {phase} graph cannot be compiled ({described(error)}), and torch cannot run it instead: "
                "original weights were released"
            ) from error
        reason = described(error)
        self.fallen.append(FallenGraph(phase, reason))
        warn_once(f"torch runs a whole {phase} graph, since Lutra cannot: {reason}")
        if self.options.dump is not None:
            dump_fallen(self.options.dump, gm, reason, self.recipe.name)
        return TorchGraph.of(gm).boxed(self)
