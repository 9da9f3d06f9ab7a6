"""Folders of GPTQ and AWQ weights in the form of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lutra.ir.errors import CheckpointError, QuantizationError
from lutra.torch_plugin.models.checkpoints.awq import from_awq
from lutra.torch_plugin.models.checkpoints.folder import read_folder
from lutra.torch_plugin.models.checkpoints.gptq import from_gptq
from safetensors.torch import save_file
from transformers import LlamaConfig

K, N, GROUP = 128, 64, 32
LAYERS = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def made(method: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {"model.norm.weight": torch.randn(N), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    for layer in LAYERS:
        tensors[f"{layer}.qweight"] = words(K // 8, N) if method == "gptq" else words(K, N // 8)
        tensors[f"{layer}.qzeros"] = words(K // GROUP, N // 8)
        tensors[f"{layer}.scales"] = torch.rand(K // GROUP, N).half()
        tensors[f"{layer}.bias"] = torch.randn(N).half()
        if method == "gptq":
            tensors[f"{layer}.g_idx"] = torch.arange(K, dtype=torch.int32) // GROUP
    return tensors


def write(folder: Path, settings: dict[str, Any], tensors: dict[str, torch.Tensor], sharded: bool = False) -> Path:
    LlamaConfig(num_hidden_layers=2).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    if not sharded:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names, index = sorted(tensors), {}
    for part, chosen in enumerate((names[::2], names[1::2])):  # the tensors of one layer lie in two files
        save_file({name: tensors[name] for name in chosen}, folder / f"part{part}.safetensors")
        index |= dict.fromkeys(chosen, f"part{part}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("settings", [GPTQ, AWQ])
def test_layers_are_read_by_their_names(tmp_path: Path, settings: dict[str, Any], sharded: bool):
    method = settings["quant_method"]
    tensors = made(method)
    checkpoint = read_folder(write(tmp_path, settings, tensors, sharded))
    assert checkpoint.source == method.upper()
    assert checkpoint.config.num_hidden_layers == 2 and not hasattr(checkpoint.config, "quantization_config")
    assert checkpoint.quantized.keys() == {f"{layer}.weight" for layer in LAYERS}
    assert checkpoint.plain.keys() == {"model.norm.weight", *(f"{layer}.bias" for layer in LAYERS)}
    for name, read in checkpoint.plain.items():
        assert torch.equal(read(), tensors[name])
    for layer in LAYERS:
        weight = checkpoint.quantized[f"{layer}.weight"]()
        parts = [tensors[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")]
        expected = from_gptq(*parts) if method == "gptq" else from_awq(*parts)
        assert torch.equal(weight.codes, expected.codes) and torch.equal(weight.scales, expected.scales)
        assert weight.codes.shape == (N, K) and weight.zero_points is not None and expected.zero_points is not None
        assert torch.equal(weight.zero_points, expected.zero_points)


def test_the_format_of_zero_points_is_that_of_the_configuration(tmp_path: Path):
    tensors = made("gptq")
    checkpoint = read_folder(write(tmp_path, {**GPTQ, "checkpoint_format": "gptq_v2"}, tensors))
    parts = [tensors[f"{LAYERS[0]}.{part}"] for part in ("qweight", "qzeros", "scales")]
    zeros = checkpoint.quantized[f"{LAYERS[0]}.weight"]().zero_points
    expected = from_gptq(*parts, checkpoint_format="gptq_v2").zero_points
    assert zeros is not None and expected is not None and torch.equal(zeros, expected)


def test_a_weight_that_cannot_be_read_is_named_when_it_is_asked_for(tmp_path: Path):
    tensors = made("gptq")
    tensors[f"{LAYERS[1]}.g_idx"] = tensors[f"{LAYERS[1]}.g_idx"].flip(0)
    checkpoint = read_folder(write(tmp_path, GPTQ, tensors))
    assert checkpoint.quantized[f"{LAYERS[0]}.weight"]().codes.shape == (N, K)
    with pytest.raises(
        QuantizationError, match=rf"GPTQ weight {LAYERS[1]}.weight in .*: the input features of a group"
    ):
        checkpoint.quantized[f"{LAYERS[1]}.weight"]()


def test_folders_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        read_folder(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json has no quantization_config"):
        read_folder(tmp_path)
    write(tmp_path, {"quant_method": "bitsandbytes"}, {})
    with pytest.raises(
        CheckpointError, match=r"quant_method = 'bitsandbytes' in config.json: gptq and awq can be read"
    ):
        read_folder(tmp_path)
    tensors = made("awq")
    del tensors[f"{LAYERS[0]}.scales"]
    write(tmp_path, AWQ, tensors)
    with pytest.raises(CheckpointError, match=rf"{LAYERS[0]} has a qweight, but no scales"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a whole file of tensors"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there is: none. Older kinds"):
        read_folder(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"there is no file '.*gone.safetensors'"):
        read_folder(tmp_path)
