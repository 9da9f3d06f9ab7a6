"""From a graph of the IR to an `Executable`: look in the cache, else lower to Relax, compile with TVM, store."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tvm
from tvm import relax
from tvm.target.codegen import llvm_cpu_has_features

from ..ir.errors import LoweringError, PackedModelError
from ..ir.graph import Graph
from ..ir.ops import ParamOp
from ..ir.types import as_tensor_type
from .cache.executables import Entry, ExecutableCache, Key
from .lowering import Lowered, Lowering
from .pipelines.own_constants import own_constants
from .pipelines.schedule import schedule_elementwise
from .runtime.executable import Executable, ExecutableSummary
from .runtime.parallel import export_library, load_library
from .runtime.torch_calls import TorchCall
from .runtime.weights import to_data
from .runtime.workspace import Workspace, with_workspace
from .targets import Target
from .targets.base import Family


@dataclass(frozen=True)
class CodegenOptions:
    """strict: an operator without a lowering is an error. kernel_family: "auto", "lookup", "triples" or "dot".
    cache: None compiles anew.

    dump: receives Relax and TIR as text. progress: told which stage runs, and how much of how much of it is done where
    that is known."""

    strict: bool = False
    kernel_family: Literal["auto"] | Family = "auto"
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
    entry, outcome = store.find(key, partial(load_library, launcher_cache=store))
    if entry is not None:
        seconds["load"] = time.perf_counter() - start
    refused = options.strict and entry is not None and entry.content["fallbacks"]  # to be lowered, for the message
    if entry is None or refused or options.dump is not None:
        entry = _build(key, graph, target, options, store, seconds)
    if options.cache is None:
        outcome = "off"
    calls = tuple(TorchCall(**data) for data in entry.content["fallbacks"])
    summary = ExecutableSummary(entry.content["kernels"], calls, outcome, seconds)
    bound = time.perf_counter()
    regions = {name: region.module for name, region in graph.regions.items()}
    executable = Executable(entry, graph.store, summary, regions, partial(options.progress, "weights"))
    seconds["pack weights"] = time.perf_counter() - bound
    seconds["total"] = time.perf_counter() - start
    return executable


def _build(
    key: Key, graph: Graph, target: Target, options: CodegenOptions, store: ExecutableCache, seconds: dict[str, float]
) -> Entry:
    def timed(stage: str, work: Callable[[], Any]) -> Any:
        options.progress(stage)
        start = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - start
        return result

    _require_features(target)
    lowering = Lowering(graph, target, options.kernel_family, options.strict)
    lowered: Lowered = timed("lower", lowering.run)
    if options.dump is not None:
        options.dump("relax.py", lowered.module.script())
    module, workspace = timed("optimise", lambda: _optimised(lowered.module))
    if options.dump is not None:
        options.dump("tir.py", module.script())
    # Bytecode: a step takes as long as when LLVM compiles the sequence of calls too, which takes 15 s for 16 layers.
    library = timed("generate", lambda: relax.build(module, target.tvm_target(), relax_pipeline=None))
    content = {
        "weights": [to_data(w) for w in lowered.weights],
        "outputs": lowered.outputs,
        "workspace": workspace.to_data(),
        "kernels": lowered.kernels,
        "fallbacks": [call.to_data() for call in lowered.fallbacks],
    }
    load = partial(load_library, launcher_cache=store)
    return timed("store", lambda: store.add(key, content, partial(export_library, library), load))


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


def _require_features(target: Target) -> None:
    """LLVM ends the process at an instruction that it does not know the processor to have, so it is asked before."""
    missing = [name for name in target.features if not llvm_cpu_has_features([name], target.tvm_target())]
    if missing:
        raise LoweringError(
            f"target {target.name!r} needs {', '.join(missing)}, which LLVM does not see in {target.tvm_target()}"
        )


def _optimised(module: tvm.IRModule) -> tuple[tvm.IRModule, Workspace]:
    """Relax as calls of scheduled functions over planned memory, and the memory that `main` takes as parameters."""
    passes = relax.transform
    plan = tvm.transform.Sequential(
        [
            passes.LegalizeOps(),
            passes.AnnotateTIROpPattern(),
            passes.FoldConstant(),
            own_constants,
            passes.FuseOps(),
            passes.FuseTIR(),
            passes.DeadCodeElimination(),
            schedule_elementwise,
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
        ]
    )
    lower = tvm.transform.Sequential(
        [
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
    module, workspace = with_workspace(plan(module))
    return lower(module), workspace


def _key(graph: Graph, target: Target, options: CodegenOptions) -> Key:
    """Everything that the executable depends on. Weights' values are not in it: they are bound at load."""
    inputs = [
        (str(i.symbol), i.mutated, [str(d) for d in shape])
        for i, shape in zip(graph.inputs, graph.input_shapes, strict=True)
    ]
    ranges = sorted((str(s), r) for s, r in graph.symbol_ranges.items())
    text = "\n".join(map(str, (graph.module, graph.phase, inputs, graph.mutations, ranges)))
    products = ", ".join(f"{dtype}: {target.product_dtype(dtype)}" for dtype in ("bfloat16", "float16"))
    return Key(
        {
            "graph": hashlib.sha256(text.encode()).hexdigest(),
            "target": f"{target.name} {target.tvm_target()}, products in {products}",
            "options": f"family {options.kernel_family}",
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
