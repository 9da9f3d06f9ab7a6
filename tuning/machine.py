"""What this machine does in a second, measured once and kept beside the cached executables.

Five kinds of constants, none of them taken from a model whose time is predicted but for the bytes of its weights, which
say what of them the caches keep from one step to the next:

- the read ceiling (`codegen/kernels/cpu/bandwidth.py`) over as many bytes;
- for each kind of linear in use, how fast its kernel streams its weight from memory, and what a call costs beside:
  two chains of equal linears, one of as many bytes, compiled and run as any model is;
- a step outside compiled code and the cost of one kernel call: decode steps of two tiny Llamas that differ in layers,
  after other memory went through the caches, as the weights of a real model do in every step;
- how fast decode attention works: the same steps at a short and at a long context.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from statistics import quantiles
from types import FunctionType
from typing import Any

import torch
from torch import nn

from ..codegen.cache.executables import ExecutableCache, Key
from ..codegen.compile import versions
from ..codegen.kernels.cpu.bandwidth import ReadCeiling
from ..codegen.targets.registry import get_target
from ..ir.analysis.amounts import CONTEXT
from ..ir.analysis.cost import graph_costs, total
from ..ir.errors import LutraError
from ..ir.ops import AttentionOp
from ..ir.torch_private import many_versions
from ..ir.weights.formats import WeightFormat
from ..torch_plugin.inspect.progress import ProgressBar
from ..torch_plugin.inspect.report import states_of
from ..torch_plugin.options import Options

WIDTH, FEWEST = 4096, 4
"""Features of each of the linears of a long chain, and how many it has at least."""
NARROW, NARROW_LINEARS = 1024, 24
"""Features, and number, of the linears of a short chain that stays in the caches: what is not reading shows there."""
LAYERS = (2, 8)
"""Of the two tiny models."""
SHORT, LONG = 128, 1024
"""Contexts up to which, and from half of which, attention is timed."""
TURN, GENERATIONS = 64, 2
"""Steps of one model before the other's turn, and how often both generate `LONG` tokens."""
ATTEMPTS = 3
"""Times that constants which cannot be are measured again."""
REPEATS = 21
"""Calls of a chain in one measurement."""
SWEEP = 32 << 20
"""Bytes that go through the caches before a step of a tiny model."""


@dataclass(frozen=True)
class Product:
    """A kind of linear: `format` of the weight (None: plain), `family` of its kernel, rows of activations, their dtype
    ("bfloat16"), and whether they stay floating-point."""

    format: WeightFormat | None
    family: str
    rows: int
    dtype: str
    keeps_activations: bool = False

    @property
    def name(self) -> str:
        """Unique per kind."""
        weight = "plain" if self.format is None else f"{self.family} {self.format.describe()}"
        return f"{weight}, {self.rows} x {self.dtype}{' kept' if self.keeps_activations else ''}"


@dataclass(frozen=True)
class Machine:
    """read: bytes per second, the ceiling. step: seconds of a decode step outside kernels. kernel: seconds that one
    call costs beside its work. attention: operations per second. products: `Product.name` -> bytes of weights per
    second, and the seconds that one such linear costs beside, its precompute and its threads among them."""

    read: float
    step: float
    kernel: float
    attention: float
    products: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Meter:
    """Measures a `Machine` for models that read `weights` bytes at every step.

    What it compiles for that is kept: measuring again takes some seconds."""

    def __init__(self, options: Options, weights: int) -> None:
        self._options = {"target": options.target, "cache": options.cache, "cache_dir": options.cache_dir}
        self._options["progress"] = False  # there is one bar for all
        self._ceiling = ReadCeiling(weights)
        self._sweep = torch.ones(SWEEP // 4)  # float32
        self._weights = weights
        self._chains: dict[str, tuple[_Chain, _Chain]] = {}

    def overheads(self) -> Machine:
        """All but the products."""
        few, many = _tiny_models(**self._options)
        for _ in range(ATTEMPTS):
            read = self._ceiling.measure(3)
            short, long = _interleaved((few, many), self._sweep.sum)
            kernel = (short[1] - short[0]) / (many.kernels - few.kernels)
            growth = long[1] - short[1]
            step = short[0] - kernel * few.kernels
            if min(kernel, growth, step) > 0:  # else more layers, or more context, took no longer
                return Machine(read, step, kernel, many.attention_operations / growth)
        raise LutraError("this machine was too busy to be measured: run again when nothing else runs on it")

    def product(self, product: Product, kernel: float) -> tuple[float, float]:
        """Bytes of weights per second and seconds of a linear beside; `kernel`: seconds that a kernel call costs."""
        if product.name not in self._chains:
            bits = product.format.bits if product.format is not None else 8 * getattr(torch, product.dtype).itemsize
            count = max(-(-self._weights * 8 // (bits * WIDTH * WIDTH)), FEWEST)
            chains = (
                _Chain(product, WIDTH, count, self._options),
                _Chain(product, NARROW, NARROW_LINEARS, self._options),
            )
            self._chains[product.name] = chains
        wide, narrow = self._chains[product.name]
        each = [(chain.measure() - kernel * chain.kernels) / chain.linears for chain in (wide, narrow)]
        sizes = [chain.weight_bytes / chain.linears for chain in (wide, narrow)]
        rate = (sizes[0] - sizes[1]) / max(each[0] - each[1], 1e-9)
        return rate, max(each[1] - sizes[1] / rate, 0.0)

    def measure(self, products: Iterable[Product]) -> Machine:
        """Everything, now."""
        machine = self.overheads()
        rates = {product.name: self.product(product, machine.kernel) for product in products}
        return Machine(machine.read, machine.step, machine.kernel, machine.attention, rates)


def machine_for(products: Iterable[Product], options: Options, weights: int) -> Machine:
    """The constants of this machine for models that read about `weights` bytes at every step: from the cache folder, or
    measured now as far as they are missing there."""
    wanted, key = list(products), _key(options, weights)
    kept = ExecutableCache(options.cache_directory()) if options.cache else None
    known = _machine(kept.recall(key)) if kept is not None else None
    missing = [p for p in wanted if known is None or p.name not in known.products]
    if known is not None and not missing:
        return known
    with ProgressBar("measure this machine", options.progress, still=True) as progress:
        progress.step("steps", 0, len(missing) + 1)
        meter = Meter(options, weights)
        known, rates = known or meter.overheads(), {}
        for number, product in enumerate(missing, 1):
            progress.step(product.name, number, len(missing) + 1)
            rates[product.name] = meter.product(product, known.kernel)
    known = Machine(known.read, known.step, known.kernel, known.attention, {**known.products, **rates})
    if kept is not None:
        kept.keep(key, asdict(known))
    return known


def _key(options: Options, weights: int) -> Key:
    """What a measurement depends on, `weights` to the next power of two."""
    return Key(
        {
            "target": get_target(options.target).name,
            "threads": str(torch.get_num_threads()),
            "versions": versions(),
            "bytes": f"2**{round(math.log2(max(weights, 1)))}",
        }
    )


def _machine(content: dict[str, Any] | None) -> Machine | None:
    if content is None:
        return None
    try:
        return Machine(**{**content, "products": {name: tuple(rates) for name, rates in content["products"].items()}})
    except (TypeError, KeyError):
        return None  # of a version with other constants


# What is measured -----------------------------------------------------------------------------------------------------


class _Chain:
    """Linears one after the other, and the seconds that a call of all of them takes."""

    def __init__(self, product: Product, width: int, linears: int, options: Mapping[str, Any]) -> None:
        self.linears = linears
        dtype, format_ = getattr(torch, product.dtype), product.format
        with torch.device("meta"):
            model = _sequential()(*(nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(linears)))
        values = torch.linspace(-1, 1, width * width + 1)[1:].view(width, width).to(dtype)
        for linear in model:
            linear.weight = nn.Parameter(values, requires_grad=False)  # one memory; what is packed of it is apart
        self._model = model.eval()
        recipe: dict[str, Any] = {"lutra": 1, "name": "chain", "passes": []}
        if format_ is not None:
            weights = {"bits": format_.bits, "group_size": format_.group_size or "channel", "scheme": format_.scheme}
            kept = {"activations": "float"} if product.keeps_activations else {}
            recipe["passes"] = [{"quantize-weights": {**weights, **kept, "select": {"operators": "linear"}}}]
        else:
            recipe["passes"] = [{"fuse": {}}]
        family = {} if format_ is None else {"kernel_family": product.family}
        self._run = _compiled(self._model, {**options, **family, "recipe": recipe, "release_weights": True})
        self._x = torch.randn(product.rows, width).to(dtype)
        with torch.no_grad(), many_versions():
            self._run(self._x)
        graph = next(g for state in states_of(self._model) for g in state.graphs)
        self.kernels = sum(graph.executable.summary.kernels.values())
        self.weight_bytes = int(total(graph_costs(graph.graph)).weights)

    @torch.no_grad()
    def measure(self) -> float:
        """Seconds of a call."""
        return undisturbed([_seconds(lambda: self._run(self._x)) for _ in range(REPEATS)])


class _Steps:
    """Decode steps of a Llama whose weights take next to no time, over a static cache."""

    def __init__(self, layers: int, options: Mapping[str, Any]) -> None:
        try:
            from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
        except ImportError:
            raise LutraError(
                "the cost of a step is measured on a Transformers model: pip install transformers"
            ) from None
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=64,
        )
        model = LlamaForCausalLM(config).bfloat16().eval()
        self._cache = StaticCache(config=config, max_cache_len=LONG)
        self._cache.early_initialization(1, 2, 64, torch.bfloat16, torch.device("cpu"))
        self._model = model
        self._forward = _compiled(model, {**options, "recipe": "w4", "vars": {"group_size": 64}})
        self.restart()
        with many_versions():
            self.run(2)
        graph = next(g for state in states_of(model) for g in state.graphs if g.graph.phase == "decode")
        self.kernels = sum(graph.executable.summary.kernels.values())
        attention = total(
            [cost for cost in graph_costs(graph.graph) if cost.name == AttentionOp.OPERATION_NAME]
        ).operations
        self.attention_operations = float(attention.subs(CONTEXT, _LATE) - attention.subs(CONTEXT, _EARLY))

    def restart(self) -> None:
        """Forget all tokens."""
        self._cache.reset()
        self._token = torch.zeros(1, 1, dtype=torch.int64)

    @torch.no_grad()
    def run(self, steps: int, before: Callable[[], Any] = lambda: None) -> list[float]:
        """Seconds of each of the next steps, `before` not counted."""
        times = []
        for _ in range(steps):
            before()
            times.append(_seconds(self._step))
        return times

    def _step(self) -> None:
        logits = self._forward(input_ids=self._token, cache=self._cache, use_cache=True, logits_to_keep=1).logits
        self._token = logits[:, -1].argmax(-1, keepdim=True)


@cache
def _tiny_models(**options: Any) -> tuple[_Steps, _Steps]:
    """With few layers and with many; they serve all meters of the process."""
    few, many = (_Steps(layers, options) for layers in LAYERS)
    return few, many


_EARLY, _LATE = SHORT // 2, LONG * 3 // 4
"""The contexts in the middle of the two stretches that are timed."""


def _interleaved(models: tuple[_Steps, ...], before: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Seconds of a step of each model at a short and at a long context; they take turns, to meet the same machine."""
    short: list[list[float]] = [[] for _ in models]
    long: list[list[float]] = [[] for _ in models]
    for _ in range(GENERATIONS):
        for model in models:
            model.restart()
        for start in range(0, LONG, TURN):
            for index, model in enumerate(models):
                if start < SHORT:
                    short[index] += model.run(TURN, before)
                elif start >= LONG // 2:
                    long[index] += model.run(TURN, before)
                else:
                    model.run(TURN)
    return [undisturbed(times) for times in short], [undisturbed(times) for times in long]


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile: what else runs on a machine makes a step slower, never faster."""
    return quantiles(times, n=4)[0]


def _sequential() -> type[nn.Sequential]:
    """A class whose `forward` is its own: Dynamo runs one graph for all equal models that share a code object."""
    forward = nn.Sequential.forward
    own = FunctionType(forward.__code__.replace(), forward.__globals__)
    return type("Chain", (nn.Sequential,), {"forward": own})


def _compiled(model: nn.Module, options: Mapping[str, Any]) -> Callable[..., Any]:
    return torch.compile(model, backend="lutra", dynamic=False, options=dict(options))


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
