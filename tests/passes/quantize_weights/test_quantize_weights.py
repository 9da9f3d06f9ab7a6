"""`quantize-weights`: which weights change, to which format, and that values are those of the dequantised weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lutra import calibrate
from lutra.ir.errors import CalibrationError, QuantizationError, RecipeError, SelectorError
from lutra.ir.operator_call import operation_name
from lutra.ir.ops import quantized_format
from lutra.ir.rewriting import paths
from lutra.ir.weights.formats import WeightFormat, dequantize
from lutra.ir.weights.rounding import RoundToNearest
from lutra.passes.quantize_weights.gptq import Gptq
from lutra.passes.quantize_weights.half_quadratic import HalfQuadratic
from lutra.passes.registry import available_passes
from lutra.recipes.loading import load_recipe
from torch import nn

FORMATS = [
    *((bits, scheme) for bits in (1, 2, 3, 4, 8) for scheme in ("symmetric", "asymmetric")),
    (2, "ternary"),
]


class Block(nn.Module):
    """A merged pair, a gate, a residual, biases, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(64, 64), nn.Linear(64, 32)
        self.gate, self.up = nn.Linear(64, 128, bias=False), nn.Linear(64, 128, bias=False)
        self.down, self.head = nn.Linear(128, 64), nn.Linear(64, 40)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(self.q(x))
        y = y + self.down(torch.nn.functional.silu(self.gate(y)) * self.up(y))
        return self.head(y), self.k(x)


def formats(backend: Any) -> dict[str, str]:
    """Module path -> short name of its weight's format, "float" for a plain tensor."""
    found = {}
    for op in backend.graph.operations:
        if operation_name(op) in ("lutra.linear", "lutra.table_linear"):
            quantized = quantized_format(op.weight.type)
            found |= dict.fromkeys(paths(op), quantized[2].describe() if quantized else "float")
    return found


def dequantized(
    model: nn.Module, names: Callable[[str], bool], format_: WeightFormat, search: bool = False
) -> nn.Module:
    """A copy of `model` with the weights of the linears that `names` takes rounded to `format_`."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and names(name):
            rounded = dequantize(RoundToNearest(format_, search)(module.weight))
            module.weight = nn.Parameter(rounded.to(module.weight.dtype))
    return model


@pytest.fixture
def block(interpreted: Callable[..., Any]) -> tuple[nn.Module, Any, torch.Tensor]:
    """A `Block`, the backend that interpreted it once, and its input."""
    model, backend, x = Block(), interpreted(), torch.randn(3, 64)
    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return model, backend, x


def check_values(backend: Any, reference: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        for got, expected in zip(backend.again(), reference(x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "scheme"), FORMATS)
def test_every_format_computes_with_the_dequantised_weights(
    bits: int, scheme: Any, block: tuple[nn.Module, Any, torch.Tensor]
):
    model, backend, x = block
    (report,) = backend.rewrite({"quantize-weights": {"bits": bits, "scheme": scheme, "group_size": 32}})
    format_ = WeightFormat(bits, 32, scheme)
    assert set(formats(backend).values()) == {format_.describe()}
    assert report.matched == 6
    check_values(backend, dequantized(model, lambda _: True, format_), x)


def test_linears_are_recognised_without_fusion(interpreted: Callable[..., Any]):
    model, x = Block(), torch.randn(3, 64)
    backend = interpreted({"quantize-weights": {"bits": 4, "group_size": 32, "select": {"not": {"modules": "head"}}}})
    with torch.no_grad():
        outputs = torch.compile(model, backend=backend)(x)
        reference = dequantized(model, lambda name: name != "head", WeightFormat(4, 32))(x)
    for got, expected in zip(outputs, reference, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_one_scale_a_channel_and_range_search(block: tuple[nn.Module, Any, torch.Tensor]):
    model, backend, x = block
    backend.rewrite({"quantize-weights": {"bits": 3, "group_size": "channel", "range_search": True}})
    check_values(backend, dequantized(model, lambda _: True, WeightFormat(3, 0), search=True), x)


@pytest.mark.parametrize("chosen", [["q"], ["k"], ["gate"], ["up"], ["down", "q"], ["q", "k"], ["gate", "up", "head"]])
def test_only_what_the_selector_takes_changes_and_what_has_one_format_is_merged_behind_it(
    chosen: list[str], block: tuple[nn.Module, Any, torch.Tensor]
):
    model, backend, x = block
    backend.rewrite({"fuse": {}}, {"quantize-weights": {"bits": 2, "group_size": 64, "select": {"modules": chosen}}})
    names = ("q", "k", "gate", "up", "down", "head")
    assert formats(backend) == {name: "s2g64" if name in chosen else "float" for name in names}
    check_values(backend, dequantized(model, lambda name: name in chosen, WeightFormat(2, 64)), x)
    whole = [set(pair) <= set(chosen) or not set(pair) & set(chosen) for pair in (("q", "k"), ("gate", "up"))]
    assert backend.counts()["linear"] == 6 - sum(whole)


def test_a_second_run_changes_nothing(block: tuple[nn.Module, Any, torch.Tensor]):
    _, backend, _ = block
    entry = {"quantize-weights": {"bits": 4, "group_size": 32, "select": {"modules": ["q", "down"]}}}
    backend.rewrite(entry)
    before = str(backend.graph.module)
    (report,) = backend.rewrite(entry)
    assert report.changed == {}
    assert str(backend.graph.module) == before


def test_the_first_entry_that_takes_a_weight_wins(block: tuple[nn.Module, Any, torch.Tensor]):
    _, backend, _ = block
    backend.rewrite(
        {"quantize-weights": {"bits": 8, "group_size": 32, "select": {"modules": ["head", "q"]}}},
        {"quantize-weights": {"bits": 2, "group_size": 32}},
    )
    found = formats(backend)
    assert [found[name] for name in ("head", "q", "k", "down")] == ["s8g32", "s8g32", "s2g32", "s2g32"]


def test_nothing_selected_leaves_the_module_as_it_is(block: tuple[nn.Module, Any, torch.Tensor]):
    _, backend, _ = block
    backend.rewrite()  # names what the module is made of
    before = str(backend.graph.module)
    entry = {"quantize-weights": {"select": {"modules": "missing"}, "allow_empty": True}}
    assert backend.rewrite(entry)[0].changed == {}
    assert str(backend.graph.module) == before
    with pytest.raises(SelectorError, match=r"matches nothing in the encode graph; modules there: .*down"):
        backend.rewrite({"quantize-weights": {"select": {"modules": "missing"}}})


class Uneven(nn.Module):
    """Columns that 128 does not divide, but for one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(576, 36), nn.Linear(576, 92)
        self.a, self.b, self.c = nn.Linear(36, 96), nn.Linear(96, 128), nn.Linear(128, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.c(self.b(torch.tanh(self.a(torch.tanh(self.q(x)))))), self.k(x)


UNEVEN = {"q": 64, "k": 64, "a": 0, "b": 32, "c": 128}


@pytest.fixture
def uneven(interpreted: Callable[..., Any]) -> tuple[nn.Module, Any, torch.Tensor]:
    model, backend, x = Uneven(), interpreted(), torch.randn(3, 576)
    with torch.no_grad():
        torch.compile(model, backend=backend)(x)
    return model, backend, x


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq", "budget"])
def test_a_layer_that_groups_do_not_divide_takes_the_largest_that_do(
    method: str, uneven: tuple[nn.Module, Any, torch.Tensor]
):
    model, backend, x = uneven
    calibration = calibrate(model, [torch.randn(40, 576)], loss=lambda y: y[0].square().sum() + y[1].sum())
    entry: dict[str, Any] = {"bits": {"average": 4, "choices": [4, 8]}} if method == "budget" else {"method": method}
    (report,) = backend.rewrite({"quantize-weights": entry}, calibration=calibration)
    assert formats(backend) == {name: WeightFormat(4, size).describe() for name, size in UNEVEN.items()}
    assert {path: what.split(",")[0] for path, what in report.adjusted} == {
        "q": "groups of 64",
        "k": "groups of 64",
        "a": "one scale a channel",
        "b": "groups of 32",
    }
    assert report.left == []

    def rule(module: nn.Linear) -> Any:
        (format_,) = (WeightFormat(4, size) for name, size in UNEVEN.items() if getattr(model, name) is module)
        if method == "gptq":
            found = calibration.of(module.weight)
            assert found is not None
            return Gptq(format_, found.gram, False)
        return HalfQuadratic(format_) if method == "hqq" else RoundToNearest(format_)

    check_values(backend, with_weights(model, rule), x)


def test_strict_takes_no_other_groups_and_names_some_that_fit_all(uneven: tuple[nn.Module, Any, torch.Tensor]):
    _, backend, _ = uneven
    entry = {"quantize-weights": {"group_size": 256, "select": {"modules": ["b", "c"]}}}
    with pytest.raises(
        QuantizationError, match=r"^b: group_size = 256 does not divide .* 96 .*\{\"group_size\": 32\}\}"
    ):
        backend.rewrite(entry, strict=True)
    with pytest.raises(QuantizationError, match=r"^q: .* 576 input features, .*: \"channel\"\}\}, or group_size"):
        backend.rewrite({"quantize-weights": {"group_size": 128}}, strict=True)
    backend.rewrite(entry)
    assert backend.rewrite(entry, strict=True)[0].adjusted == []  # nothing is left to do
    backend.rewrite({"quantize-weights": {"group_size": "channel"}}, strict=True)


def test_weights_of_linears_that_share_them_are_quantised_once_each_format(interpreted: Callable[..., Any]):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 64), nn.Linear(64, 40, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(tokens))

    model, tokens = Tied(), torch.randint(0, 40, (2, 5))
    backend = interpreted({"fuse": {}}, {"quantize-weights": {"bits": 4, "group_size": 64}})
    with torch.no_grad():
        got = torch.compile(model, backend=backend)(tokens)
        rounded = dequantize(RoundToNearest(WeightFormat(4, 64))(model.embed.weight))
        expected = model.embed(tokens) @ rounded.T
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert"])
def test_library_recipes_quantise_every_linear_and_keep_four_bits_for_the_head(
    name: str, make_model: Callable[..., nn.Module], interpreted: Callable[..., Any], tokens: torch.Tensor
):
    model, backend = make_model(name), interpreted({"fuse": {}})
    backend.steps = load_recipe("w2-lut", available_passes(), vars={"group_size": 64}).steps
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(tokens)
    found = formats(backend)
    head = {"bert": "cls.predictions.decoder"}.get(name, "lm_head")
    assert found.pop(head) == "s4g64"
    outside = {"cls.predictions.transform.dense": "s4g64"} if name == "bert" else {}
    assert {path: format_ for path, format_ in found.items() if not any(c.isdigit() for c in path)} == outside
    assert {format_ for path, format_ in found.items() if path not in outside} == {"s2g64"}
    assert backend.counts()["linear"] == 0


def with_weights(model: nn.Module, rule_of: Callable[[nn.Linear], Callable[[torch.Tensor], Any]]) -> nn.Module:
    """A copy of `model` with the weight of every linear replaced by what its rule makes of it."""
    other = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            other.get_submodule(name).weight = nn.Parameter(dequantize(rule_of(module)(module.weight)))
    return other


def block_calibration(model: nn.Module) -> Any:
    return calibrate(model, [torch.randn(50, 64), torch.randn(30, 64)], loss=lambda y: y[0].square().sum() + y[1].sum())


def test_hqq_and_gptq_compute_with_the_weights_of_their_rules(block: tuple[nn.Module, Any, torch.Tensor]):
    model, backend, x = block
    format_, calibration = WeightFormat(3, 32), block_calibration(model)
    chosen = {"modules": ["q", "k", "down", "head"]}
    entry = {"bits": 3, "group_size": 32, "method": "gptq", "range_search": True}
    backend.rewrite({"quantize-weights": {**entry, "select": chosen}}, calibration=calibration)
    backend.rewrite({"quantize-weights": {"bits": 3, "group_size": 32, "method": "hqq"}})

    def rule(module: nn.Linear) -> Any:
        if module in (model.gate, model.up):
            return HalfQuadratic(format_)
        found = calibration.of(module.weight)
        assert found is not None
        return Gptq(format_, found.gram, True)

    check_values(backend, with_weights(model, rule), x)
    symbols = {op.sym.value for op in backend.graph.operations if operation_name(op) == "lutra.param"}
    assert any(symbol.endswith(f"@s3g32-search-gptq-{calibration.fingerprint}") for symbol in symbols)


def test_gptq_without_what_it_needs_is_refused(block: tuple[nn.Module, Any, torch.Tensor]):
    model, backend, _ = block
    entry = {"quantize-weights": {"method": "gptq", "group_size": 32}}
    for _ in range(2):  # nothing is remembered of the first
        with pytest.raises(CalibrationError, match=r"needs a calibration.*lutra\.calibrate"):
            backend.rewrite(entry)
    partial = calibrate(model.head, [torch.randn(4, 64)], loss=lambda y: y.sum())
    with pytest.raises(CalibrationError, match="was not reached by the calibration"):
        backend.rewrite(entry, calibration=partial)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_budget_is_spent_where_errors_matter_and_decided_once(
    calibrated: bool, block: tuple[nn.Module, Any, torch.Tensor]
):
    model, backend, x = block
    with torch.no_grad():
        dict(model.named_parameters())["head.weight"].mul_(30)  # by weights alone its errors are by far the largest
    calibration = block_calibration(model) if calibrated else None
    entry = {"bits": {"average": 3, "choices": [2, 3, 4]}, "group_size": 32}
    (report,) = backend.rewrite({"quantize-weights": entry}, calibration=calibration)
    found = formats(backend)
    sizes = {name: module.weight.numel() for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    widths = {name: int(short[1]) for name, short in found.items()}
    assert sum(widths[n] * size for n, size in sizes.items()) <= 3 * sum(sizes.values())
    assert widths["head"] == 4 and min(widths.values()) == 2
    assert sum(report.changed[f"{bits} bits"] for bits in set(widths.values())) == len(set(backend_weights(backend)))
    rules = {name: RoundToNearest(WeightFormat(bits, 32)) for name, bits in widths.items()}
    named = {module: name for name, module in model.named_modules()}
    check_values(backend, with_weights(model, lambda module: rules[named[module]]), x)
    chosen = [name for (_, _), (name, _) in backend.store.choices.items()]
    assert set(backend_weights(backend)) == set(chosen)


def backend_weights(backend: Any) -> list[str]:
    """Symbols of the quantised weights of the graph."""
    names = (op.sym.value for op in backend.graph.operations if operation_name(op) == "lutra.param")
    return [name for name in names if "@" in name]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bits": {"average": 5}}, "outside the choices"),
        ({"bits": {"average": 3, "chioces": [2, 4]}}, "chioces"),
        ({"bits": {"average": 3}, "scheme": "ternary"}, "one width"),
        ({"method": "gtpq"}, "method"),
    ],
)
def test_wrong_budgets_and_methods_are_refused(parameters: dict[str, Any], message: str):
    with pytest.raises(RecipeError, match=message):
        load_recipe({"lutra": 1, "name": "x", "passes": [{"quantize-weights": parameters}]}, available_passes())
