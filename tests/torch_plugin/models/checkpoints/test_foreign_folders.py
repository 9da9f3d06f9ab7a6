"""Folders of somebody else: each fault of configuration, index and tensors is named, and no code of theirs runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lutra.ir.errors import CheckpointError
from lutra.tests.torch_plugin.models.checkpoints.damage import Folder, sound_folder
from lutra.torch_plugin.models.causal_lm import load_causal_lm

QUERY = "model.layers.0.self_attn.q_proj"


def load(path: Path | str) -> Any:
    return load_causal_lm(str(path), "auto", None, {}, "none")


@pytest.mark.parametrize(
    ("method", "values", "message"),
    [
        ("gptq", {"num_hidden_layers": 10**7}, "config.json: num_hidden_layers = 10000000, where the files hold"),
        (None, {"num_hidden_layers": 10**7}, "config.json: num_hidden_layers = 10000000, where the files hold"),
        (None, {"num_hidden_layers": 1000}, "configuration .of 1000 layers. needs more than 10.. parameters"),
        ("awq", {"text_config": {"num_experts": 10**9}}, "config.json: num_experts = 1000000000, where"),
        (None, {"num_labels": 10**9}, "config.json: num_labels = 1000000000, where"),
        ("gptq", {"hidden_size": 10**9}, r"model.layers.0.* is \[.*64.*\] where the model has \[.*1000000000.*\]"),
        (None, {"hidden_size": 10**9}, "it has .* values, its files hold"),
        ("gptq", {"vocab_size": 10**12}, r"model.embed_tokens.weight is \[40, 64\] where the model has \[10{12}, 64\]"),
        (
            "awq",
            {"head_dim": 10**9},
            "the buffer model.rotary_emb.inv_freq has the shape .500000000.: ",
        ),
        ("gptq", {"hidden_size": 2**62}, "Transformers builds no model of its configuration: RuntimeError"),
        ("gptq", {"num_attention_heads": 0}, "config.json is no configuration of a llama: ZeroDivisionError"),
        ("gptq", {"hidden_size": "64"}, "config.json is no configuration of a llama: .* expected int, got str"),
        ("gptq", {"model_type": "nope"}, "config.json: model_type = 'nope' is none that"),
        (None, {"model_type": ["x"]}, r"config.json: model_type = \['x'\] is none that"),
        ("gptq", {"rope_parameters": {"rope_theta": float("nan")}}, "config.json: rope_theta = nan: a finite number"),
        ("gptq", {"rope_parameters": {"rope_theta": 0}}, "config.json: rope_theta = 0: a positive number"),
        ("gptq", {"rms_norm_eps": float("inf")}, "config.json: rms_norm_eps = inf: a finite number"),
        ("gptq", {"dtype": "int8"}, "config.json: dtype = torch.int8 is not one of float16, bfloat16"),
        ("gptq", {"quantization_config": [1]}, r"config.json: quantization_config = \[1\]: an object"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, method: str | None, values: dict[str, Any], message: str):
    folder = sound_folder(method)
    folder.files["config.json"] |= values
    with pytest.raises(CheckpointError, match=message):
        load(folder.write(tmp_path / "model"))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("bits", 0, "bits = 0: "),
        ("bits", "4", "bits = '4': "),
        ("bits", 2**31, "bits = 2147483648: "),
        ("group_size", 0, "group_size = 0: .*-1 or a positive number would be right"),
        ("group_size", -2, "group_size = -2: "),
        ("group_size", 2**40, "group_size = 1099511627776: "),
        ("group_size", "x", "group_size = 'x': .* valid integer"),
        ("checkpoint_format", 3, "checkpoint_format = 3: .* valid string"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, setting: str, value: Any, message: str):
    folder = sound_folder("gptq")
    folder.files["config.json"]["quantization_config"][setting] = value
    with pytest.raises(CheckpointError, match=f"config.json: quantization_config: {message}"):
        load(folder.write(tmp_path / "model"))


@pytest.mark.parametrize("content", [b"[]", b"", b"{", b"[" * 10_000, b"\xff", b"1" * 5000, b"null"])
def test_no_json(tmp_path: Path, content: bytes):
    for method in ("gptq", None):
        folder = sound_folder(method)
        folder.files["config.json"] = content
        with pytest.raises(CheckpointError, match=r"config.json (is no JSON|is nested too deep|holds .*: an object)"):
            load(folder.write(tmp_path / str(method)))


def test_a_huge_configuration_is_not_read(tmp_path: Path):
    folder = sound_folder("gptq").write(tmp_path / "model")
    os.truncate(folder / "config.json", 1 << 40)  # a hole: it takes no room
    with pytest.raises(CheckpointError, match=r"config.json has 1099511627776 bytes: 67108864 would be the most"):
        load(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("qweight", lambda t: t[:4], r"g_idx is torch.int32 \[64\]: .* \[32\] would fit"),
        ("qweight", lambda t: t.flatten(), r"qweight has the shape \[512\]: a matrix would be right"),
        ("qweight", lambda t: t.float(), r"qweight is torch.float32 \[8, 64\]: torch.int32 \[8, 64\] would fit"),
        ("qweight", lambda t: torch.cat([t, t], 1), r"qweight is torch.int32 \[8, 128\]: .* \[8, 64\] would fit"),
        ("qzeros", lambda t: t[:, :0], r"qzeros has the shape \[2, 0\]: a matrix would be right"),
        ("qzeros", lambda t: t[:1], r"qzeros is torch.int32 \[1, 8\]: .* \[2, 8\] would fit"),
        ("scales", lambda t: t[0], r"scales has the shape \[64\]: a matrix would be right"),
        ("scales", lambda t: t.int(), r"scales is torch.int32 \[2, 64\]: floating point \[2, 64\] would fit"),
        ("g_idx", lambda t: t.long(), r"g_idx is torch.int64 \[64\]: torch.int32 \[64\] would fit"),
    ],
)
def test_parts_that_contradict_each_other(tmp_path: Path, part: str, change: Any, message: str):
    folder = sound_folder("gptq")
    tensors = folder.files["model.safetensors"]
    tensors[f"{QUERY}.{part}"] = change(tensors[f"{QUERY}.{part}"])
    with pytest.raises(CheckpointError, match=f"GPTQ weight {QUERY}.weight in .*: {message}"):
        load(folder.write(tmp_path / "model"))


def test_tensors_that_the_model_cannot_have(tmp_path: Path):
    def refused(name: str, tensors: dict[str, torch.Tensor], message: str) -> None:
        folder = sound_folder("gptq")
        folder.files["model.safetensors"] |= tensors
        with pytest.raises(CheckpointError, match=message):
            load(folder.write(tmp_path / name))

    stored = sound_folder("gptq").files["model.safetensors"]
    rows = {f"model.embed_tokens.{part}": stored[f"{QUERY}.{part}"] for part in ("qweight", "qzeros", "scales")}
    head = {f"lm_head.{part}": stored[f"{QUERY}.{part}"] for part in ("qweight", "qzeros", "scales")}
    refused("tied", head, "a LlamaForCausalLM has no lm_head.weight, which the checkpoint holds")
    refused("embeddings", rows, "model.embed_tokens has a qweight and a weight")
    refused("type", {"model.norm.weight": torch.ones(64, dtype=torch.int64)}, "norm.weight is torch.int64 where")
    refused("shape", {"model.norm.weight": torch.ones(1, 64)}, r"norm.weight is \[1, 64\] where the model has \[64\]")
    refused("name", {"a\x1b[31m": torch.ones(1)}, r"'a\\x1b\[31m' is no name for a tensor")
    refused("other", {"model.x": torch.ones(1)}, "a LlamaForCausalLM has no model.x")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            {"a": "../outside.safetensors"},
            r"weight_map names '../outside.safetensors': a .*.safetensors file in",
        ),
        ({"a": "/etc/passwd"}, "weight_map names '/etc/passwd'"),
        ({"a": "x/../../outside.safetensors"}, "weight_map names 'x/../../outside.safetensors'"),
        ({"a": "config.json"}, "weight_map names 'config.json'"),
        ({"a": "gone.safetensors"}, "there is no file '.*gone.safetensors'"),
        ({"a": "x\0.safetensors"}, "there is no file '.*embedded null"),
        ({"a": 5}, "weight_map = {'a': 5}: names of files"),
        (["a"], r"weight_map = \['a'\]: names of files"),
        (None, "weight_map = None: names of files"),
    ],
)
@pytest.mark.parametrize("method", ["awq", None])
def test_indexes_that_lead_elsewhere(tmp_path: Path, method: str | None, places: Any, message: str):
    folder = sound_folder(method)
    (tmp_path / "outside.safetensors").write_bytes(b"")
    del folder.files["model.safetensors"]
    folder.files["model.safetensors.index.json"] = {"weight_map": places}
    with pytest.raises(CheckpointError, match=message):
        load(folder.write(tmp_path / "model"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
@pytest.mark.parametrize("method", ["gptq", None])
def test_pipes_are_not_opened(tmp_path: Path, method: str | None, name: str):
    if method and name.startswith("generation"):
        pytest.skip("a folder of codes is read without it")
    folder = sound_folder(method)
    folder.files[name] = None
    with pytest.raises(CheckpointError, match=f"{name} is a FIFO: a regular file would be right"):
        load(folder.write(tmp_path / "model"))


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["LUTRA_TRAP"],)


def test_pickled_weights_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTRA_TRAP", str(tmp_path / "sprung"))
    for method in ("gptq", None):
        folder = sound_folder(method)
        del folder.files["model.safetensors"]
        folder.files["pytorch_model.bin"] = pickle.dumps(Trap())
        with pytest.raises(CheckpointError, match=r"there is: none. Older kinds of files"):
            load(folder.write(tmp_path / str(method)))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("method", ["gptq", None])
def test_code_in_the_folder_neither_runs_nor_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str | None, known: bool
):
    def asked(*_: Any) -> str:
        raise AssertionError("somebody waits for an answer")

    monkeypatch.setattr("builtins.input", asked)
    folder = sound_folder(method)
    classes = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    folder.files["config.json"] |= {"auto_map": classes, "attn_implementation": "somebody/kernel"}
    folder.files["theirs.py"] = f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n".encode()
    if known:
        assert type(load(folder.write(tmp_path / "model"))).__name__ == "LlamaForCausalLM"
    else:
        folder.files["config.json"]["model_type"] = "theirs"
        with pytest.raises(CheckpointError, match="model_type = 'theirs' is none that this version"):
            load(folder.write(tmp_path / "model"))
    assert not (tmp_path / "sprung").exists()


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path):
    folder = sound_folder(None)
    tensors = folder.files["model.safetensors"]
    tensors["more"] = tensors.pop(f"{QUERY}.weight")
    with pytest.raises(CheckpointError, match=f"lacks {QUERY}.weight, which a LlamaForCausalLM needs"):
        load(folder.write(tmp_path / "model"))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, bytes(7) + b"\1", b"\5" + bytes(7) + b"[" * 5])
def test_headers_of_safetensors(tmp_path: Path, content: bytes):
    folder = sound_folder("awq")
    folder.files["model.safetensors"] = content
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a whole file of tensors"):
        load(folder.write(tmp_path / "model"))


def test_paths_that_lead_nowhere(tmp_path: Path):
    for path in (tmp_path / "none", "./none", "none/of/these", "none.gguf", "x/" * 2500, "~/none"):
        with pytest.raises(CheckpointError, match="there is no folder or file '"):
            load(path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(CheckpointError, match=r"pipe.gguf is a FIFO"):
        load(tmp_path / "pipe.gguf")
    (tmp_path / "model.bin").touch()
    with pytest.raises(CheckpointError, match=r"model.bin is neither a folder with a config.json nor a .gguf file"):
        load(tmp_path / "model.bin")


def test_two_files_hold_one_tensor(tmp_path: Path):
    folder = sound_folder(None)
    tensors = folder.files.pop("model.safetensors")
    parts = {"a.safetensors": tensors, "b.safetensors": {"model.norm.weight": tensors["model.norm.weight"]}}
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    again = Folder({**folder.files, **parts, "model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match=r"b.safetensors holds 'model.norm.weight', which another file"):
        load(again.write(tmp_path / "model"))
