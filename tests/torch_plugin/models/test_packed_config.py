"""The configuration of a packed folder makes the model's structure, and nothing that somebody else put into it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from lutra.ir.errors import PackedModelError
from lutra.tests.support.fuzzing import random
from lutra.tests.torch_plugin.models.packed_mutations import changed
from lutra.torch_plugin.models.packed_config import empty_model, save_config
from lutra.torch_plugin.models.packed_manifest import CONFIG, GENERATION_CONFIG, Manifest
from transformers import BitNetQuantConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.bitnet import BitLinear

SIZES: dict[str, Any] = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
SETTINGS = json.loads(Qwen2Config(**SIZES, **HEADS).to_json_string())


def manifest(model: str = "Qwen2ForCausalLM", files: Any = ()) -> Manifest:
    """Of a model of 14 tensors; what `empty_model` reads of it."""
    tensors: Any = dict.fromkeys(map(str, range(14)))
    return Manifest.model_construct(model=model, dtype="bfloat16", tensors=tensors, files=files)


def write(folder: Path, **changes: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({**SETTINGS, **changes}))


def test_the_model_has_the_structure_and_settings_of_the_one_that_was_saved(tmp_path: Path):
    original = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS))
    original.generation_config.max_new_tokens = 7
    assert save_config(original, tmp_path)
    made: Any = empty_model(tmp_path, manifest(files={GENERATION_CONFIG: None}))
    assert type(made) is Qwen2ForCausalLM and made.config.dtype == torch.bfloat16
    assert all(tensor.device.type == "meta" for tensor in [*made.parameters(), *made.buffers()])
    assert {n: p.shape for n, p in made.named_parameters()} == {n: p.shape for n, p in original.named_parameters()}
    assert made.generation_config.max_new_tokens == 7


def test_what_a_checkpoint_brought_beside_its_configuration_is_not_saved(tmp_path: Path):
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS))
    model.config.auto_map = {"AutoModelForCausalLM": "other.Model"}
    model.config.quantization_config = {"quant_method": "torchao"}
    assert save_config(model, tmp_path)
    assert isinstance(empty_model(tmp_path, manifest()), Qwen2ForCausalLM)


def test_models_that_are_not_transformers_own_have_no_configuration(tmp_path: Path):
    class OwnForCausalLM(Qwen2ForCausalLM):
        pass

    assert not save_config(OwnForCausalLM(Qwen2Config(**SIZES, **HEADS)), tmp_path)
    assert not save_config(torch.nn.Linear(2, 2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_bitnet_layers_are_made_and_those_of_other_methods_refused(tmp_path: Path):
    write(tmp_path, quantization_config=BitNetQuantConfig(modules_to_not_convert=["lm_head"]).to_dict())
    made: Any = empty_model(tmp_path, manifest())
    assert isinstance(made.model.layers[0].mlp.up_proj, BitLinear)
    write(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(PackedModelError, match=r"quantization_config asks for layers of 'gptq'.*give load"):
        empty_model(tmp_path, manifest())


CHANGES = {
    "code of its own": ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "auto_map asks for code"),
    "code of a part": ({"text_config": {"auto_map": {"AutoModel": "evil.Model"}}}, "auto_map asks for code"),
    "a kernel of the hub": ({"attn_implementation": "evil/kernel"}, "attn_implementation = 'evil/kernel'"),
    "a hidden one": ({"_attn_implementation": {"": "evil/kernel"}}, "_attn_implementation. = 'evil/kernel'"),
    "very many layers": ({"num_hidden_layers": 10**9, "layer_types": None}, "more than 65536 is not plausible"),
    "too many layers": ({"num_hidden_layers": 1000, "layer_types": None}, "a larger model than the one"),
    "a large table": ({"vocab_size": 10**12}, "vocab_size = 1000000000000: more than"),
    "another model": ({"model_type": "llama"}, "model_type is 'llama', that of a Qwen2ForCausalLM is 'qwen2'"),
    "a word for a number": ({"num_attention_heads": "x"}, "makes no Qwen2ForCausalLM: .*num_attention_heads"),
    "nothing to divide by": ({"num_attention_heads": 0}, "makes no Qwen2ForCausalLM: ZeroDivisionError"),
    "no activation": ({"hidden_act": "evil"}, "makes no Qwen2ForCausalLM: KeyError: 'evil'"),
    "a method": ({"to_dict": "evil"}, "makes no Qwen2ForCausalLM"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_a_configuration_cannot_ask_for(tmp_path: Path, kind: str):
    changes, said = CHANGES[kind]
    write(tmp_path, **changes)
    with pytest.raises(PackedModelError, match=said):
        empty_model(tmp_path, manifest())


@pytest.mark.parametrize("depth", [700, 950])
def test_what_nests_too_deeply_is_no_configuration(tmp_path: Path, depth: int):
    nested = "[" * depth + "]" * depth
    (tmp_path / CONFIG).write_text(json.dumps(SETTINGS)[:-1] + f', "nested": {nested}}}')
    with pytest.raises(PackedModelError, match=CONFIG):
        empty_model(tmp_path, manifest())


@pytest.mark.parametrize("text", ["", "[]", '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", " " * (1 << 23), "\xff"])
def test_what_is_no_configuration(tmp_path: Path, text: str):
    (tmp_path / CONFIG).write_text(text, encoding="latin1")
    with pytest.raises(PackedModelError, match=CONFIG):
        empty_model(tmp_path, manifest())


@pytest.mark.parametrize("name", ["AutoModelForCausalLM", "Pipeline", "PreTrainedModel", "Qwen2Config", "Trainer"])
def test_only_classes_of_models_are_made(tmp_path: Path, name: str):
    write(tmp_path)
    with pytest.raises(PackedModelError, match=f"{name} of Transformers is not the class of a model"):
        empty_model(tmp_path, manifest(name))


def test_large_numbers_that_count_nothing_are_fine(tmp_path: Path):
    write(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5 * 10**8}, max_position_embeddings=10**7)
    assert isinstance(empty_model(tmp_path, manifest()), Qwen2ForCausalLM)


def test_infinity_is_what_transformers_writes_for_it(tmp_path: Path):
    write(tmp_path, limit=[0.0, {"__float__": "Infinity"}])
    made: Any = empty_model(tmp_path, manifest())
    assert made.config.limit == [0.0, float("inf")]


@pytest.mark.fuzz
@random(150)
@given(settings=changed(SETTINGS))
def test_configurations_of_others(tmp_path: Path, settings: Any):
    (tmp_path / CONFIG).write_text(json.dumps(settings))
    try:
        made = empty_model(tmp_path, manifest())
    except PackedModelError as error:
        assert 0 < len(str(error)) < 20_000
    else:
        assert isinstance(made, Qwen2ForCausalLM)
