"""The parameter store: names, derived and stacked values, packing, release."""

from dataclasses import replace

import pytest
import torch
from lutra.ir.errors import CaptureError
from lutra.ir.weights.formats import QuantizedWeight, WeightFormat
from lutra.ir.weights.store import ParameterStore


@pytest.fixture
def store() -> ParameterStore:
    store = ParameterStore()
    store.bind("a", torch.randn(4, 6))
    store.bind("b", torch.randn(2, 6))
    return store


def quantize(weight: torch.Tensor) -> QuantizedWeight:
    """One bit a weight: its sign."""
    codes = (weight > 0).to(torch.uint8)
    return QuantizedWeight(codes, weight.abs().mean(-1, keepdim=True).half(), None, WeightFormat(1, 0))


def test_originals_are_bound_without_a_copy(store: ParameterStore):
    tensor = torch.randn(3)
    store.bind("c", tensor)
    assert store.tensor("c") is tensor
    assert store.originals() == ["a", "b", "c"]


def test_parameters_without_values_are_refused(store: ParameterStore):
    with pytest.raises(CaptureError, match="'c' is on the meta device"):
        store.bind("c", torch.empty(3, device="meta"))


def test_unknown_names_are_refused(store: ParameterStore):
    with pytest.raises(CaptureError, match="no parameter is called 'c'"):
        store.value("c")
    with pytest.raises(CaptureError, match="no parameter is called 'c'"):
        store.derive("d", ["a", "c"], torch.add)


def test_derived_values_follow_their_sources_and_are_not_kept(store: ParameterStore):
    store.derive("a.t", ["a"], lambda t: t.T)
    store.derive("a.t2", ["a.t"], lambda t: 2 * t)
    assert torch.equal(store.tensor("a.t2"), 2 * store.tensor("a").T)
    assert store.value("a.t2") is not store.value("a.t2")
    assert store.sources("a.t2") == {"a"}


def test_a_name_keeps_its_first_meaning(store: ParameterStore):
    store.derive("d", ["a"], torch.neg)
    store.derive("d", ["a"], torch.abs)
    assert torch.equal(store.tensor("d"), -store.tensor("a"))


def test_kept_stacks_leave_their_parts_where_they_are(store: ParameterStore):
    a, b = store.tensor("a"), store.tensor("b")
    places = a.data_ptr(), b.data_ptr()
    whole = store.keep(store.stack("a|b", ["a", "b"]))
    assert torch.equal(whole, torch.cat([a, b]))
    assert store.parts("a|b") == ("a", "b")
    assert (a.data_ptr(), b.data_ptr()) == places
    assert store.keep("a|b") is whole


def test_tied_weights_have_one_name_and_cannot_be_stacked(store: ParameterStore):
    assert store.bind("tied", store.tensor("a")) == "a"
    store.bind("view", store.tensor("a").view_as(store.tensor("a")))
    assert store.can_stack(["a", "b"])
    assert not store.can_stack(["a", "view"])


def test_values_are_what_was_asked_for(store: ParameterStore):
    store.derive("q", ["a"], quantize)
    assert store.quantized("q").format == WeightFormat(1, 0)
    with pytest.raises(CaptureError, match="'q' is quantised"):
        store.tensor("q")
    with pytest.raises(CaptureError, match="'a' is not quantised"):
        store.quantized("a")


def test_weights_are_packed_once_and_unpacked_instead_of_computed_again(store: ParameterStore):
    computed = []
    store.derive("q", ["a"], lambda t: computed.append(t) or quantize(t))
    original = store.quantized("q")
    assert not store.is_packed("q")

    def pack() -> list[torch.Tensor]:
        return [store.quantized("q").codes.clone()]

    def unpack(buffers: list[torch.Tensor]) -> QuantizedWeight:
        return replace(original, codes=buffers[0])

    buffers = store.packed("q", "rows", pack, unpack)
    assert store.packed("q", "rows", pack, unpack) is buffers
    assert len(computed) == 2 and store.is_packed("q")
    store.packed("q", "other", pack, unpack)
    assert store.quantized("q").codes is buffers[0]
    assert len(computed) == 2
    assert store.packed_bytes() == 2 * 24


def test_a_derivation_says_how_and_from_what(store: ParameterStore):
    store.derive("q", ["a"], quantize)
    assert store.derivation("q") == (quantize, ("a",))


def test_released_originals_are_gone_but_what_is_read_stays(store: ParameterStore):
    store.derive("q", ["a"], quantize)
    store.derive("b.t", ["b"], lambda t: t.T)
    assert store.release(keep=["b.t"]) == ["a"]
    assert store.tensor("b.t").shape == (6, 2)
    with pytest.raises(CaptureError, match="'a' was released after packing"):
        store.value("q")


def test_a_rebound_store_computes_the_same_from_other_tensors(store: ParameterStore):
    store.bind("constant.0", torch.ones(1))
    store.derive("sum", ["a", "constant.0"], torch.add)
    other = store.rebound({"a": torch.zeros(4, 6)})
    assert torch.equal(other.tensor("sum"), torch.ones(4, 6))
    assert not torch.equal(store.tensor("sum"), torch.ones(4, 6))
    assert other.tensor("b") is store.tensor("b")


def test_what_was_computed_from_changed_tensors_is_forgotten_and_the_rest_is_kept(store: ParameterStore):
    store.derive("a.t", ["a"], lambda t: 2 * t)
    store.derive("b.t", ["b"], lambda t: 2 * t)
    a, b = store.keep("a.t"), store.keep("b.t")
    store.tensor("a").add_(1)
    store.forget(["a"])
    assert torch.equal(store.keep("a.t"), 2 * store.tensor("a")) and not torch.equal(store.keep("a.t"), a)
    assert store.keep("b.t") is b
    other = store.rebound({"b": torch.zeros(2, 6)})
    assert other.keep("a.t") is store.keep("a.t")
    assert not other.keep("b.t").any() and store.keep("b.t") is b


def test_a_tensor_that_the_model_has_no_more_gives_its_name_to_the_next(store: ParameterStore):
    kept, gone, new = torch.randn(3), torch.randn(3), torch.randn(3)
    assert [store.bind(name, t) for name, t in (("kept", kept), ("gone", gone))] == ["kept", "gone"]
    del gone
    assert store.is_abandoned("gone") and not store.is_abandoned("kept")
    assert [store.bind(name, new) for name in ("gone", "kept")] == ["gone", "gone"]
    assert store.tensor("gone") is new


def test_released_names_stay_released_when_the_next_graph_passes_them_again(store: ParameterStore):
    store.release(keep=["b"])
    tensor = store.bound("a")
    assert tensor is not None and store.bind("a", tensor) == "a"
    with pytest.raises(CaptureError, match="'a' was released after packing"):
        store.tensor("a")
    assert store.original("a") is None and store.released_names() == ["a"]
    assert store.shape("a") == (4, 6) and store.shape("b") == (2, 6)
    store.replace({"a": torch.ones(4, 6)})
    assert torch.equal(store.tensor("a"), torch.ones(4, 6))


def test_another_tensor_of_the_same_name_gets_a_name_of_its_own():
    """Graphs of single layers, after a graph break, call their weights alike: values of one must not serve another."""
    store = ParameterStore()
    first, second = torch.randn(3), torch.randn(3)
    assert store.bind("fc.weight", first) == store.bind("fc.weight", first) == "fc.weight"
    other = store.bind("fc.weight", second)
    assert other != "fc.weight"
    assert store.tensor("fc.weight") is first and store.tensor(other) is second
