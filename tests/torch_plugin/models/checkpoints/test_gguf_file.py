"""GGUF files of a small llama, written by `gguf`, against what Transformers loads from them."""

import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from lutra.ir.errors import CheckpointError
from lutra.ir.weights.formats import dequantize
from lutra.torch_plugin.models.checkpoints.gguf_file import read_gguf
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

HEADS, KEY_HEADS = 4, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def model(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def gguf_name(name: str) -> str:
    layer, suffix = name.rsplit(".", 1)
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", layer)
    return f"{NAMES[layer]}.{suffix}" if block is None else f"blk.{block[1]}.{NAMES[block[2]]}.{suffix}"


def in_ggufs_order(name: str, values: np.ndarray) -> np.ndarray:
    """Rows of q and k as llama.cpp's converter permutes them."""
    heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return values
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape)


def write(path: Path, original: LlamaForCausalLM, kinds: dict[str, str], **fields: Any) -> Path:
    """kinds: type of a tensor by a part of its name in GGUF; all others are F32."""
    config: Any = original.config
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in original.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = gguf_name(name)
        kind = next((kind for part, kind in kinds.items() if part in stored), "F32")
        values = in_ggufs_order(name, tensor.float().numpy())
        type_ = GGMLQuantizationType[kind]
        if kind == "Q6_K":  # `gguf` does not quantise to it: any bits, with a scale that is a number
            data = np.random.default_rng(0).integers(0, 256, (len(values), values.shape[1] // 256 * 210), np.uint8)
            data.reshape(-1, 210)[:, -2:] = np.array([0.01], np.float16).view(np.uint8)
        else:
            data = quantize(values, type_)
        writer.add_tensor(stored, data, raw_dtype=type_)
    for name, values in fields.items():
        writer.add_tensor(name.replace("__", "."), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def mixed(kind: str) -> dict[str, str]:
    norms = {"attn_norm": "F32", "ffn_norm": "F32"}
    return {**norms, "attn_v": "F16", "blk": kind, "token_embd": kind, "output.": kind}


LAYERS = {"attn_norm": "F32", "ffn_norm": "F32", "attn_": "Q4_0", "ffn_": "Q4_0"}


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "TQ2_0"])
def test_tensors_are_what_transformers_loads(tmp_path: Path, kind: str):
    path = write(tmp_path / "model.gguf", model(), mixed(kind))
    checkpoint = read_gguf(path)
    loaded = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model())
    state = loaded["tensors"]
    assert checkpoint.source == "GGUF"
    assert checkpoint.quantized.keys() | checkpoint.plain.keys() == state.keys()
    assert not checkpoint.quantized.keys() & checkpoint.plain.keys()
    assert "model.embed_tokens.weight" in checkpoint.plain and "lm_head.weight" in checkpoint.quantized
    assert checkpoint.plain["model.layers.0.self_attn.v_proj.weight"]().dtype == torch.float16
    for name, read in checkpoint.quantized.items():
        assert torch.equal(dequantize(read()), state[name]), name
    for name, read in checkpoint.plain.items():
        assert torch.equal(read().float(), state[name]), name


def test_the_model_of_transformers_has_the_same_tensors_and_configuration(tmp_path: Path):
    pytest.importorskip("accelerate", reason="Transformers loads GGUF files with accelerate")
    path = write(tmp_path / "model.gguf", model(), mixed("Q4_0"))
    checkpoint = read_gguf(path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    state = loaded.state_dict()
    assert checkpoint.quantized.keys() | checkpoint.plain.keys() == state.keys()
    assert all(torch.equal(dequantize(read()), state[name]) for name, read in checkpoint.quantized.items())
    assert all(torch.equal(read().float(), state[name]) for name, read in checkpoint.plain.items())
    ours, theirs = checkpoint.config.to_dict(), loaded.config.to_dict()
    different = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert different <= {"architectures", "dtype", "_name_or_path", "quantization_config"}


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_floating_tensors_keep_their_type(tmp_path: Path, kind: str):
    original = model()
    checkpoint = read_gguf(write(tmp_path / "model.gguf", original, {"attn_norm": "F32", "attn_": kind}))
    name = "model.layers.1.self_attn.k_proj.weight"
    read = checkpoint.plain[name]()
    assert read.dtype == {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[kind]
    assert torch.equal(read, original.state_dict()[name].to(read.dtype))


def test_tied_embeddings_and_an_output_of_another_type(tmp_path: Path):
    assert read_gguf(write(tmp_path / "tied.gguf", model(tied=True), LAYERS)).config.tie_word_embeddings
    path = write(tmp_path / "q6.gguf", model(), {**LAYERS, "output.": "Q6_K"})
    output = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "output.weight")
    expected = torch.from_numpy(gguf.quants.dequantize(output.data, output.tensor_type))
    assert torch.equal(read_gguf(path).plain["lm_head.weight"](), expected)


def test_frequencies_go_into_the_configuration(tmp_path: Path):
    path = write(tmp_path / "model.gguf", model(), LAYERS, rope_freqs__weight=np.ones(32, np.float32))
    checkpoint = read_gguf(path)
    assert not any("rope" in name for name in checkpoint.plain)
    assert checkpoint.config.rope_parameters == {"rope_theta": 10000.0, "rope_type": "default"}


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "q5.gguf", model(), {"ffn_up": "Q5_0"})
    with pytest.raises(CheckpointError, match=r"q5.gguf: blk.0.ffn_up.weight is of type Q5_0, .* may be Q4_0, Q8_0"):
        read_gguf(path)
    path = write(tmp_path / "odd.gguf", model(), {}, blk__0__ffn_gate_exps__weight=np.ones((2, 2), np.float32))
    with pytest.raises(CheckpointError, match=r"has no place for tensor 'blk.0.ffn_gate_exps.weight'"):
        read_gguf(path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut.gguf: tensor .* of the data, of which the file has"):
        read_gguf(cut)
    (tmp_path / "text.gguf").write_text("no such thing")
    with pytest.raises(CheckpointError, match=r"text.gguf: it is no GGUF file: it begins with b'no s'"):
        read_gguf(tmp_path / "text.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="pip install gguf"):
        read_gguf(path)
