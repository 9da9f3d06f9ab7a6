"""Models and tokenizers for the command line: they are data, never code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lutra.ir.errors import CheckpointError
from lutra.torch_plugin.models.causal_lm import load_causal_lm, load_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

OWN = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}


def test_a_model_with_code_of_its_own_is_refused_without_asking(tmp_path: Path):
    settings = json.dumps({"model_type": "evil", "auto_map": OWN})
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(settings)
    (tmp_path / "evil.py").write_text("raise SystemExit('the code of the folder runs')")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors"):
        load_causal_lm(str(tmp_path), "auto", None, {}, "none")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* needs code of its own"):
        load_tokenizer(str(tmp_path))


def test_weights_are_never_unpickled(tmp_path: Path):
    sizes: Any = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"Older kinds of files \(.bin, .pt\) can be converted"):
        load_causal_lm(str(tmp_path), "auto", None, {}, "none")


def test_a_tokenizer_that_cannot_be_read_is_no_missing_one(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    assert load_tokenizer(str(tmp_path)) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_model_without_a_tokenizer_has_none(tmp_path: Path):
    LlamaConfig().save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)) is None
