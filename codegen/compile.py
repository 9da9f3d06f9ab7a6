"""From a graph of the IR to an `Executable`: look in the cache, else lower to Relax, compile with TVM, store."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tvm import relax

from ..ir.errors import PackedModelError
from ..ir.graph import Graph
from ..ir.ops import ParamOp
from ..ir.types import as_tensor_type
from .cache.executables import Entry, ExecutableCache, Key
from .lowering.graph import Lowered, lower_graph
from .runtime.executable import Executable, ExecutableSummary
from .runtime.manifest import VERSION as MANIFEST_VERSION
from .runtime.manifest import Manifest
from .select import Database, Family
from .targets.base import Target


@dataclass(frozen=True)
class CodegenOptions:
    """strict: an operator without a lowering is an error. kernel_family: "auto", "lookup", "triples" or "dot".
    database: what was measured to be fastest, problem by problem. cache: None compiles anew.

    dump: receives Relax and TIR as text. progress: told which stage runs, and how much of how much of it is done where
    that is known."""

    strict: bool = False
    kernel_family: Literal["auto"] | Family = "auto"
    database: Database = field(default_factory=dict)
    cache: ExecutableCache | None = None
    dump: Callable[[str, str], None] | None = None
    progress: Callable[..., None] = lambda stage, done=0, total=0: None


def compile_graph(graph: Graph, target: Target, options: CodegenOptions) -> Executable:
    """Compile `graph` for `target` and bind it to the graph's parameters; raises `LoweringError` (strict)."""
    _require_fitting_weights(graph)
    key = _key(graph, target, options)
    store = options.cache or ExecutableCache(None)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    entry, outcome = store.find(key, partial(target.launcher.load, cache=store))
    manifest = None
    if entry is not None:
        seconds["load"] = time.perf_counter() - start
        manifest = Manifest.from_data(entry.content)
    refused = options.strict and manifest is not None and manifest.fallbacks  # to be lowered, for the message
    if entry is None or manifest is None or refused or options.dump is not None:
        entry, manifest = _build(key, graph, target, options, store, seconds)
    if options.cache is None:
        outcome = "off"
    summary = ExecutableSummary(manifest.kernels, manifest.fallbacks, manifest.chosen, outcome, seconds)
    bound = time.perf_counter()
    regions = {name: region.module for name, region in graph.regions.items()}
    progress = partial(options.progress, "weights")
    executable = Executable(entry.library, manifest, target.device, graph.store, summary, regions, progress)
    seconds["pack weights"] = time.perf_counter() - bound
    seconds["total"] = time.perf_counter() - start
    return executable


def _build(
    key: Key, graph: Graph, target: Target, options: CodegenOptions, store: ExecutableCache, seconds: dict[str, float]
) -> tuple[Entry, Manifest]:
    def timed(stage: str, work: Callable[[], Any]) -> Any:
        options.progress(stage)
        start = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - start
        return result

    target.check()
    family = None if options.kernel_family == "auto" else options.kernel_family
    lowered: Lowered = timed("lower", lambda: lower_graph(graph, target, family, options.strict, options.database))
    if options.dump is not None:
        options.dump("relax.py", lowered.module.script())
    module, workspace = timed("optimise", lambda: target.pipeline(lowered.module))
    if options.dump is not None:
        options.dump("tir.py", module.script())
    # Bytecode: a step takes as long as when LLVM compiles the sequence of calls too, which takes 15 s for 16 layers.
    library = timed("generate", lambda: relax.build(module, target.tvm_target(), relax_pipeline=None))
    manifest = replace(lowered.manifest, workspace=workspace)
    export, load = partial(target.launcher.export, library), partial(target.launcher.load, cache=store)
    return timed("store", lambda: store.add(key, manifest.to_data(), export, load)), manifest


def _require_fitting_weights(graph: Graph) -> None:
    """Raise `PackedModelError` when a derived tensor that was loaded from disk is not of the type that `graph` needs:
    the file may be anybody's."""
    for op in graph.operations:
        held = graph.store.kept(op.sym.value) if isinstance(op, ParamOp) else None
        if held is None or (type_ := as_tensor_type(op.out.type)) is None:
            continue
        if (tuple(held.shape), held.dtype) != (type_.shape, type_.dtype):
            raise PackedModelError(
                f"{op.sym.value} is {list(held.shape)} of {held.dtype} where the model needs {list(type_.shape)} of "
                f"{type_.dtype}: pack the model again"
            )


def _key(graph: Graph, target: Target, options: CodegenOptions) -> Key:
    """Everything that the executable depends on. Weights' values are not in it: they are bound at load."""
    inputs = [
        (str(i.symbol), i.mutated, [str(d) for d in shape])
        for i, shape in zip(graph.inputs, graph.input_shapes, strict=True)
    ]
    ranges = sorted((str(s), r) for s, r in graph.symbol_ranges.items())
    text = "\n".join(map(str, (graph.module, graph.phase, inputs, graph.mutations, ranges)))
    tuned = sorted(
        (name, choice.implementation, sorted(choice.knobs.items())) for name, choice in options.database.items()
    )
    return Key(
        {
            "graph": hashlib.sha256(text.encode()).hexdigest(),
            "target": target.fingerprint,
            "options": f"family {options.kernel_family}" + (f", tuned {tuned}" if tuned else ""),
            "manifest": str(MANIFEST_VERSION),
            "versions": versions(),
        }
    )


@cache
def versions() -> str:
    """Libraries by version, our own code by content."""
    code = hashlib.sha256()
    package = Path(__file__).resolve().parent.parent
    for folder in ("codegen", "ir"):
        for path in sorted((package / folder).rglob("*.py")):
            code.update(path.read_bytes())
    names = ("torch", "apache-tvm", "apache-tvm-ffi", "torch-mlir")
    return ", ".join([*(f"{name} {metadata.version(name)}" for name in names), f"lutra {code.hexdigest()[:16]}"])
