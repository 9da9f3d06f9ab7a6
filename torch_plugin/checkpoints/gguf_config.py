"""The configuration of Transformers for a model of GGUF's architecture `llama`, from the metadata of the file."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ...ir.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import LlamaConfig

_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every published Llama 3.1, 3.2 and 3.3 has beside its `factor`."""


def llama_config(
    metadata: Mapping[str, Any], tensors: Collection[str], vocabulary: int, frequencies: torch.Tensor | None = None
) -> "LlamaConfig":
    """`LlamaConfig` of a file.

    metadata: fields of the file by key (`llama.embedding_length`).
    tensors: names of its tensors. Embeddings are tied when `output.weight` is not among them.
    vocabulary: rows of `token_embd.weight`.
    frequencies: `rope_freqs.weight`, float32 `[head size / 2]`, by which the angles' frequencies are divided.
    Raises `CheckpointError` for what `LlamaConfig` cannot say.
    """
    from transformers import LlamaConfig

    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"its architecture is {architecture!r}: GGUF files of 'llama' can be read")
    if metadata.get("split.count", 1) > 1:
        raise CheckpointError("it is one part of several: join them with llama-gguf-split --merge")
    if metadata.get("llama.expert_count", 0):
        raise CheckpointError("it is a mixture of experts: GGUF files of dense llama models can be read")

    def field(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"its metadata has no llama.{key}, which every llama file has: convert it again")
        return value

    hidden, heads = field("embedding_length"), field("attention.head_count")
    head_size = field("attention.key_length", hidden // heads)
    turned = field("rope.dimension_count", head_size)
    if turned != head_size:
        raise CheckpointError(
            f"its llama.rope.dimension_count is {turned}, of heads of {head_size}: Transformers turns all of it"
        )
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=field("attention.head_count_kv", heads),
        head_dim=head_size,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters=_rope(metadata, frequencies),
        attention_bias=_has_biases(tensors, ("attn_q", "attn_k", "attn_v", "attn_output")),
        mlp_bias=_has_biases(tensors, ("ffn_gate", "ffn_up", "ffn_down")),
        tie_word_embeddings="output.weight" not in tensors,
        architectures=["LlamaForCausalLM"],
        **{name: metadata[key] for key, name in _TOKENS.items() if key in metadata},
    )
    if frequencies is not None:
        _check_frequencies(config, head_size, frequencies)
    return config


def _rope(metadata: Mapping[str, Any], frequencies: torch.Tensor | None) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": metadata.get("llama.rope.freq_base", 10000.0), "rope_type": "default"}
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": metadata.get("llama.rope.scaling.factor", 1.0)}
    elif scaling != "none":
        raise CheckpointError(f"its llama.rope.scaling.type is {scaling!r}: none and linear can be read")
    elif frequencies is not None and (frequencies != 1).any():
        rope |= {"rope_type": "llama3", "factor": frequencies.max().item(), **_LLAMA3}
    return rope


def _check_frequencies(config: "LlamaConfig", head_size: int, frequencies: torch.Tensor) -> None:
    """Raise `CheckpointError` unless Transformers turns by the frequencies of the file: it stores their values only."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope: Any = config.rope_parameters
    expected = rope["rope_theta"] ** -(torch.arange(0, head_size, 2).double() / head_size) / frequencies.double()
    if not torch.allclose(LlamaRotaryEmbedding(config).inv_freq.double(), expected, rtol=1e-4, atol=0):
        raise CheckpointError(
            f"its rope_freqs.weight is not that of Llama 3.1 with the factor {frequencies.max():g}: "
            "LlamaConfig has no parameters for other ones"
        )


def _has_biases(tensors: Collection[str], layers: tuple[str, ...]) -> bool:
    """Whether the layers of a block have biases; raises `CheckpointError` when some have and some not."""
    biased = [layer for layer in layers if f"blk.0.{layer}.bias" in tensors]
    if biased and len(biased) < len(layers):
        raise CheckpointError(
            f"of {', '.join(layers)}, only {', '.join(biased)} have biases: LlamaConfig can say all or none"
        )
    return bool(biased)
