"""Any configuration of Transformers made small: two layers or as many as it has kinds of them, widths of 64."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "encoder_layers", "decoder_layers")

SMALL: Mapping[str, Any] = {
    name: value
    for value, names in {
        128: "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size "
        "encoder_hash_byte_group_vocab",
        256: "max_position_embeddings n_positions n_ctx max_seq_len context_length "
        "max_target_positions model_max_length",
        64: "hidden_size d_model n_embd emb_dim embedding_dim embedding_size input_embedding_size word_embed_proj_dim "
        "dense_intermediate_size max_source_positions lru_width hidden_size_global",
        96: "intermediate_size ffn_dim dff dim_ff n_inner d_inner encoder_ffn_dim decoder_ffn_dim ffn_hidden_size "
        "intermediate_size_mlp feed_forward_size output_embedding_size hidden_dim",
        32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size q_lora_rank o_lora_rank",
        16: "head_dim v_head_dim qk_nope_head_dim kv_channels d_kv d_head attention_head_size swa_head_dim "
        "kv_lora_rank linear_key_head_dim linear_value_head_dim linear_head_dim index_head_dim dim_head "
        "global_head_dim mamba_d_state ssm_state_size state_size mamba_head_dim mamba_d_head laurel_rank adapter_rank "
        "num_buckets position_bias_num_buckets mamba_headdim gated_norm_rank mamba_dt_rank chunk_size mamba_chunk_size "
        "hidden_size_per_layer_input router_hidden_size",
        8: "qk_rope_head_dim rotary_dim time_step_rank zero_expert_num sliding_window sliding_window_size "
        "attention_window_size local_attention_window_len window_size attention_chunk_size index_topk "
        "local_attention num_experts_per_layer",
        4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "attention_heads swa_num_attention_heads num_experts n_routed_experts num_local_experts moe_num_experts "
        "index_n_heads linear_num_value_heads linear_num_heads",
        2: "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token moe_k "
        "moe_topk top_k_experts linear_num_key_heads num_query_groups num_mem_blocks encoder_layers "
        "num_encoder_layers num_decoder_layers n_input_layers n_recurrent_layers n_output_layers",
        1: "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace num_dense_layers n_groups "
        "num_expert_group mamba_n_groups mamba_ngroups num_nextn_predict_layers bos_token_id pad_token_id "
        "max_window_layers",
        0.0: "attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob dropout",
        0.1: "initializer_range init_std",
    }.items()
    for name in names.split()
}
"""Attribute -> value in every configuration that has the attribute and sets it."""

OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"mamba_d_head": 32, "mamba_n_heads": 4, "attn_layer_indices": [1]},
    "blt": {"num_hidden_layers": 2},  # its caches ask for it, no default has it
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dory": {
        "n_input_layers": 1,
        "n_recurrent_layers": 1,
        "n_output_layers": 1,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"head_dim": 32},
    "falcon_h1": {"mamba_d_head": 32, "mamba_n_heads": 4, "mamba_d_ssm": 128},
    "granitemoehybrid": {
        "mamba_d_head": 32,
        "mamba_n_heads": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"head_dim": 32},
    "ministral": {"head_dim": 16},
    "jamba": {"num_hidden_layers": 8},
    "musicgen_decoder": {"num_codebooks": 1},  # rows of ids are codebooks of one sequence
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "qwen4_exp_text": {
        "hc_lowrank": 16,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # widths of heads are rounded up to 64 in all
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
"""model_type -> what the rules above do not get right."""


def shrunken(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A small configuration of that class. Raises whatever its constructor raises for values that it refuses."""
    values: Any = _small_values(kind()) | {"eos_token_id": None}
    return kind(**values)


def _small_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of the constructor for a small copy of `config`."""
    config.allow_global_per_layer_attribute_access = True  # or values that some layer overrides cannot be read
    stored = config.to_dict()
    values = {name: getattr(config, name) for name in stored if hasattr(config, name)}
    small = {name: SMALL[name] for name, value in values.items() if name in SMALL and value is not None}
    small |= {name: _small_values(part) for name, part in values.items() if isinstance(part, PreTrainedConfig)}
    if "qk_rope_head_dim" in small:  # latent attention: keys of all heads from one latent, and that part is rotated
        small |= {"head_dim": small["qk_rope_head_dim"]} if "head_dim" in small else {}
        small |= {"num_key_value_heads": small["num_attention_heads"]} if "num_key_value_heads" in small else {}
    overrides = {int(layer): own for layer, own in stored.get("per_layer_config", {}).items()}
    if overrides:
        values["per_layer_config"] = [overrides.get(layer, {}) for layer in range(config.num_hidden_layers)]
    small |= _few_layers(values)
    if overrides:
        of_layers = enumerate(small["per_layer_config"])
        small["per_layer_config"] = {layer: _in_proportion(own, values, small) for layer, own in of_layers}
    return small | dict(OVERRIDES.get(config.model_type, {}))


def _in_proportion(own: Mapping[str, Any], values: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """What a layer has in place of `values`, made as much smaller as they are in `small`."""
    return {name: small[name] * value // values[name] if name in small else value for name, value in own.items()}


def _few_layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of layers, and every list with an entry a layer cut down to layers of each kind, two at least. Where
    layers use the keys and values of earlier ones, they are there twice: those that make them, and those that use them.
    """
    counts = {name: values[name] for name in LAYERS if isinstance(values.get(name), int)}
    if not counts:
        return {}
    total = max(counts.values())
    lists = {n: v for n, v in values.items() if isinstance(v, list | tuple) and len(v) == total and total > 1}
    kept = sorted({first for entries in lists.values() for first in _first_of_each(entries)})
    kept = sorted((kept + [i for i in range(total) if i not in kept])[: max(2, len(kept))])
    sharing = {"num_kv_shared_layers": len(kept)} if values.get("num_kv_shared_layers") else {}
    kept *= 2 if sharing else 1
    few = sharing | {name: len(kept) for name in counts}
    return few | {n: [SMALL.get(n, entries[i]) for i in kept] for n, entries in lists.items()}


def _first_of_each(entries: Any) -> list[int]:
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries):
        seen.setdefault(repr(entry), index)
    return list(seen.values())[:6]
