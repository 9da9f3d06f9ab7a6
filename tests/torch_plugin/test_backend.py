"""`torch.compile(model, backend="lutra")` from end to end on small models."""

import copy
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lutra
import pytest
import torch
import transformers as tf
from lutra.codegen.targets.registry import TARGETS, get_target
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from lutra.passes.quantize_weights.gptq import Gptq
from lutra.torch_plugin.inspect.report import states_of
from torch import nn


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LUTRA_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    torch.manual_seed(0)


def llama(layers: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    config = tf.LlamaConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return tf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def other(name: str) -> Any:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
    if name == "gpt2":
        return tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64)).eval()
    if name == "opt":
        config = tf.OPTConfig(**sizes, ffn_dim=96, max_position_embeddings=64, word_embed_proj_dim=64)
        return tf.OPTForCausalLM(config).eval()
    if name == "qwen3":
        return tf.Qwen3ForCausalLM(
            tf.Qwen3Config(**sizes, intermediate_size=96, num_key_value_heads=2, head_dim=16)
        ).eval()
    return tf.BertForMaskedLM(tf.BertConfig(**sizes, intermediate_size=96)).eval()


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def steps(model: Any, config: Any, tokens: torch.Tensor) -> tuple[list[torch.Tensor], Any]:
    """Logits of a prefill and two decode steps over a StaticCache, and the cache."""
    cache = tf.StaticCache(config, max_cache_len=32)
    with torch.no_grad():
        parts = (tokens[:, :-2], tokens[:, -2:-1], tokens[:, -1:])
        return [model(part, past_key_values=cache, use_cache=True).logits for part in parts], cache


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "qwen3", "bert"])
def test_unquantised_logits_agree_with_eager_and_nothing_falls_back(name: str):
    model = llama() if name == "llama" else other(name)
    fast = torch.compile(model, backend="lutra")
    tokens = torch.randint(0, 256, (2, 9))
    if name == "bert":
        mask = torch.ones_like(tokens)
        mask[0, :3] = 0
        with torch.no_grad():
            expected = [model(tokens, attention_mask=mask).logits]
            got = [fast(tokens, attention_mask=mask).logits]
    else:
        expected, got = steps(model, model.config, tokens)[0], steps(fast, model.config, tokens)[0]
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 1e-5
    for report in lutra.report(fast).graphs:
        assert not report.fallbacks


def test_bfloat16_agrees_to_its_accuracy():
    model = llama(dtype=torch.bfloat16)
    tokens = torch.randint(0, 256, (1, 9))
    expected = steps(model, model.config, tokens)[0]
    got = steps(torch.compile(model, backend="lutra"), model.config, tokens)[0]
    for a, b in zip(got, expected, strict=True):
        assert relative(a, b) < 2e-2


@pytest.mark.parametrize(("recipe", "kernel"), [("w8", "s8"), ("w4", "a4"), ("w2-lut", "lookup_s2g64")])
def test_a_quantised_decode_step_computes_with_the_quantised_weights(recipe: str, kernel: str):
    """The dequantised weights put into the model give the logits, up to the quantisation of activations."""
    model, reference = llama(), llama()
    reference.load_state_dict(model.state_dict())
    fast = torch.compile(model, backend="lutra", options={"recipe": recipe})
    tokens = torch.randint(0, 256, (1, 6))
    got = steps(fast, model.config, tokens)[0]
    decode = next(r for r in lutra.report(fast).graphs if r.phase == "decode")
    assert any(kernel in name for name in decode.kernels), decode.kernels
    quantise_in_place(reference, recipe)
    for a, b in zip(got, steps(reference, model.config, tokens)[0], strict=True):
        assert relative(a, b) < 0.06


def test_activations_that_a_recipe_keeps_are_not_rounded():
    model, reference = llama(), llama()
    reference.load_state_dict(model.state_dict())
    quantise = {"bits": 4, "scheme": "asymmetric", "range_search": True, "activations": "float"}
    recipe = {"lutra": 1, "name": "w4a32", "passes": [{"quantize-weights": quantise}, {"symmetrize-tables": {}}]}
    options: Any = {"recipe": recipe}
    fast = torch.compile(model, backend="lutra", options=options)
    tokens = torch.randint(0, 256, (1, 24))
    got = steps(fast, model.config, tokens)[0]
    graphs = lutra.report(fast).graphs
    prefill, decode = (next(r for r in graphs if r.phase == phase) for phase in ("prefill", "decode"))
    assert "unpack+torch:linear_a4g128" in prefill.kernels and "float_a4g128" in decode.kernels
    assert any("tables would round" in left.reason for left in decode.passes[-1].left)
    quantise_in_place(reference, "w4")
    for a, b in zip(got, steps(reference, model.config, tokens)[0], strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize(
    ("recipe", "kernel"),
    [
        ("w8", "gemm_s8g128"),
        ("w4", "gemm_a4g128"),
        ("w2-lut", "lookup_s2g64" if get_target("auto").name == "avx2" else "gemm_s2g64"),
    ],
)
def test_a_quantised_prefill_computes_in_integers(recipe: str, kernel: str):
    model, reference = llama(), llama()
    reference.load_state_dict(model.state_dict())
    fast = torch.compile(model, backend="lutra", options={"recipe": recipe})
    tokens = torch.randint(0, 256, (1, 24))
    got = steps(fast, model.config, tokens)[0][0]
    prefill = next(r for r in lutra.report(fast).graphs if r.phase == "prefill")
    assert kernel in prefill.kernels and not any("torch:linear" in name for name in prefill.kernels)
    quantise_in_place(reference, recipe)
    assert relative(got, steps(reference, model.config, tokens)[0][0]) < 0.06


def test_triples_are_used_where_they_are_asked_for_and_fit():
    model, tokens = llama(), torch.randint(0, 256, (1, 12))
    outputs = []
    for family in ("lookup", "triples"):
        torch._dynamo.reset()
        options: Any = {"recipe": "ternary-lut", "kernel_family": family}
        fast = torch.compile(copy.deepcopy(model), backend="lutra", options=options)
        outputs.append(steps(fast, model.config, tokens)[0])
        assert all(f"{family}_t2g128" in report.kernels for report in lutra.report(fast).graphs)
    for one, other in zip(*outputs, strict=True):
        assert relative(one, other) < 0.06


def test_gptq_weights_serve_every_graph_after_their_originals_are_gone():
    model, tokens = llama(), torch.randint(0, 256, (1, 12))
    calibration, reference = lutra.calibrate(model, [torch.randint(0, 256, (2, 40))]), copy.deepcopy(model)
    for of_model, of_reference in zip(model.modules(), reference.modules(), strict=True):
        if isinstance(of_model, nn.Linear):
            found = calibration.of(of_model.weight)
            assert found is not None
            of_reference.weight = nn.Parameter(dequantize(Gptq(WeightFormat(3, 64), found.gram)(of_model.weight)))
    entry = {"bits": 3, "group_size": 64, "method": "gptq", "activations": "float"}
    recipe = {"lutra": 1, "name": "gptq", "passes": [{"fuse": {}}, {"quantize-weights": entry}]}
    options: Any = {"recipe": recipe, "calibration": calibration, "release_weights": True}
    fast = torch.compile(model, backend="lutra", options=options)
    for got, expected in zip(
        steps(fast, model.config, tokens)[0], steps(reference, model.config, tokens)[0], strict=True
    ):
        assert relative(got, expected) < 1e-4


def quantise_in_place(model: nn.Module, recipe: str) -> None:
    """Replace the weights of every linear by what the recipe's formats make of them."""
    formats = {
        "w8": (WeightFormat(8, 128), WeightFormat(8, 128), False),
        "w4": (WeightFormat(4, 128, "asymmetric"), WeightFormat(4, 128, "asymmetric"), True),
        "w2-lut": (WeightFormat(2, 64), WeightFormat(4, 64), True),
    }
    body, head, search = formats[recipe]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            weight = RoundToNearest(head if name == "lm_head" else body, search)(module.weight)
            module.weight.data = dequantize(weight)


def test_caches_are_updated_in_place():
    model = llama()
    fast = torch.compile(model, backend="lutra", dynamic=False)
    tokens = torch.randint(0, 256, (1, 5))
    _, cache = steps(fast, model.config, tokens)
    before = [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    with torch.no_grad():
        fast(tokens[:, :1], past_key_values=cache, use_cache=True)
    assert before == [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]
    decode = [r for r in lutra.report(fast).graphs if r.phase == "decode"][-1]
    assert decode.kernels["rope_kv_update"] == 2 and "torch:copy" not in decode.kernels


def test_a_decode_step_makes_its_results_alone():
    """All else lies in the workspace of the executable."""
    model = llama()
    fast = torch.compile(model, backend="lutra", dynamic=False, options={"recipe": "w2-lut"})
    tokens = torch.randint(0, 256, (1, 5))
    _, cache = steps(fast, model.config, tokens)
    graph = next(g for state in states_of(model) for g in state.graphs if g.graph.phase == "decode")
    calls: Counter[str] = Counter()

    def count(name: str, begins: bool, _: int) -> None:
        calls[name] += begins

    with graph.executable.watched(count, lambda begins: None), torch.no_grad():
        fast(tokens[:, :1], past_key_values=cache, use_cache=True)
    assert calls["decode_attention"] == 2
    assert (calls["vm.builtin.alloc_tensor"], calls["vm.builtin.make_tuple"]) == (1, 1)  # the logits, and all results


def test_threads_that_call_one_model_take_turns():
    model = llama()
    fast = torch.compile(model, backend="lutra", dynamic=False)
    prompts = [torch.randint(0, 256, (1, 24)) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x, use_cache=False).logits for x in prompts]
        fast(prompts[0], use_cache=False)

    def call(number: int) -> list[float]:
        with torch.no_grad():
            return [relative(fast(prompts[number], use_cache=False).logits, expected[number]) for _ in range(50)]

    with ThreadPoolExecutor(len(prompts)) as pool:
        errors = [error for found in pool.map(call, range(len(prompts))) for error in found]
    assert all(error < 1e-4 for error in errors)


@pytest.mark.parametrize("guards", [{}, {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}])
def test_other_weights_at_the_same_graph_are_used(guards: dict[str, Any]):
    """Also where torch was asked not to look at modules: the backend looks at weights itself."""
    model = llama(layers=1)
    fast = torch.compile(model, backend="lutra", options={"recipe": "w8", **guards})
    tokens = torch.randint(0, 256, (1, 6))
    steps(fast, model.config, tokens)
    model.load_state_dict(llama(layers=1).state_dict())
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    for a, b in zip(steps(fast, model.config, tokens)[0], steps(model, model.config, tokens)[0], strict=True):
        assert relative(a, b) < 0.05


def test_weights_that_do_not_count_writes_are_known_by_identity():
    with torch.inference_mode():
        model = nn.Linear(64, 32, bias=False).eval()
    fast = torch.compile(model, backend="lutra", options={"recipe": "none"})
    x = torch.randn(3, 64)
    with torch.inference_mode():
        assert relative(fast(x), model(x)) < 1e-5
        model.weight = nn.Parameter(torch.randn(32, 64), requires_grad=False)
        assert relative(fast(x), model(x)) < 1e-5


class Pair(nn.Module):
    """Two linears, of 96 and 64 input features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(96, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.relu(self.a(x)))


def passes(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": {"lutra": 1, "name": "mine", "passes": [{"fuse": {}}, *entries]}}


GOOD = passes({"quantize-weights": {"bits": 4, "group_size": 32}})
ABSENT = next(name for name, target in TARGETS.items() if not target.available())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipy": "w4"}, "OptionError: lutra has no option 'recipy': did you mean 'recipe'?"),
        ({"strict": "perhaps"}, "OptionError: option 'strict' is 'perhaps'"),
        ({"dump": "/dev/full/dump"}, "OptionError: option 'dump': '/dev/full/dump' is no folder to write to"),
        ({"recipe": "w3"}, "RecipeError: there is no recipe 'w3' in the library: did you mean 'w"),
        ({"recipe": "/nowhere/w4.yaml"}, "RecipeError: recipe file '/nowhere/w4.yaml' cannot be read: No such file"),
        ({"recipe": "w4", "vars": {"bit": 2}}, "there is no variable 'bit': did you mean 'bits'?"),
        (passes({"fuze": {}}), "RecipeError: recipe: there is no pass 'fuze': did you mean 'fuse'?"),
        (
            passes({"quantize-weights": {"bitz": 4}}),
            "RecipeError: recipe: pass 'quantize-weights' has no parameter 'bitz': did you mean 'bits'?",
        ),
        (passes({"quantize-weights": {"bits": 5}}), "bits = 5 is not supported: use one of 1, 2, 3, 4, 8"),
        (passes({"quantize-weights": {"group_size": 48}}), "group_size = 48 is not supported: use one of 32, 64"),
        (
            {"strict": True, **passes({"quantize-weights": {"group_size": 128}})},
            "QuantizationError: a: group_size = 128 does not divide the weight's 96 input features, and `strict` takes "
            'no other by itself: give options={"vars": {"group_size": 32}}, or group_size: 32 in a recipe of your own',
        ),
        (
            passes({"quantize-weights": {"group_size": 32, "select": {"modules": "layers.*"}}}),
            "SelectorError: recipe: select {'modules': 'layers.*'} of pass 'quantize-weights' matches nothing in the "
            "encode graph; modules there: a, b",
        ),
        ({"target": ABSENT}, f"TargetError: target {ABSENT!r} is not present on this machine: it has "),
        ({"target": "avx5"}, "TargetError: target 'avx5' is unknown: did you mean 'avx512'?"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_input_is_a_clear_error_and_leaves_the_model_usable(options: dict[str, Any], message: str):
    """Every call says it again, eager gives what it gave before, and good options compile."""
    model, x = Pair(), torch.randn(1, 96)
    with torch.no_grad():
        expected = model(x)
        bad = torch.compile(model, backend="lutra", options=options)
        for _ in range(2):
            with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as error:
                bad(x)
            assert message in str(error.value)
        assert torch.equal(model(x), expected)
        good = torch.compile(model, backend="lutra", options=GOOD)
        assert relative(good(x), expected) < 0.2
        assert torch.equal(model(x), expected)
    assert len(lutra.report(model).graphs) == 1


def test_a_model_on_meta_is_a_clear_error_and_works_once_it_has_weights():
    with torch.device("meta"):
        model = Pair()
    message = "ParameterError: parameter 'a.weight' is on the meta device and has no values: load the model's weights"
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=message), torch.no_grad():
        torch.compile(model, backend="lutra")(torch.empty(1, 96, device="meta"))
    model.load_state_dict(Pair().state_dict(), assign=True)
    x = torch.randn(1, 96)
    with torch.no_grad():
        assert relative(torch.compile(model, backend="lutra")(x), model(x)) < 1e-5


def test_training_goes_to_another_backend():
    trained = nn.Linear(32, 32)
    fast = torch.compile(trained, backend="lutra", options={"training_backend": "aot_eager"})
    fast(torch.randn(2, 32)).sum().backward()
    assert trained.weight.grad is not None


def test_unknown_operators_run_in_torch_and_strict_names_them():
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sort(x).values + 1

    x = torch.randn(3, 5)
    with torch.no_grad():
        fast = torch.compile(Sorted(), backend="lutra")
        torch.testing.assert_close(fast(x), Sorted()(x))
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"aten\.sort"):
            torch.compile(Sorted(), backend="lutra", options={"strict": True})(x)
        torch.testing.assert_close(Sorted()(x), torch.sort(x).values + 1)


def test_strict_takes_the_code_that_was_compiled_without_it_where_nothing_falls_back(tmp_path: Path):
    model, x = nn.Linear(32, 8), torch.randn(2, 32)
    for strict, cache in ((False, "miss"), (True, "hit")):
        torch._dynamo.reset()
        options: dict[str, Any] = {"cache_dir": tmp_path, "strict": strict}
        fast: Any = torch.compile(model, backend="lutra", options=options)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x))
        assert lutra.report(fast).graphs[-1].cache.startswith(cache)


ENTRY_POINT = """
import sys, torch
model, x = torch.nn.Linear(64, 64), torch.randn(1, 64)
assert "lutra" not in sys.modules and "lutra" in torch.compiler.list_backends()
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="lutra")(x), model(x))
print(sys.modules["lutra"].report(model).graphs[0].phase)
"""


def test_torch_finds_the_backend_without_an_import_of_lutra(tmp_path: Path):
    environment = {**os.environ, "LUTRA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ENTRY_POINT]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "encode"), done.stderr


def test_a_returned_clone_is_not_the_callers_tensor():
    x = torch.randn(4, 4)
    with torch.no_grad():
        copy, _ = torch.compile(lambda t: (t.clone(), t + 1), backend="lutra")(x)
    assert torch.equal(copy, x)
    copy.zero_()
    assert x.abs().sum() > 0
