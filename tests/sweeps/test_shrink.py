"""Shrunken configurations keep what is special about theirs: kinds of layers, widths of their own, shared keys."""

from transformers import Gemma3nTextConfig, Gemma4Config, Gemma4TextConfig, LlamaConfig

from .shrink import shrunken


def test_two_layers_of_64():
    small = shrunken(LlamaConfig)
    assert (small.num_hidden_layers, small.hidden_size, small.vocab_size) == (2, 64, 128)


def test_one_layer_of_each_kind_with_its_own_widths_in_proportion():
    assert [layer.head_dim for layer in Gemma4TextConfig().per_layer_config][4:6] == [256, 512]
    small = shrunken(Gemma4TextConfig)
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert [layer.head_dim for layer in small.per_layer_config] == [16, 32]


def test_layers_with_their_own_widths_inside_a_configuration():
    assert [layer.head_dim for layer in shrunken(Gemma4Config).text_config.per_layer_config] == [16, 32]


def test_layers_that_share_keys_come_after_as_many_that_make_them():
    small = shrunken(Gemma3nTextConfig)
    assert small.num_kv_shared_layers * 2 == small.num_hidden_layers == len(small.layer_types)
    assert small.kv_sharing_modes.count("reuse") == small.num_kv_shared_layers
    assert small.intermediate_size == [96] * small.num_hidden_layers
