"""The model that benchmarks run, and the ways in which torch runs it: eager, inductor, torchao and recipes of lutra."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lutra import LutraError
from lutra.tuning.memory import Peak, resident, weights_read, weights_read_eagerly
from lutra.tuning.speed import Timing, time_steps
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache


def _llama(vocabulary: int, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        tie_word_embeddings=False,
    )


SHAPES = {
    "1.1b": _llama(32000, 2048, 8192, 16, 32, 8),
    "0.4b": _llama(32000, 1024, 4096, 20, 16, 4),
    "0.15b": _llama(32000, 768, 2048, 12, 12, 3),
    "tiny": _llama(512, 256, 512, 2, 4, 2),
}


def empty_model(shape: str) -> LlamaForCausalLM:
    """A bfloat16 Llama without values (on `meta`): all that is imported for a model is, and it takes no memory."""
    with torch.device("meta"):
        return LlamaForCausalLM(SHAPES[shape]).bfloat16().eval()


def fill(model: LlamaForCausalLM) -> None:
    """Normal weights of deviation 0.02, made in about a second a billion.

    One block of random numbers fills all matrices; its length shares no factor with theirs, so that no two rows are
    the same."""
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)  # its table is a buffer that `to_empty` lost
    block = (torch.randn((1 << 20) + 7, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.fill_(1)
            continue
        flat, size = parameter.data.view(-1), len(block)
        for start in range(0, len(flat), size):
            flat[start : start + size] = block[: len(flat) - start]


PEERS = ("eager", "inductor", "torchao-int4")
"""What torch itself brings; every other name of a `TorchEngine` is a recipe."""


class TorchEngine:
    """One way to run the model, in this process; `name`: one of `PEERS` or a recipe.

    A generation is a prompt of `[batch, prompt]` random tokens, then `new_tokens` greedy ones over a static cache.
    Without `module_guards`, Dynamo does not look at every module before every call (docs/options.md)."""

    def __init__(
        self,
        name: str,
        shape: str,
        prompt: int,
        new_tokens: int,
        threads: int,
        batch: int = 1,
        module_guards: bool = True,
    ) -> None:
        torch.set_num_threads(threads)
        self.model = empty_model(shape)
        self._bare = resident()
        fill(self.model)
        self._ids = torch.randint(
            0, SHAPES[shape].vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(1)
        )
        self._new_tokens = new_tokens
        self._lutra = name not in PEERS
        config = self.model.config
        self._cache = StaticCache(config=config, max_cache_len=prompt + new_tokens)
        head_size = config.hidden_size // config.num_attention_heads
        heads = config.num_key_value_heads or config.num_attention_heads
        self._cache.early_initialization(batch, heads, head_size, torch.bfloat16, torch.device("cpu"))
        self._forward: Callable[..., Any] = self.model
        self._saved = _quantize_with_torchao(self.model) if name == "torchao-int4" else 0
        options: dict[str, Any] = (
            {} if module_guards else {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        )
        if name in ("inductor", "torchao-int4"):
            self._forward = torch.compile(self.model, dynamic=False, options=options or None)
        elif self._lutra:
            options |= {"recipe": name, "release_weights": True}
            self._forward = torch.compile(self.model, backend="lutra", dynamic=False, options=options)

    def first_call(self) -> float:
        """Seconds of the first prefill and the first decode step, compiling included."""
        start = time.perf_counter()
        time_steps(self._forward, self._ids, 2, self._cache)
        return time.perf_counter() - start

    def run(self) -> tuple[Timing, int]:
        """One generation, and the most bytes that were resident in it above what the process had before the model."""
        with Peak() as peak:
            timing = time_steps(self._forward, self._ids, self._new_tokens, self._cache)
        return timing, peak.bytes - self._bare

    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads."""
        if not self._lutra:
            return weights_read_eagerly(self.model) - self._saved
        from lutra.torch_plugin.inspect.report import states_of  # only here: the peers do not load the compiler

        graphs = [graph.graph for state in states_of(self.model) for graph in state.graphs]
        return next(weights_read(graph) for graph in graphs if graph.phase == "decode")


def _quantize_with_torchao(model: torch.nn.Module) -> int:
    """Its 4-bit weights for CPUs, groups of 128, bfloat16 activations, in every linear; bytes that this saved.

    Its tensors give themselves out for the bfloat16 ones that they replace."""
    try:
        from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import quantize_
    except ImportError as error:
        raise LutraError(f"torchao-int4: {error}: `make peers` installs what the benchmark compares with") from None
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=128))
    weights: list[Any] = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return sum(2 * w.numel() - w.qdata.nbytes - w.scale_and_zero.nbytes for w in weights)
