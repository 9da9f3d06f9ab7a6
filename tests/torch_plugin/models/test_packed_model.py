"""`lutra pack` and `lutra.load`: the same answers from the packed folder alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
from lutra.cli.main import app
from lutra.ir.errors import LutraError, OptionError, PackedModelError
from lutra.tests.torch_plugin.models.packed_mutations import read, seal, write
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from typer.testing import CliRunner

SIZES: dict[str, Any] = {"vocab_size": 160, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.arange(2, 14).reshape(1, -1)


def made(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "mixtral":  # stacks of experts
        model = MixtralForCausalLM(MixtralConfig(**SIZES, **HEADS, num_local_experts=4))
    elif kind == "qwen2":  # biases of q, k and v, and a head that is tied to the embedding
        model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS))
    return model.eval()


def recipe(*passes: Any) -> dict[str, Any]:
    return {"lutra": 1, "name": "r", "passes": [{"fuse": {}}, *passes]}


BUDGET = {"quantize-weights": {"bits": {"average": 3, "choices": [2, 4]}, "group_size": 32}}
ALL = {"quantize-weights": {"bits": 4, "group_size": 256}}  # where that divides a layer's columns
PARTS = {"quantize-weights": {"bits": 4, "group_size": 64, "select": {"modules": "*.mlp.*"}}}


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("kind", "passes"),
    [("qwen2", [BUDGET]), ("llama", [PARTS]), ("mixtral", [ALL]), ("qwen2", [])],
    ids=["budget", "attention stays plain", "experts", "none"],
)
def test_a_loaded_model_gives_the_same_numbers(tmp_path: Path, kind: str, passes: list[Any], generated: Any):
    model = made(kind)
    options = {"cache_dir": tmp_path / "cache", "release_weights": True}
    model.compile(backend="lutra", options={**options, "recipe": recipe(*passes)})
    tokens, logits = generated(model, IDS)
    adjusted = [[p.adjusted for p in graph.passes] for graph in lutra.report(model).graphs]
    size = lutra.pack(model, tmp_path / "packed")
    assert size == sum((tmp_path / "packed" / f"{name}.safetensors").stat().st_size for name in ("packed", "plain"))
    stored = sum(p.nbytes for p in model.parameters())
    assert size < stored * (1.1 if not passes else 0.8)  # nothing twice
    torch._dynamo.reset()
    loaded: Any = lutra.load(tmp_path / "packed", options={"cache_dir": tmp_path / "cache"})
    assert type(loaded) is type(model)
    loaded_tokens, loaded_logits = generated(loaded, IDS)
    assert torch.equal(loaded_tokens, tokens)
    assert torch.equal(loaded_logits, logits)
    assert [[p.adjusted for p in graph.passes] for graph in lutra.report(loaded).graphs] == adjusted
    assert [any(each) for each in adjusted] == [passes == [ALL]] * 2
    if kind == "qwen2":
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def in_version_2(folder: Path) -> None:
    """Write the manifest of `folder`, of a model of two layers, as it was before: merged weights had one choice."""
    manifest = json.loads((folder / "lutra.json").read_text())
    merged = {f"self_attn.{x}_proj": f"self_attn.{{{','.join(f'{y}_proj' for y in 'qkv')}}}" for x in "qkv"}
    merged |= {f"mlp.{x}_proj": "mlp.{gate_proj,up_proj}" for x in ("gate", "up")}

    def old(text: str) -> str:
        return next((text.replace(one, all_) for one, all_ in merged.items() if f".{one}." in text), text)

    choices = {(rule, old(symbol)): (old(name), format) for rule, symbol, name, format in manifest["choices"]}
    manifest["lutra"], manifest["choices"] = 2, [[*key, *value] for key, value in choices.items()]
    assert len(choices) == 2 * 4 + 1
    (folder / "lutra.json").write_text(json.dumps(manifest))
    seal(folder)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_folder_of_the_version_before_gives_the_same_numbers(tmp_path: Path, method: str, generated: Any):
    model, options = made("llama"), {"cache_dir": tmp_path / "cache"}
    entry = {"quantize-weights": {"bits": 4, "group_size": 32, "method": method}}
    calibration = lutra.calibrate(model, [IDS]) if method == "gptq" else None
    model.compile(backend="lutra", options={**options, "recipe": recipe(entry), "calibration": calibration})
    tokens, logits = generated(model, IDS)
    lutra.pack(model, tmp_path / "packed")
    in_version_2(tmp_path / "packed")
    torch._dynamo.reset()
    loaded: Any = lutra.load(tmp_path / "packed", options=options)
    loaded_tokens, loaded_logits = generated(loaded, IDS)
    assert torch.equal(loaded_tokens, tokens) and torch.equal(loaded_logits, logits)
    packed = (tmp_path / "packed" / "packed.safetensors").stat().st_size
    assert lutra.report(loaded).graphs[0].packed_bytes <= packed  # nothing was packed again


def test_another_process_needs_the_folder_alone(tmp_path: Path, generated: Any):
    model = made("llama")
    model.compile(backend="lutra", options={"recipe": "w4", "cache_dir": tmp_path / "cache"})
    expected, _ = generated(model, IDS)
    lutra.pack(model, tmp_path / "packed")
    shutil.move(tmp_path / "packed", tmp_path / "moved")
    script = (
        "import sys, torch, lutra\n"
        "model = lutra.load(sys.argv[1], options={'cache_dir': sys.argv[2]})\n"
        f"ids = torch.tensor({IDS.tolist()})\n"
        "keywords = {'cache_implementation': 'static', 'disable_compile': True, 'do_sample': False}\n"
        "lengths = {'max_new_tokens': 6, 'min_new_tokens': 6}\n"
        "with torch.no_grad():\n"
        "    print(model.generate(ids, attention_mask=torch.ones_like(ids), **lengths, **keywords).tolist())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "moved"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected.tolist()


class Pair(nn.Module):
    """Not a model of Transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 96), nn.Linear(96, 32)
        self.register_buffer("shift", torch.randn(32), persistent=False)
        self.unused = nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu()) + self.shift


def packed_pair(folder: Path) -> tuple[Pair, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    model, x = Pair(), torch.randn(3, 64)
    passes = recipe({"quantize-weights": {"bits": 2, "group_size": 32}})
    model.compile(backend="lutra", options={"recipe": passes, "cache_dir": folder / "cache"})
    with torch.no_grad():
        expected = model(x)
    lutra.pack(model, folder / "packed")
    return model, x, expected


def test_any_module_is_packed_and_loaded_into_one_of_its_structure(tmp_path: Path):
    model, x, expected = packed_pair(tmp_path)
    torch._dynamo.reset()
    with torch.device("meta"):
        other = Pair()
    loaded: Any = lutra.load(tmp_path / "packed", other, {"cache_dir": tmp_path / "cache"})
    with torch.no_grad():
        assert torch.equal(loaded(x), expected)
        assert other.a(x).isnan().any()  # by itself it has no values: that shows
    assert torch.equal(other.unused, model.unused)


def test_new_values_of_a_loaded_weight_are_packed_anew(tmp_path: Path):
    model, x, _ = packed_pair(tmp_path)
    torch._dynamo.reset()
    loaded: Any = lutra.load(tmp_path / "packed", Pair(), {"cache_dir": tmp_path / "cache"})
    with torch.no_grad():
        loaded(x)
        model.a.weight.data = torch.randn(96, 64)
        loaded.a.weight.data = model.a.weight.data.clone()
        assert torch.equal(loaded(x), model(x))


def test_errors_name_what_is_wrong(tmp_path: Path):
    with pytest.raises(PackedModelError, match=r"holds no packed model .lutra.json is missing."):
        lutra.load(tmp_path)
    with pytest.raises(PackedModelError, match="compiled and called under one set of options"):
        lutra.pack(Pair(), tmp_path / "new")
    model, _, _ = packed_pair(tmp_path)
    with pytest.raises(PackedModelError, match="not empty"):
        lutra.pack(model, tmp_path / "packed")
    with pytest.raises(OptionError, match="option 'recipe' cannot change it"):
        lutra.load(tmp_path / "packed", Pair(), {"recipe": "w4"})
    with pytest.raises(PackedModelError, match="needs a module of its structure"):
        lutra.load(tmp_path / "packed")
    with pytest.raises(PackedModelError, match="another structure than the Linear"):
        lutra.load(tmp_path / "packed", nn.Linear(64, 96))
    wider = Pair()
    wider.a = nn.Linear(65, 96)
    with pytest.raises(PackedModelError, match=r"a.weight is \[96, 64\], the model's is \[96, 65\]"):
        lutra.load(tmp_path / "packed", wider)
    manifest = tmp_path / "packed" / "lutra.json"
    manifest.write_text(manifest.read_text().replace('"lutra": 3', '"lutra": 7'))
    with pytest.raises(PackedModelError, match=r"lutra.json: lutra: Input should be 2 or 3: pack the model again"):
        lutra.load(tmp_path / "packed", Pair())


def test_a_folder_is_verified_file_by_file(tmp_path: Path):
    packed_pair(tmp_path)
    folder = tmp_path / "packed"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert lutra.verify(folder) == sizes
    with (folder / "plain.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"x")
    for check in (lutra.verify, lambda folder: lutra.load(folder, Pair())):
        with pytest.raises(PackedModelError, match=r"plain.safetensors is damaged: between bytes 0 and"):
            check(folder)
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert isinstance(done.exception, PackedModelError)


def changed(folder: Path, name: str, change: Any) -> None:
    """`change` the tensors of a file on purpose: the checksums fit."""
    with safe_open(folder / name, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key).clone() for key in file.offset_keys()}
    save_file(change(tensors), folder / name, metadata)
    seal(folder)


def test_files_of_others_hold_what_the_manifest_says(tmp_path: Path):
    packed_pair(tmp_path)
    folder = tmp_path / "packed"
    whole = read(folder)
    for change, said in (
        (lambda tensors: tensors | {"unused": torch.zeros(4)}, r"'unused' has torch.float32 \[4\] where unused is"),
        (lambda tensors: tensors | {"unused": torch.zeros(3).int()}, r"'unused' has torch.int32 \[3\] where unused is"),
        (lambda tensors: tensors | {"other": torch.zeros(3)}, "'other' is no tensor of the model"),
        (lambda tensors: {"shift": tensors["shift"]}, "has no tensor '"),
    ):
        changed(folder, "plain.safetensors", change)
        with pytest.raises(PackedModelError, match=f"plain.safetensors.*{said}"):
            lutra.load(folder, Pair())
        write(whole, folder)
    manifest = json.loads(whole["lutra.json"])
    manifest["tensors"]["a.weight"]["shape"] = [10**6, 10**6]
    (folder / "lutra.json").write_text(json.dumps(manifest))
    seal(folder)
    with pytest.raises(PackedModelError, match=r"a.weight cannot have shape \[1000000, 1000000\]: the files are too"):
        lutra.load(folder, Pair())


def test_derived_tensors_of_others_are_what_the_graph_needs(tmp_path: Path):
    _, x, _ = packed_pair(tmp_path)
    changed(tmp_path / "packed", "plain.safetensors", lambda tensors: tensors | {"derived|a.bias": torch.zeros(9)})
    torch._dynamo.reset()
    loaded: Any = lutra.load(tmp_path / "packed", Pair(), {"cache_dir": tmp_path / "cache"})
    with (
        torch.no_grad(),
        pytest.raises(BackendCompilerFailed, match=r"a.bias is \[9\] of .* needs \[96\] of") as raised,
    ):
        loaded(x)
    assert isinstance(raised.value.inner_exception, PackedModelError)


def test_weights_are_packed_as_they_are_now(tmp_path: Path):
    model, x, _ = packed_pair(tmp_path)
    with torch.no_grad():
        model.a.weight.data.mul_(2)
        lutra.pack(model, tmp_path / "other")
        assert torch.equal(lutra.load(tmp_path / "other", Pair())(x), model(x))


def test_the_command_line_packs_a_checkpoint_and_profiles_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(tmp_path / "cache"))
    made("llama").save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "packed")

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})

    done = run("pack", str(tmp_path / "model"), "--recipe", "w4", "-o", folder)
    assert done.exit_code == 0, done.output
    assert "MB of weights, no tokenizer found" in done.output and "why they stay in floating point" in done.output
    verified = run("verify", folder)
    assert verified.exit_code == 0 and "packed.safetensors" in verified.output
    torch._dynamo.reset()
    shown = run("profile", folder, "--prompt", "8", "--new-tokens", "3")
    assert shown.exit_code == 0 and "a4g128" in shown.output
    again = run("pack", folder, "-o", str(tmp_path / "other"))
    assert isinstance(again.exception, LutraError) and "is packed already" in str(again.exception)


def test_a_model_packed_for_another_target_says_that_it_is_packed_again(tmp_path: Path, caplog: Any):
    _, x, expected = packed_pair(tmp_path)
    torch._dynamo.reset()
    loaded: Any = lutra.load(tmp_path / "packed", Pair(), {"cache_dir": tmp_path / "cache", "target": "portable"})
    with torch.no_grad():
        got = loaded(x)
    assert (got - expected).norm() < 0.02 * expected.norm()
    packed_for = json.loads((tmp_path / "packed" / "lutra.json").read_text())["target"]
    assert packed_for == "portable" or f"was packed for {packed_for}, this is portable" in caplog.text
