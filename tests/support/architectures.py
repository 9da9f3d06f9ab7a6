"""Architectures of Transformers in miniature, one of each kind that analyses of a graph must tell apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import nn

VOCABULARY, IMAGE_TOKEN = 64, 5


@dataclass(frozen=True)
class Sizes:
    """All of them distinct, so that none is taken for another, unless a test wants them equal."""

    heads: int = 4
    head_size: int = 32
    features: int = 256
    """Between the two linears of a feed-forward block."""
    layers: int = 2

    @property
    def hidden(self) -> int:
        return self.heads * self.head_size

    def common(self, **other: Any) -> dict[str, Any]:
        """Keywords that most configurations have."""
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": self.features,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **other,
        }


@dataclass(frozen=True)
class Architecture:
    """make: a model of such sizes. inputs: keywords of its forward for a batch and a sequence length. layers: module
    paths of the lists of layers that graphs of it have, with the number of layers in each. patches: those whose
    sequence is an image."""

    make: Callable[[Sizes], nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    layers: Mapping[str, int] = field(default_factory=dict)
    patches: frozenset[str] = frozenset()

    def model(self, sizes: Sizes | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
        """With random weights, the same each time."""
        torch.manual_seed(0)
        return self.make(sizes or Sizes()).eval().to(dtype)


def tokens(batch: int, length: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(6, VOCABULARY, (batch, length), generator=generator)}


def _images(batch: int, _: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(1))}


def _both_ends(batch: int, length: int) -> dict[str, Any]:
    """The encoder reads two tokens more than the decoder."""
    ids = tokens(batch, length + 2)["input_ids"]
    return {"input_ids": ids, "decoder_input_ids": ids[:, :length]}


def _image_and_text(batch: int, length: int) -> dict[str, Any]:
    ids = tokens(batch, length + 9)["input_ids"]
    ids[:, 1:10] = IMAGE_TOKEN
    return {"input_ids": ids, **_images(batch, length)}


def _gqa(s: Sizes, **other: Any) -> dict[str, Any]:
    return s.common(num_key_value_heads=s.heads // 2, head_dim=s.head_size, **other)


def _vision(s: Sizes) -> dict[str, Any]:
    sizes = s.common(image_size=12, patch_size=4)
    return {name: sizes[name] for name in sizes if name not in ("vocab_size", "max_position_embeddings")}


def _llava(s: Sizes) -> nn.Module:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_vision(s), projection_dim=s.hidden),
        text_config=hf.LlamaConfig(**_gqa(s)),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config)


def _t5(s: Sizes) -> nn.Module:
    config = hf.T5Config(
        vocab_size=VOCABULARY,
        d_model=s.hidden,
        d_kv=s.head_size,
        d_ff=s.features,
        num_layers=s.layers,
        num_decoder_layers=s.layers + 1,
        num_heads=s.heads,
    )
    return hf.T5ForConditionalGeneration(config)


def _opt(s: Sizes) -> nn.Module:
    return hf.OPTForCausalLM(hf.OPTConfig(**s.common(), ffn_dim=s.features, word_embed_proj_dim=s.hidden))


def _lfm2(s: Sizes) -> nn.Module:
    return hf.Lfm2ForCausalLM(
        hf.Lfm2Config(**s.common(num_key_value_heads=s.heads // 2), layer_types=["conv", "full_attention"])
    )


DECODERS: dict[str, Architecture] = {
    "llama": Architecture(lambda s: hf.LlamaForCausalLM(hf.LlamaConfig(**_gqa(s))), tokens, {"model.layers": 2}),
    "qwen3": Architecture(lambda s: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_gqa(s))), tokens, {"model.layers": 2}),
    "gemma3": Architecture(
        lambda s: hf.Gemma3ForCausalLM(
            hf.Gemma3TextConfig(**_gqa(s), sliding_window=4, layer_types=["sliding_attention", "full_attention"])
        ),
        tokens,
        {"model.layers": 2},
    ),
    "opt": Architecture(_opt, tokens, {"model.decoder.layers": 2}),
    "neox": Architecture(
        lambda s: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**s.common())), tokens, {"gpt_neox.layers": 2}
    ),
    "cohere": Architecture(
        lambda s: hf.CohereForCausalLM(hf.CohereConfig(**s.common(num_key_value_heads=s.heads // 2))),
        tokens,
        {"model.layers": 2},
    ),
    "mixtral": Architecture(
        lambda s: hf.MixtralForCausalLM(hf.MixtralConfig(**_gqa(s), num_local_experts=3)),
        tokens,
        {"model.layers": 2},
    ),
    "lfm2": Architecture(_lfm2, tokens, {"model.layers": 2}),
}
"""Causal language models: with pairs of linears, gates, windows, experts, parallel blocks and short convolutions."""

ENCODERS: dict[str, Architecture] = {
    "bert": Architecture(lambda s: hf.BertForMaskedLM(hf.BertConfig(**s.common())), tokens, {"bert.encoder.layer": 2}),
    "albert": Architecture(
        lambda s: hf.AlbertForMaskedLM(hf.AlbertConfig(**s.common(num_hidden_layers=3), embedding_size=12)),
        tokens,
        {"albert.encoder.albert_layer_groups.0.albert_layers.0": 3},
    ),
    "vit": Architecture(
        lambda s: hf.ViTModel(hf.ViTConfig(**_vision(s))), _images, {"layers": 2}, frozenset({"layers"})
    ),
    "t5": Architecture(_t5, _both_ends, {"encoder.block": 2, "decoder.block": 3}),
    "llava": Architecture(
        _llava,
        _image_and_text,
        {"encoder.layers": 2, "language_model.layers": 2},  # torch compiles it in parts, which have paths of their own
        frozenset({"encoder.layers"}),
    ),
}
"""Encoders, of text and images, and models that have one: post-norm, shared layers, cross-attention, two towers."""

ARCHITECTURES = {**DECODERS, **ENCODERS}
