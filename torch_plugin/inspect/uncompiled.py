"""Why a model, or a part of its calls, does not run on Lutra: what a user would otherwise find out by its speed."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ...ir.torch_private import OptimizedModule, compiled_versions, versions_at_most
from ..nets import warn_once

_NAME = "lutra"
_GENERATE = (
    "`generate` of what torch.compile(model) returned is the model's own and runs eagerly, with any backend: "
    'model.compile(backend="lutra", options=...) compiles in place, then model.generate(...)'
)
_DIRECTLY = (
    "methods that call `forward` or submodules by themselves (`encode` of sentence-transformers) go around what "
    'model.compile() made: model.forward = torch.compile(model.forward, backend="lutra", options=...) reaches these'
)


class Elsewhere:
    """A graph that went to the training backend: called in its place, and remembered for the report.

    state: kept alive as long as this is."""

    def __init__(self, call: Any, backend: str, state: object) -> None:
        self._call = call
        self.backend = backend
        self._state = state

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


def warn_of_eager_generate() -> None:
    """From now on `torch.compile(model, backend="lutra").generate` is warned of, once.

    torch hands every attribute on to the model that it wraps; nobody else is asked."""
    hand_on = OptimizedModule.__getattr__

    def with_warning(self: OptimizedModule, name: str) -> Any:
        if name == "generate" and is_ours(self):
            warn_once(_GENERATE)
        return hand_on(self, name)

    OptimizedModule.__getattr__ = with_warning  # type: ignore[method-assign]


def is_ours(compiled: OptimizedModule) -> bool:
    """True when `compiled` calls the lutra backend."""
    backend = getattr(compiled.dynamo_ctx, "callback", None)
    while (inner := getattr(backend, "_torchdynamo_orig_backend", None)) is not None:
        backend = inner
    return getattr(backend, "_compiler_name", getattr(backend, "compiler_name", "")) == _NAME


def why_not_compiled(model: Any, module: nn.Module, graphs: int, elsewhere: list[Elsewhere]) -> Iterator[str]:
    """Sentences about what of `model` (as it was asked for; `module` holds its parameters) does not run on Lutra;
    `graphs`: how many do or were tried."""
    for backend in sorted({graph.backend for graph in elsewhere}):
        count = sum(graph.backend == backend for graph in elsewhere)
        yield (
            f"{count} graph{'s' if count > 1 else ''} needed gradients and went to {backend!r}: call the model under "
            "torch.no_grad() or torch.inference_mode()"
        )
    yield from _recompiled(module)
    config = getattr(getattr(module, "generation_config", None), "compile_config", None)
    if not graphs and getattr(config, "backend", None) == _NAME and not getattr(config, "_compile_all_devices", False):
        yield (
            "the CompileConfig of generation_config compiles nothing on a CPU until its `_compile_all_devices` is True "
            "(of the CompileConfig, not of the model's config)"
        )
    if graphs or elsewhere:
        return
    if isinstance(model, OptimizedModule):
        yield "compiled, and not called yet"
        if hasattr(module, "generate"):
            yield _GENERATE
    elif module._compiled_call_impl is not None:
        yield "compiled in place, and not called yet"
        yield _DIRECTLY
    else:
        yield (
            "nothing of it was compiled, or what was is gone: "
            'model.compile(backend="lutra", options={"recipe": ...}), then call it under torch.no_grad()'
        )


def _recompiled(module: nn.Module) -> Iterator[str]:
    """Functions of which Dynamo has as many versions as it makes: other calls run eagerly."""
    limit = versions_at_most()
    seen = set()
    for part in module.modules():
        code = getattr(getattr(type(part).forward, "__wrapped__", type(part).forward), "__code__", None)
        if code is None or code in seen:
            continue
        seen.add(code)
        if compiled_versions(code) >= limit:
            yield (
                f"Dynamo compiled {type(part).__name__}.forward {limit} times and gives up: other calls run eagerly "
                "(torch._dynamo.config.recompile_limit; TORCH_LOGS=recompiles says what changes)"
            )
