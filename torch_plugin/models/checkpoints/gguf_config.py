"""The configuration of Transformers for a model of GGUF's architecture `llama`, from the metadata of the file."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ....ir.errors import CheckpointError, shown
from .gguf_header import GgufArray

if TYPE_CHECKING:
    from transformers import LlamaConfig

_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every published Llama 3.1, 3.2 and 3.3 has beside its `factor`."""

_Count = Annotated[int, Field(ge=1, lt=2**31)]
_Token = Annotated[int, Field(ge=0, lt=2**32)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LlamaMetadata(BaseModel):
    """What is used of a file's metadata, with its types and ranges; every other key is ignored."""

    model_config = ConfigDict(strict=True)

    parts: int = Field(1, alias="split.count")
    experts: int = Field(0, alias="llama.expert_count")
    hidden: _Count = Field(alias="llama.embedding_length")
    intermediate: _Count = Field(alias="llama.feed_forward_length")
    layers: _Count = Field(alias="llama.block_count")
    positions: _Count = Field(alias="llama.context_length")
    heads: _Count = Field(alias="llama.attention.head_count")
    key_value_heads: _Count | None = Field(None, alias="llama.attention.head_count_kv")
    head_size: _Count | None = Field(None, alias="llama.attention.key_length")
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(alias="llama.attention.layer_norm_rms_epsilon")
    turned: _Count | None = Field(None, alias="llama.rope.dimension_count")
    base: _Positive = Field(10000.0, alias="llama.rope.freq_base")
    scaling: str = Field("none", alias="llama.rope.scaling.type")
    factor: _Positive = Field(1.0, alias="llama.rope.scaling.factor")
    vocabulary: _Count | None = Field(None, alias="llama.vocab_size")
    tokens: GgufArray | None = Field(None, alias="tokenizer.ggml.tokens")
    bos_token_id: _Token | None = Field(None, alias="tokenizer.ggml.bos_token_id")
    eos_token_id: _Token | None = Field(None, alias="tokenizer.ggml.eos_token_id")
    pad_token_id: _Token | None = Field(None, alias="tokenizer.ggml.padding_token_id")


_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def llama_config(
    metadata: Mapping[str, Any], tensors: Collection[str], vocabulary: int, frequencies: torch.Tensor | None = None
) -> "LlamaConfig":
    """`LlamaConfig` of a file.

    metadata: fields of the file by key (`llama.embedding_length`).
    tensors: names of its tensors. Embeddings are tied when `output.weight` is not among them.
    vocabulary: rows of `token_embd.weight`.
    frequencies: `rope_freqs.weight`, floating `[head size / 2]`, by which the angles' frequencies are divided.
    Raises `CheckpointError` for what `LlamaConfig` cannot say, and for fields that are missing, of a wrong type or out
    of range, or that contradict each other.
    """
    from transformers import LlamaConfig

    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"its architecture is {shown(architecture)}: GGUF files of 'llama' can be read")
    fields = _fields(metadata)
    if fields.parts > 1:
        raise CheckpointError("it is one part of several: join them with llama-gguf-split --merge")
    if fields.experts:
        raise CheckpointError("it is a mixture of experts: GGUF files of dense llama models can be read")
    head_size, key_value_heads = _heads(fields)
    _check_vocabulary(fields, vocabulary)
    if frequencies is not None:
        _check_shape(frequencies, head_size)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=fields.hidden,
        intermediate_size=fields.intermediate,
        num_hidden_layers=fields.layers,
        num_attention_heads=fields.heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_size,
        max_position_embeddings=fields.positions,
        rms_norm_eps=fields.epsilon,
        rope_parameters=_rope(fields, frequencies),
        attention_bias=_has_biases(tensors, ("attn_q", "attn_k", "attn_v", "attn_output")),
        mlp_bias=_has_biases(tensors, ("ffn_gate", "ffn_up", "ffn_down")),
        tie_word_embeddings="output.weight" not in tensors,
        architectures=["LlamaForCausalLM"],
        **{name: token for name in _TOKENS if (token := getattr(fields, name)) is not None},
    )
    if frequencies is not None:
        _check_frequencies(config, head_size, frequencies)
    return config


def _fields(metadata: Mapping[str, Any]) -> LlamaMetadata:
    try:
        return LlamaMetadata.model_validate(metadata)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        if first["type"] == "missing" or first["input"] is None:
            raise CheckpointError(f"its metadata has no {key}, which every llama file has: convert it again") from None
        raise CheckpointError(f"its {key} is {shown(first['input'])}: {first['msg']}") from None


def _heads(fields: LlamaMetadata) -> tuple[int, int]:
    """Size of a head, and how many there are of keys and values."""
    heads, key_value_heads = fields.heads, fields.key_value_heads or fields.heads
    if heads % key_value_heads:
        raise CheckpointError(
            f"its llama.attention.head_count is {heads}: no multiple of its llama.attention.head_count_kv, "
            f"{key_value_heads}"
        )
    if fields.hidden % heads:
        raise CheckpointError(
            f"its llama.embedding_length is {fields.hidden}: no multiple of llama.attention.head_count, {heads}"
        )
    head_size = fields.head_size or fields.hidden // heads
    if head_size % 2:
        raise CheckpointError(
            f"its heads have {head_size} dimensions: an even number would be right, they turn in pairs"
        )
    turned = fields.turned or head_size
    if turned != head_size:
        raise CheckpointError(
            f"its llama.rope.dimension_count is {turned}, of heads of {head_size}: Transformers turns all of it"
        )
    return head_size, key_value_heads


def _check_vocabulary(fields: LlamaMetadata, rows: int) -> None:
    """Raise `CheckpointError` unless all that the metadata says of tokens fits the `rows` of the embeddings."""
    sizes = {"llama.vocab_size": fields.vocabulary, "tokenizer.ggml.tokens": fields.tokens and fields.tokens.length}
    for key, size in sizes.items():
        if size is not None and size != rows:
            raise CheckpointError(f"its {key} says {size} tokens, its token_embd.weight has {rows} rows")
    for name in _TOKENS:
        token = getattr(fields, name)
        if token is not None and token >= rows:
            key = LlamaMetadata.model_fields[name].alias
            raise CheckpointError(f"its {key} is {token}, of {rows} tokens: one from 0 to {rows - 1} would be right")


def _rope(fields: LlamaMetadata, frequencies: torch.Tensor | None) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": fields.base, "rope_type": "default"}
    if fields.scaling == "linear":
        rope |= {"rope_type": "linear", "factor": fields.factor}
    elif fields.scaling != "none":
        raise CheckpointError(f"its llama.rope.scaling.type is {shown(fields.scaling)}: none and linear can be read")
    elif frequencies is not None and (frequencies != 1).any():
        rope |= {"rope_type": "llama3", "factor": frequencies.max().item(), **_LLAMA3}
    return rope


def _check_shape(frequencies: torch.Tensor, head_size: int) -> None:
    if tuple(frequencies.shape) != (head_size // 2,):
        raise CheckpointError(
            f"its rope_freqs.weight is {list(frequencies.shape)}: [{head_size // 2}] would be right for heads of "
            f"{head_size}"
        )
    if not (frequencies.isfinite() & (frequencies > 0)).all():
        raise CheckpointError("its rope_freqs.weight has values that are not positive and finite")


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
