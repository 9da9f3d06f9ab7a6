"""Checkpoints that others quantised run with their own codes: GPTQ and AWQ folders, GGUF files, torchao's tensors."""

import json
from pathlib import Path
from typing import Any

import gguf
import lutra
import pytest
import torch
from lutra.ir.errors import CheckpointError
from lutra.ir.weights.formats import dequantize
from lutra.torch_plugin.models.checkpoints.reading import read_checkpoint
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

K, FFN, GROUP = 128, 256, 64
CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": K,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(2, 14).reshape(1, -1)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def quantized_folder(folder: Path, method: str) -> Path:
    """A Llama with random 4-bit codes, as the tools of `method` would write it."""
    model: Any = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.config.save_pretrained(folder)
    settings = {"quant_method": method, "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings, "dtype": "float32"}))
    tensors = {}
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer.rsplit(".", 1)[-1] not in LINEARS:
            tensors[name] = tensor.clone()
            continue
        n, k = tensor.shape
        tensors[f"{layer}.qweight"] = words(k // 8, n) if method == "gptq" else words(k, n // 8)
        tensors[f"{layer}.qzeros"] = words(k // GROUP, n // 8)
        tensors[f"{layer}.scales"] = (torch.rand(k // GROUP, n) * 0.02).half()
        tensors[f"{layer}.bias"] = torch.zeros(n)  # as old tools did
    save_file(tensors, folder / "model.safetensors")
    return folder


def gguf_file(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    config = {**CONFIG, "hidden_size": 256, "intermediate_size": 512}
    model: Any = LlamaForCausalLM(LlamaConfig(**config))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_block_count(2)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(96)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        short: Any = names.get_name(name, (".weight",))
        values = tensor.float().numpy()
        if tensor.dim() == 1 or "embd" in short or short.startswith("output"):
            writer.add_tensor(short, values)
        else:
            writer.add_tensor(short, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reference(path: Path) -> Any:
    """The model with what the codes stand for, run by torch."""
    checkpoint = read_checkpoint(path)
    model: Any = LlamaForCausalLM(checkpoint.config).float().eval()
    values = {name: read().float() for name, read in checkpoint.plain.items()}
    values |= {name: dequantize(read()) for name, read in checkpoint.quantized.items()}
    model.load_state_dict({name: value for name, value in values.items() if name in model.state_dict()})
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def check(loaded: Any, expected: torch.Tensor, linears: int) -> None:
    got = logits(loaded)
    assert (got - expected).norm() < 0.02 * expected.norm()  # activations are quantised to int8
    (report,) = lutra.report(loaded).graphs
    low_bit = {k: n for k, n in report.kernels.items() if k.split("_")[0] in ("dot", "gemm", "lookup", "triples")}
    assert sum(n for k, n in low_bit.items() if "activations" not in k) == linears


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_folders_of_codes_run_and_are_packed(tmp_path: Path, method: str):
    folder = quantized_folder(tmp_path / "model", method)
    expected = logits(reference(folder))
    loaded = lutra.load(folder, options={"cache_dir": tmp_path / "cache", "release_weights": True}, dtype=torch.float32)
    check(loaded, expected, linears=2 * 4)  # q, k and v are one, gate and up another
    found = logits(loaded)
    lutra.pack(loaded, tmp_path / "packed")
    torch._dynamo.reset()
    again = lutra.load(tmp_path / "packed", options={"cache_dir": tmp_path / "cache"})
    assert torch.equal(logits(again), found)


def test_only_parts_in_one_format_are_merged(tmp_path: Path):
    folder = quantized_folder(tmp_path / "model", "gptq")
    path = folder / "model.safetensors"
    from safetensors.torch import load_file

    tensors = load_file(path)
    for layer in (0, 1):  # one group a row instead of two
        name = f"model.layers.{layer}.self_attn.k_proj"
        tensors[f"{name}.scales"], tensors[f"{name}.qzeros"] = (
            tensors[f"{name}.{part}"][:1].clone() for part in ("scales", "qzeros")
        )
    save_file(tensors, path)
    expected = logits(reference(folder))
    loaded = lutra.load(folder, options={"cache_dir": tmp_path / "cache"}, dtype=torch.float32)
    check(loaded, expected, linears=2 * 5)  # q and v are one, k stays by itself


@pytest.mark.parametrize("kind", ["Q4_0", "TQ2_0"])
def test_gguf_files_run_with_their_codes(tmp_path: Path, kind: str):
    path = gguf_file(tmp_path / "model.gguf", gguf.GGMLQuantizationType[kind])
    expected = logits(reference(path))
    loaded = lutra.load(path, options={"cache_dir": tmp_path / "cache"}, dtype=torch.float32)
    check(loaded, expected, linears=2 * 4)


def test_torchao_weights_are_taken_over(tmp_path: Path):
    quantization = pytest.importorskip("torchao.quantization")
    prototype = pytest.importorskip("torchao.prototype.quantization.int4.inference_workflow")
    model: Any = LlamaForCausalLM(LlamaConfig(**CONFIG)).bfloat16().eval()
    quantization.quantize_(model, prototype.PrototypeInt4WeightOnlyConfig(group_size=64))
    expected = logits(model)
    adopted = lutra.adopt_torchao(model, {"cache_dir": tmp_path / "cache"})
    check(adopted, expected, linears=2 * 4 + 1)


def test_errors_name_what_is_wrong(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no linear of the Linear has a weight of torchao's Int4Tensor or"):
        lutra.adopt_torchao(nn.Linear(4, 4), {})
    folder = quantized_folder(tmp_path / "model", "gptq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"lacks model.layers.2"):
        lutra.load(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"a LlamaForCausalLM has no model.layers.1"):
        lutra.load(folder)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="the version takes 4 bytes from 4 on, beyond the end of the file"):
        lutra.load(tmp_path / "x.gguf")
