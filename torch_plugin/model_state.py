"""What the graphs of one compiled model share: parameters, recipe, target, and the list of compiled graphs."""

import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSet, Sequence
from contextlib import AbstractContextManager
from itertools import count
from threading import RLock
from typing import Any

import torch
from torch import fx

from ..codegen.cache.executables import ExecutableCache
from ..codegen.compile import CodegenOptions, compile_graph
from ..codegen.targets.registry import get_target
from ..ir.errors import ParameterError
from ..ir.graph import Graph, Phase
from ..ir.weights.store import ParameterStore
from ..passes.pipeline import run_passes
from ..passes.registry import available_passes
from ..recipes.loading import load_recipe
from .compiled_graph import CompiledGraph
from .facts import graph_facts
from .inspect.dump import Dump, dump_fallen
from .inspect.progress import ProgressBar
from .inspect.uncompiled import Elsewhere
from .nets import FallenGraph, TorchGraph, described, must_raise, warn_of_calls, warn_once
from .options import Options
from .release import release_originals
from .weight_watch import WeightWatch

_kept: MutableMapping[torch.nn.Module, "ModelState"] = weakref.WeakKeyDictionary()
"""States that were made before the first graph of their model, which keeps them alive until then and after."""
_states: MutableMapping[int, "ModelState"] = weakref.WeakValueDictionary()
"""All states, numbered as they were made; one lives as long as a compiled graph that uses it."""
_numbers = count()


def state_for(inputs: Sequence[Any], options: Options) -> "ModelState":
    """The state of an earlier graph over any of the same parameters and options that give the same weights, or a new
    one."""
    key = options.fingerprint()
    states = states_over(x for x in inputs if isinstance(x, torch.nn.Parameter))
    return next((state for state in states if state.options.fingerprint() == key), None) or ModelState(options)


def states_over(parameters: Iterable[torch.nn.Parameter]) -> list["ModelState"]:
    """The states that know any of `parameters`, in the order in which they were made."""
    parameters = list(parameters)
    ids = set(map(id, parameters))
    kept = [state for model, state in _kept.items() if not ids.isdisjoint(map(id, model.parameters()))]
    states = [state for _, state in sorted(_states.items())]
    return [s for s in states if s in kept or any(s.knows(parameter) for parameter in parameters)]


def keep_state(model: torch.nn.Module, state: "ModelState") -> None:
    """`state` is that of all graphs of `model` that are compiled with its options, for as long as the model lives."""
    state.watch.add(state.store.released_names())
    _kept[model] = state


class ModelState:
    """Compiles the graphs of one model under one set of options. Graphs share packed weights through `store`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.recipe = load_recipe(options.recipe, available_passes(), vars=options.vars)
        self.target = get_target(options.target)
        self.store = ParameterStore()
        self.watch = WeightWatch(self.store)
        self.lock: AbstractContextManager[Any] = RLock()
        self._watches: MutableSet[WeightWatch] = weakref.WeakSet([self.watch])
        self._graphs: list[weakref.ref[CompiledGraph]] = []
        self._fallen: list[weakref.ref[FallenGraph]] = []
        self._elsewhere: list[weakref.ref[Elsewhere]] = []
        _states[next(_numbers)] = self

    @property
    def graphs(self) -> list[CompiledGraph]:
        """Those that can still be called, in the order in which they were compiled."""
        return [graph for reference in self._graphs if (graph := reference()) is not None]

    @property
    def fallen(self) -> list[FallenGraph]:
        """Those that torch runs and that can still be called."""
        return [graph for reference in self._fallen if (graph := reference()) is not None]

    @property
    def elsewhere(self) -> list[Elsewhere]:
        """Those that went to the training backend and that can still be called."""
        return [graph for reference in self._elsewhere if (graph := reference()) is not None]

    def went_elsewhere(self, graph: Elsewhere) -> Elsewhere:
        """Note `graph`, which is returned."""
        self._elsewhere = [*map(weakref.ref, self.elsewhere), weakref.ref(graph)]
        return graph

    def knows(self, parameter: torch.Tensor) -> bool:
        """True when a graph over `parameter` was compiled."""
        return any(watch.store.name_of(parameter) is not None for watch in self._watches)

    def watch_over(self, tensors: Mapping[str, torch.Tensor]) -> WeightWatch:
        """The watch, with the store, of other `tensors` under the names of the model's: one for all graphs."""
        for watch in self._watches:
            if all(watch.store.bound(name) is tensor for name, tensor in tensors.items()):
                watch.store.learn(self.store)
                watch.renew(list(tensors))
                return watch
        watch = self.watch.rebound(tensors)
        self._watches.add(watch)
        return watch

    def compile(self, options: Options, graph: Graph, functional: fx.GraphModule) -> Callable[..., Any]:
        """Passes, code generation, and the callable that AOTAutograd runs; raises `LutraError`.

        `options` have the fingerprint of those of the state: what they add is of this graph alone."""
        self.watch.renew(list(graph.parameter_positions.values()))  # what earlier graphs packed serves this one too
        dump = Dump.start(options.dump, graph, functional)
        with ProgressBar(f"compile {graph.phase}", options.progress) as progress:
            progress.step("passes")
            facts = graph_facts(graph)
            reports = run_passes(graph, self.recipe.steps, facts, dump, options.calibration, options.strict)
            progress.step("code")
            codegen = CodegenOptions(
                strict=options.strict,
                kernel_family=options.kernel_family,
                cache=ExecutableCache(options.cache_directory()) if options.cache else None,
                dump=dump,
                progress=progress.step,
            )
            in_torch = None if options.strict else TorchGraph.of(functional)
            compiled = CompiledGraph(self, graph, reports, lambda g: compile_graph(g, self.target, codegen), in_torch)
        warn_of_calls(compiled.executable.summary.fallbacks)
        self._graphs = [*map(weakref.ref, self.graphs), weakref.ref(compiled)]
        if options.release_weights and not self.fallen:  # a graph that torch runs reads the originals
            self.watch.renew(release_originals(self.store, [g.graph for g in self.graphs]))
        return compiled.boxed()

    def refuse(self, options: Options, error: Exception, gm: fx.GraphModule, phase: Phase) -> Callable[..., Any]:
        """The boxed function that lets torch run `gm`, which cannot be compiled; raises where `error` is the user's to
        mend, or torch has no weights to run with."""
        if (raised := must_raise(error, options.strict)) is not None:
            raise raised
        if self.store.released_names():
            raise ParameterError(
                f"the {phase} graph cannot be compiled ({described(error)}), and torch cannot run it instead: "
                "original weights were released"
            ) from error
        reason = described(error)
        fallen = FallenGraph(phase, reason)
        self._fallen = [*map(weakref.ref, self.fallen), weakref.ref(fallen)]
        warn_once(f"torch runs a whole {phase} graph, since Lutra cannot: {reason}")
        if options.dump is not None:
            dump_fallen(options.dump, gm, reason, options.model_dump(mode="json", include={"recipe", "vars"}))
        return TorchGraph.of(gm).boxed((self, fallen))
