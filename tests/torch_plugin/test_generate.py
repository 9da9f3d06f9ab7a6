"""`model.generate` of Transformers on lutra: eager's tokens, few compilations, caches updated where they are."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
import transformers as tf
import tvm_ffi
from lutra.tuning.memory import Peak, resident


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of this file meet the same graphs and share what was compiled for them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def fresh(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(folder))
    torch._dynamo.reset()


def llama(cache: str = "static", layers: int = 2) -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.cache_implementation = cache
    return model


def prompt(length: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(1, 256, (batch, length), generator=torch.Generator().manual_seed(length))


def phases(model: Any) -> list[str]:
    return [report.phase for report in lutra.report(model).graphs]


GREEDY = {"max_new_tokens": 6, "do_sample": False, "disable_compile": True}
SAMPLING = {**GREEDY, "do_sample": True, "temperature": 0.9, "top_k": 50, "top_p": 0.95}


@pytest.mark.parametrize(("cache", "batch"), [("static", 1), ("static", 4), ("dynamic", 1), ("dynamic", 4)])
def test_greedy_and_sampled_tokens_are_eagers(cache: str, batch: int):
    """Sampling starts both times from the same seed; sequences after the first are padded on the left."""
    model, tokens = llama(cache), prompt(7, batch)
    mask = torch.ones_like(tokens)
    mask[1:, :3] = 0
    expected = [seeded(model, tokens, mask, options) for options in (GREEDY, SAMPLING)]
    model.forward = torch.compile(model.forward, backend="lutra")
    got = [seeded(model, tokens, mask, options) for options in (GREEDY, SAMPLING)]
    assert not torch.equal(*expected)  # else sampling would show nothing
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert {"prefill", "decode"} == set(phases(model))


def seeded(model: Any, tokens: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(1)
    return model.generate(tokens, attention_mask=mask, **options)


def test_a_model_compiled_as_a_whole_generates_eagers_tokens():
    """`model.compile(...)`; what `torch.compile(model)` returns leaves `generate` to the model that it wraps."""
    model, tokens = llama(), prompt(7)
    expected = model.generate(tokens, **GREEDY)
    model.compile(backend="lutra")
    assert torch.equal(model.generate(tokens, **GREEDY), expected)
    assert phases(model) == ["prefill", "decode"]


def test_a_model_wrapped_as_a_whole_steps_to_eagers_tokens():
    model, tokens = llama(), prompt(7)
    expected = model.generate(tokens, **GREEDY)
    fast: Callable[..., Any] = torch.compile(model, backend="lutra")
    cache = tf.StaticCache(model.config, max_cache_len=16)
    new = tokens
    with torch.no_grad():
        while tokens.shape[1] < expected.shape[1]:
            new = fast(new, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, new], 1)
    assert torch.equal(tokens, expected)
    assert phases(model) == ["prefill", "decode"]


@pytest.mark.parametrize("keywords", [{}, {"mode": None, "options": {"recipe": "none", "strict": True}}])
def test_transformers_compiles_the_steps_of_generate_with_lutra(keywords: dict[str, Any]):
    """`CompileConfig` compiles decode steps over a compilable cache only, and on a CPU only when it is made to."""
    model, tokens = llama(), prompt(7)
    expected = model.generate(tokens, **GREEDY)
    config = tf.CompileConfig(backend="lutra", **keywords)
    config._compile_all_devices = True
    options = {**GREEDY, "disable_compile": False, "compile_config": config}
    for _ in range(2):
        assert torch.equal(model.generate(tokens, **options), expected)
    assert phases(model) == ["decode"]


LENGTHS = [5, 3, 4, 2, 6, 7, 8, 9, 12, 15, 16, 17, 23, 31, 32, 33, 47, 64, 100, 130]


@pytest.mark.parametrize(
    ("cache", "lengths"),
    [("static", LENGTHS), ("static", sorted(LENGTHS)), ("dynamic", LENGTHS)],
    ids=["static", "static-growing", "dynamic"],
)
def test_prompts_of_twenty_lengths_compile_at_most_two_prefills(cache: str, lengths: list[int]):
    """`generate` makes a larger static cache whenever the last one was too small: also that costs no third one."""
    model, eager = llama(cache), llama(cache)
    model.forward = torch.compile(model.forward, backend="lutra")
    options = {**GREEDY, "max_new_tokens": 3}
    for length in (*lengths, lengths[0]):
        tokens = prompt(length)
        assert torch.equal(model.generate(tokens, **options), eager.generate(tokens, **options)), length
    assert phases(model).count("prefill") <= 2
    assert phases(model).count("decode") <= 2


def test_the_static_cache_stays_where_it_is_through_generate():
    model, tokens = llama(), prompt(5)
    cache = tf.StaticCache(model.config, max_cache_len=16)
    places: list[list[int]] = []

    def note(ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        places.append([t.data_ptr() for t in tensors(cache)])
        return torch.zeros(ids.shape[0], dtype=torch.bool)

    model.generation_config.cache_implementation = None
    reference = copy.deepcopy(cache)
    expected = model.generate(tokens, past_key_values=reference, **GREEDY)
    model.forward = torch.compile(model.forward, backend="lutra")
    got = model.generate(tokens, past_key_values=cache, stopping_criteria=[note], **GREEDY)
    assert torch.equal(got, expected)
    assert len(places) == 6 and all(place == places[0] for place in places)
    assert len(set(places[0])) == 2 * len(cache.layers)
    torch.testing.assert_close(tensors(cache), tensors(reference))


def tensors(cache: Any) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux measures the peak of one step")
@pytest.mark.parametrize("earlier", [(), (256, 512)], ids=["static-length", "symbolic-length"])
def test_a_decode_step_needs_no_memory_as_large_as_a_cache(earlier: tuple[int, ...]):
    """Whoever copies a cache needs room for it: torch, compiled code or the glue between them.

    Caches of `earlier` lengths make the length symbolic."""
    model = llama(layers=1)
    fast = torch.compile(model, backend="lutra")
    tokens = prompt(8)
    with torch.no_grad():
        for length in (*earlier, 2**18):
            cache: Any = tf.StaticCache(model.config, max_cache_len=length)
            fast(tokens[:, :5], past_key_values=cache)
            fast(tokens[:, 5:6], past_key_values=cache)
            fast(tokens[:, 6:7], past_key_values=cache)
        # TVM keeps what it has freed, which a copy could take again unseen.
        tvm_ffi.get_global_func("vm.builtin.memory_manager.clear")()
        before = resident()
        with Peak() as peak:
            fast(tokens[:, 7:], past_key_values=cache)
    assert tensors(cache)[0].nbytes == 2**26  # more than malloc ever keeps for itself
    assert peak.bytes - before < 2**25


SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    "config",
    [
        tf.MistralConfig(**SIZES, sliding_window=6),
        tf.Gemma2Config(**SIZES, sliding_window=6, head_dim=16, query_pre_attn_scalar=16),
    ],
    ids=lambda config: config.model_type,
)
def test_windows_that_slide_over_a_dynamic_cache_give_eagers_tokens(config: Any):
    """The window is passed by prompt and by steps; sizes are maxima and have ranges without an end."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    tokens, keywords = prompt(9) % 128, {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
    with torch.no_grad():
        expected = model.generate(tokens, attention_mask=torch.ones_like(tokens), **keywords)
        model.forward = torch.compile(model.forward, backend="lutra")
        got = model.generate(tokens, attention_mask=torch.ones_like(tokens), **keywords)
    torch.testing.assert_close(got, expected)
    assert lutra.report(model).graphs and all(report.fell is None for report in lutra.report(model).graphs)
