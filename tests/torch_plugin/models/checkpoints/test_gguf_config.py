"""Metadata of a GGUF file as a configuration of Transformers."""

import math
from typing import Any

import pytest
import torch
from lutra.ir.errors import CheckpointError
from lutra.torch_plugin.models.checkpoints.gguf_config import llama_config

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 4096,
    "llama.embedding_length": 512,
    "llama.block_count": 3,
    "llama.feed_forward_length": 1024,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 64,
    "llama.rope.freq_base": 500000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def llama31(factor: float, base: float = 500000.0, size: int = 64) -> torch.Tensor:
    """Divisors of the frequencies as llama.cpp's converter computes them for Llama 3.1."""
    divisors = []
    for i in range(0, size, 2):
        length = 2 * math.pi * base ** (i / size)
        if length < 8192 / 4:
            divisors.append(1.0)
        elif length > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / length - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(divisors)


def test_fields_have_their_places():
    config = llama_config(METADATA, ["output.weight"], 1000)
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (512, 1024, 3)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 2, 64)
    assert (config.vocab_size, config.max_position_embeddings, config.rms_norm_eps) == (1000, 4096, 1e-5)
    assert config.rope_parameters == {"rope_theta": 500000.0, "rope_type": "default"}
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)
    assert not config.tie_word_embeddings and not config.attention_bias and not config.mlp_bias


def test_what_need_not_be_there():
    less = {k: v for k, v in METADATA.items() if not k.endswith(("head_count_kv", "freq_base", "dimension_count"))}
    config = llama_config(less, [f"blk.0.attn_{layer}.bias" for layer in ("q", "k", "v", "output")], 1000)
    assert config.num_key_value_heads == 8 and config.head_dim == 64 and config.attention_bias
    assert config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}
    assert config.tie_word_embeddings


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_frequencies_of_llama_31(factor: float):
    rope: Any = llama_config(METADATA, [], 1000, llama31(factor)).rope_parameters
    assert rope["rope_type"] == "llama3" and rope["factor"] == factor
    assert (rope["low_freq_factor"], rope["high_freq_factor"]) == (1.0, 4.0)


def test_frequencies_of_one_change_nothing():
    config = llama_config(METADATA, [], 1000, torch.ones(32))
    assert config.rope_parameters == {"rope_theta": 500000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    ("change", "tensors", "frequencies", "message"),
    [
        ({"general.architecture": "qwen2"}, [], None, "its architecture is 'qwen2': GGUF files of 'llama' can be read"),
        ({"llama.expert_count": 8}, [], None, "mixture of experts"),
        ({"split.count": 2}, [], None, "one part of several: join them with llama-gguf-split"),
        ({"llama.block_count": None}, [], None, "has no llama.block_count"),
        ({"llama.rope.dimension_count": 32}, [], None, "rope.dimension_count is 32, of heads of 64"),
        ({"llama.rope.scaling.type": "yarn"}, [], None, "scaling.type is 'yarn': none and linear can be read"),
        ({}, ["blk.0.attn_q.bias"], None, "only attn_q have biases"),
        ({}, [], llama31(8.0) ** 2, "not that of Llama 3.1 with the factor 64"),
    ],
)
def test_what_a_configuration_cannot_say(
    change: dict[str, Any], tensors: list[str], frequencies: torch.Tensor | None, message: str
):
    with pytest.raises(CheckpointError, match=message):
        llama_config({**METADATA, **change}, tensors, 1000, frequencies)
