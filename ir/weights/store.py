"""Parameters of a model, shared by all its graphs: originals, derived forms and packed bytes under stable names.

The IR names a parameter by its symbol (`lutra.param {sym = "model.layers.0.mlp.down_proj.weight"}`). A *derived*
symbol such as `...weight@s4g128` stands for a computation over other symbols (`derivations.py`: quantise, transpose,
concatenate) that runs when somebody asks for the value, and whose value is not kept unless it was *packed*: so a
1-billion-weight model is quantised one matrix at a time, and prefill and decode graphs share one packed copy.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch

from ..errors import CaptureError, ParameterError
from .derivations import Concat, Derivation, Given, Value
from .formats import QuantizedWeight, WeightFormat


class Derived(NamedTuple):
    """A name that stands for `derivation(*values of sources)`."""

    derivation: Derivation
    sources: tuple[str, ...]


@dataclass
class ParameterStore:
    """Name -> value for one compiled model. Not thread-safe; compilation is serialised by the caller.

    The model's tensors are held by ordinary references and known by `id`: torch swaps no tensor that somebody refers
    to weakly (`torch.utils.swap_tensors`). Each store holds one reference to each, so that a tensor that has no other
    is known to be gone from the model. `generation` counts how often values were forgotten: what was read of the store
    before is then to be read again."""

    _tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    _derived: dict[str, Derived] = field(default_factory=dict)
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)
    _packed: dict[tuple[str, str], list[torch.Tensor]] = field(default_factory=dict)
    _unpackers: dict[str, Callable[[], QuantizedWeight]] = field(default_factory=dict)
    _released: dict[str, torch.Size] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _given: dict[str, Given] = field(default_factory=dict)
    choices: dict[tuple[str, str], tuple[str, WeightFormat]] = field(default_factory=dict)
    """(rule, tensor) -> name and format of what quantising made of it: chosen for one graph, kept to in the others."""
    generation: int = 0

    def bind(self, name: str, tensor: torch.Tensor) -> str:
        """Make `tensor` (of the model, never copied) known; raises `CaptureError` on `meta`. Returns its name.

        That is the name that it has already, else `name`, with a number when another tensor has it: graphs that were
        captured of single layers, after a graph break, all call their weights alike."""
        if tensor.device.type == "meta":
            raise ParameterError(
                f"parameter {name!r} is on the meta device and has no values: load the model's weights first"
            )
        return self._identify(name, tensor)

    def bind_released(self, name: str, tensor: torch.Tensor) -> str:
        """Make `tensor`, which has a shape but no values any more, known: what is packed of it serves instead."""
        name = self._identify(name, tensor)
        self._released[name] = tensor.shape
        return name

    def give(self, name: str, read: Callable[[], QuantizedWeight]) -> None:
        """Say that tensor `name` came quantised: `read()` gives its codes."""
        self._given[name] = Given(name, read)

    def is_given(self, name: str) -> bool:
        """True when tensor `name` came quantised."""
        return name in self._given

    def given(self, name: str) -> Given:
        """What reads the codes that tensor `name` came with."""
        return self._given[name]

    def derive(self, name: str, sources: Iterable[str], derivation: Derivation) -> str:
        """Define `name` as `derivation(*values of sources)`, which it must mean always. Returns `name`."""
        sources = tuple(sources)
        for source in sources:
            self._require(source)
        self._derived.setdefault(name, Derived(derivation, sources))
        return name

    def can_stack(self, names: Sequence[str]) -> bool:
        """True when `names` are distinct tensors that share no memory with each other (no tied weights)."""
        bound = [t for n in names if (t := self.original(n)) is not None]
        return len({t.data_ptr() for t in bound}) == len(bound)

    def stack(self, name: str, parts: Sequence[str]) -> str:
        """Define `name` as the rows of `parts` one after the other. Returns `name`."""
        return self.derive(name, parts, Concat())

    def parts(self, name: str | None) -> tuple[str, ...]:
        """The names that `name` was stacked from; () when it is not a stack."""
        found = self._derived.get(name or "")
        return found.sources if found is not None and found.derivation == Concat() else ()

    def derivation(self, name: str) -> Derived | None:
        """What `name` was derived by and from; None when it was not."""
        return self._derived.get(name)

    def value(self, name: str) -> Value:
        """The value of `name`, computed now if it is derived (and not kept); `CaptureError` when it was released."""
        if name in self._unpackers:
            return self._unpackers[name]()
        if name in self._kept:
            return self._kept[name]
        self._require(name)
        if name in self._released:
            raise ParameterError(
                f"parameter {name!r} was released after packing (release_weights): its values are gone"
            )
        if name in self._tensors:
            return self._tensors[name]
        derivation, sources = self._derived[name]
        return derivation(*map(self.value, sources))

    def tensor(self, name: str) -> torch.Tensor:
        """`value(name)`, which must be a plain tensor."""
        value = self.value(name)
        if not isinstance(value, torch.Tensor):
            raise CaptureError(f"parameter {name!r} is quantised; a plain tensor was asked for")
        return value

    def shape(self, name: str) -> torch.Size:
        """Shape of the plain tensor `name`, also when it was released."""
        return self._released[name] if name in self._released else self.tensor(name).shape

    def quantized(self, name: str) -> QuantizedWeight:
        """`value(name)`, which must be a quantised weight."""
        value = self.value(name)
        if not isinstance(value, QuantizedWeight):
            raise CaptureError(f"parameter {name!r} is not quantised")
        return value

    def keep(self, name: str) -> torch.Tensor:
        """`tensor(name)`, computed once and kept: for derived tensors that a graph reads at every step."""
        original = self.original(name)
        if original is not None:
            return original
        if name not in self._kept:
            self._kept[name] = self.tensor(name).contiguous()
        return self._kept[name]

    def kept(self, name: str) -> torch.Tensor | None:
        """What `keep(name)` gives without computing anything; None when it would have to."""
        return self._kept.get(name)

    def keep_as(self, name: str, value: torch.Tensor) -> None:
        """From now on `value` is what `keep(name)` gives: a derived tensor that was computed before."""
        self._kept[name] = value

    def packed(
        self,
        name: str,
        layout: str,
        pack: Callable[[], list[torch.Tensor]],
        unpack: Callable[[list[torch.Tensor]], QuantizedWeight],
    ) -> list[torch.Tensor]:
        """The buffers of quantised `name` in `layout`, packed once for all graphs; `unpack` then serves `value`."""
        key = (name, layout)
        if key not in self._packed:
            buffers = self._packed[key] = pack()
            self._unpackers.setdefault(name, partial(unpack, buffers))
        return self._packed[key]

    def is_packed(self, name: str) -> bool:
        """True when `value(name)` reads packed buffers."""
        return name in self._unpackers

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """What `tensor` was bound as; None when it was not."""
        return self._names.get(id(tensor))

    def original(self, name: str) -> torch.Tensor | None:
        """The tensor bound to `name`, or None when it is derived, unknown or released."""
        return None if name in self._released else self._tensors.get(name)

    def bound(self, name: str) -> torch.Tensor | None:
        """The model's tensor that is called `name`, released or not; None when it is derived or unknown."""
        return self._tensors.get(name)

    def released_names(self) -> list[str]:
        """Names of tensors that have no values any more."""
        return list(self._released)

    def originals(self) -> list[str]:
        """Names of all bound tensors that have values."""
        return [name for name in self._tensors if name not in self._released]

    def is_released(self, name: str) -> bool:
        """True when `name` has a shape and no values."""
        return name in self._released

    def is_abandoned(self, name: str) -> bool:
        """True when nothing but this store refers to the tensor that is called `name`: the model has another one."""
        return sys.getrefcount(self._tensors[name]) <= 2  # one of them is the argument of the question

    def forget(self, names: Iterable[str]) -> None:
        """The tensors `names` have other values now (a released one: has values again). What was computed from them is
        computed again when it is asked for."""
        changed = set(names)
        for name in changed:
            self._released.pop(name, None)
        for name in [n for n in self._kept if self.sources(n) & changed]:
            del self._kept[name]
        for key in [k for k in self._packed if self.sources(k[0]) & changed]:
            del self._packed[key]
            self._unpackers.pop(key[0], None)
        self.generation += 1

    def replace(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """From now on the names stand for these `tensors`."""
        for name, tensor in tensors.items():
            self._set(name, tensor)
        self.forget(tensors)

    def rebound(self, tensors: Mapping[str, torch.Tensor]) -> "ParameterStore":
        """A store with the same definitions over other `tensors` (the same model structure with other weights); what
        is computed from none of them is shared."""
        copies: dict[str, Any] = {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)}
        other = replace(self, **(copies | {"choices": self.choices}))
        other.replace({name: tensor for name, tensor in tensors.items() if other._tensors.get(name) is not tensor})
        return other

    def learn(self, other: "ParameterStore") -> None:
        """Take over what `other` defines, as computations over tensors of the same names."""
        self._derived = {**other._derived, **self._derived}

    def packed_bytes(self, name: str | None = None) -> int:
        """Bytes of all packed buffers, or of those of quantised `name`."""
        chosen = (buffers for (symbol, _), buffers in self._packed.items() if name in (None, symbol))
        return sum(t.numel() * t.element_size() for buffers in chosen for t in buffers)

    def sources(self, name: str) -> set[str]:
        """The original names that `name` is computed from (itself, when it is an original)."""
        if name not in self._derived:
            return {name}
        return set().union(*map(self.sources, self._derived[name].sources))

    def release(self, keep: Iterable[str]) -> list[str]:
        """Forget every original that `keep` (symbols still read as tensors) does not need; returns their names."""
        needed = set(keep)
        for name in list(needed):
            if self.original(name) is None:
                needed |= self.sources(name)
        gone = [name for name in self.originals() if name not in needed]
        for name in gone:
            self._released[name] = self._tensors[name].shape
        self.generation += bool(gone)
        return gone

    def __contains__(self, name: str) -> bool:
        return self.original(name) is not None or name in self._derived or name in self._unpackers

    def _identify(self, name: str, tensor: torch.Tensor) -> str:
        """The name that stands for `tensor`, and for no other, from now on."""
        known = self._names.get(id(tensor))
        if known is not None:
            return known
        base, copy = name, 1
        while name in self._tensors and not self.is_abandoned(name):
            copy += 1
            name = f"{base}#{copy}"
        if name in self._tensors:
            self.replace({name: tensor})
        else:
            self._set(name, tensor)
        return name

    def _set(self, name: str, tensor: torch.Tensor) -> None:
        if name in self._tensors:
            self._names.pop(id(self._tensors[name]), None)
        self._tensors[name] = tensor
        self._names[id(tensor)] = name

    def _require(self, name: str) -> None:
        if name not in self and name not in self._released:
            raise CaptureError(f"no parameter is called {name!r}")
