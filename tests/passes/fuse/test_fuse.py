"""`fuse` on whole models: values stay, operations are what the architecture has, a second run changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra.tests.support.architectures import VOCABULARY
from torch import nn

LAYERS = 2
ARCHITECTURES = {
    "llama": {"linear": 4 * LAYERS + 1, "rms_norm": 2 * LAYERS + 1, "rope": 2 * LAYERS, "gated_mlp": LAYERS},
    "qwen3": {"linear": 4 * LAYERS + 1, "rms_norm": 4 * LAYERS + 1, "rope": 2 * LAYERS, "gated_mlp": LAYERS},
    "gpt2": {"linear": 4 * LAYERS + 1, "layer_norm": 2 * LAYERS + 1},
    "opt": {"linear": 4 * LAYERS + 1, "layer_norm": 2 * LAYERS + 1},
    "bert": {"linear": 4 * LAYERS + 2, "layer_norm": 2 * LAYERS + 2},
}
FUSED = ("linear", "rms_norm", "layer_norm", "rope", "gated_mlp", "attention", "kv_update", "rope_kv_update")


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, in the Euclidean norm, in float64."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_values_stay_and_operations_are_what_the_architecture_has(
    name: str, make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    model, backend = make_model(name), interpreted({"fuse": {}})
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    arguments = {"input_ids": tokens, "attention_mask": mask}
    if name != "bert":
        arguments["use_cache"] = False  # type: ignore[assignment]
    with torch.no_grad():
        expected = model(**arguments).logits
        got = torch.compile(model, backend=backend, fullgraph=True)(**arguments).logits
    assert difference(got, expected) < 1e-5
    counts = backend.counts()
    assert {k: v for k, v in counts.items() if k in FUSED} == {**ARCHITECTURES[name], "attention": LAYERS}
    for gone in (
        "aten.linear",
        "aten.addmm",
        "aten.repeat_interleave",
        "aten.scaled_dot_product_attention",
        "aten.silu",
    ):
        assert counts[gone] == 0
    assert counts["aten.cos"] == (1 if "rope" in ARCHITECTURES[name] else 0)
    before = str(backend.graph.module)
    (report,) = backend.rewrite({"fuse": {}})
    assert report.changed == {}
    assert str(backend.graph.module) == before


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_is_as_near_to_float32_as_eager_is(
    name: str, make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    model, backend = make_model(name, torch.bfloat16), interpreted({"fuse": {}})
    with torch.no_grad():
        eager = model(tokens).logits
        got = torch.compile(model, backend=backend, fullgraph=True)(tokens).logits
        exact = model.float()(tokens).logits
    assert got.dtype == torch.bfloat16
    assert difference(got, exact) < 1.5 * difference(eager, exact) + 1e-3
    counts = backend.counts()
    assert {k: v for k, v in counts.items() if k in FUSED} == {**ARCHITECTURES[name], "attention": LAYERS}


def static_cache(model: nn.Module, batch: int, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import StaticCache

    config: Any = model.config
    cache = StaticCache(config=config, max_cache_len=16)
    heads, size = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    cache.early_initialization(batch, heads, size, dtype, torch.device("cpu"))
    return cache


def test_decoding_rotates_and_updates_a_static_cache_with_one_operation_per_layer(
    make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    model, backend = make_model("llama"), interpreted({"fuse": {}})
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    caches = [static_cache(model, len(tokens)) for _ in range(2)]
    step = torch.randint(3, VOCABULARY, (len(tokens), 1))
    with torch.no_grad():
        for cache in caches:
            model(tokens, past_key_values=cache)
        expected = model(step, past_key_values=caches[0]).logits
        got = compiled(step, past_key_values=caches[1]).logits
    assert difference(got, expected) < 1e-5
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        assert difference(ours.keys, theirs.keys) < 1e-5
        assert difference(ours.values, theirs.values) < 1e-5
    assert backend.graph.phase == "decode"
    counts = backend.counts()
    assert counts["rope_kv_update"] == LAYERS
    assert counts["kv_update"] == counts["rope"] == 0


def test_symbolic_sizes_fuse_as_static_ones_do(make_model: Callable[..., nn.Module], interpreted: Callable[..., Any]):
    model, backend = make_model("llama"), interpreted({"fuse": {}})
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for batch, length in ((2, 7), (3, 5)):
            tokens = torch.randint(3, VOCABULARY, (batch, length))
            expected = model(tokens, use_cache=False).logits
            assert difference(compiled(tokens, use_cache=False).logits, expected) < 1e-5
    counts = {k: v for k, v in backend.counts().items() if k in FUSED}
    assert counts == {**ARCHITECTURES["llama"], "attention": LAYERS}


def test_grouped_heads_reach_attention_without_being_repeated(
    make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    model, backend = make_model("llama"), interpreted({"fuse": {}})
    with torch.no_grad():
        torch.compile(model, backend=backend)(tokens, use_cache=False)
    lines = [line for line in str(backend.graph.module).splitlines() if "lutra.attention" in line]
    assert len(lines) == LAYERS
    assert all("vtensor<[2,4,7,16],f32>, !torch.vtensor<[2,2,7,16],f32>, !torch.vtensor<[2,2,7,16]" in x for x in lines)


def test_every_fused_operation_keeps_the_paths_of_its_modules(
    make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    from lutra.ir.operator_call import operation_name
    from lutra.ir.rewriting import paths

    model, backend = make_model("llama"), interpreted({"fuse": {}})
    with torch.no_grad():
        torch.compile(model, backend=backend)(tokens, use_cache=False)
    linears = [paths(op) for op in backend.graph.operations if operation_name(op) == "lutra.linear"]
    modules = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {path for own in linears for path in own} == modules
    attention = "model.layers.0.self_attn"
    assert linears[0] == tuple(f"{attention}.{x}_proj" for x in "qkv")


def test_growing_caches_and_left_padding_keep_their_values(
    make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    from transformers import DynamicCache

    model, backend = make_model("llama"), interpreted({"fuse": {}})
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=False)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    step = torch.randint(3, VOCABULARY, (len(tokens), 1))
    results = []
    with torch.no_grad():
        for run in (model, compiled):
            cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
            prompt = run(tokens, attention_mask=mask, past_key_values=cache).logits
            longer = torch.cat([mask, torch.ones_like(step)], 1)
            results.append((prompt, run(step, attention_mask=longer, past_key_values=cache).logits))
    # The logits of padding itself are arbitrary: rows in which nothing may be attended.
    assert difference(results[1][0][mask.bool()], results[0][0][mask.bool()]) < 1e-5
    assert difference(results[1][1], results[0][1]) < 1e-5
    assert [graph.phase for graph in backend.graphs] == ["prefill", "decode"]
