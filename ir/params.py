"""Parameters of a model, shared by all its graphs: originals, derived forms and packed bytes under stable names.

The IR names a parameter by its symbol (`lutra.param {sym = "model.layers.0.mlp.down_proj.weight"}`). A *derived*
symbol such as `...weight@s4g128` stands for a computation over other symbols (quantise, transpose, concatenate) that
runs when somebody asks for the value, and whose value is not kept unless it was *packed*: so a 1-billion-weight model
is quantised one matrix at a time, and prefill and decode graphs share one packed copy.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.weak import WeakIdKeyDictionary

from .errors import CaptureError, ParameterError
from .quantization import QuantizedWeight, WeightFormat

Value = torch.Tensor | QuantizedWeight


@dataclass(frozen=True)
class _Derivation:
    sources: tuple[str, ...]
    compute: Callable[..., Value]


@dataclass
class ParameterStore:
    """Name -> value for one compiled model. Not thread-safe; compilation is serialised by the caller."""

    _originals: dict[str, torch.Tensor] = field(default_factory=dict)
    _derivations: dict[str, _Derivation] = field(default_factory=dict)
    _stacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)
    _packed: dict[tuple[str, str], list[torch.Tensor]] = field(default_factory=dict)
    _unpackers: dict[str, Callable[[], QuantizedWeight]] = field(default_factory=dict)
    _identities: dict[str, weakref.ref[torch.Tensor]] = field(default_factory=dict)
    _released: dict[str, torch.Size] = field(default_factory=dict)
    _names: MutableMapping[torch.Tensor, str] = field(default_factory=WeakIdKeyDictionary)
    _given: dict[str, Callable[[], QuantizedWeight]] = field(default_factory=dict)
    choices: dict[tuple[str, str], tuple[str, WeightFormat]] = field(default_factory=dict)
    """(rule, tensor) -> name and format of what quantising made of it: chosen for one graph, kept to in the others."""

    def bind(self, name: str, tensor: torch.Tensor) -> str:
        """Make `tensor` (of the model, never copied) known; raises `CaptureError` on `meta`. Returns its name.

        That is the name that it has already, else `name`, with a number when another tensor has it: graphs that were
        captured of single layers, after a graph break, all call their weights alike."""
        name = self._identify(name, tensor)
        if tensor.device.type == "meta":
            raise ParameterError(
                f"parameter {name!r} is on the meta device and has no values: load the model's weights first"
            )
        if name not in self._released:  # the next graph of the model passes what is left of it: no values
            self._originals[name] = tensor
        return name

    def bind_released(self, name: str, tensor: torch.Tensor) -> str:
        """Make `tensor`, which has a shape but no values any more, known: what is packed of it serves instead."""
        name = self._identify(name, tensor)
        self._released[name] = tensor.shape
        return name

    def give(self, name: str, read: Callable[[], QuantizedWeight]) -> None:
        """Say that tensor `name` came quantised: `read()` gives its codes."""
        self._given[name] = read

    def is_given(self, name: str) -> bool:
        """True when tensor `name` came quantised."""
        return name in self._given

    def given(self, name: str) -> QuantizedWeight:
        """The codes that tensor `name` came with, read now."""
        return self._given[name]()

    def derive(self, name: str, sources: Iterable[str], compute: Callable[..., Value]) -> str:
        """Define `name` as `compute(*values of sources)`, which it must mean always. Returns `name`."""
        sources = tuple(sources)
        for source in sources:
            self._require(source)
        self._derivations.setdefault(name, _Derivation(sources, compute))
        return name

    def can_stack(self, names: Sequence[str]) -> bool:
        """True when `names` are distinct tensors that share no memory with each other (no tied weights)."""
        bound = [t for n in names if (t := self._originals.get(n)) is not None]
        return len({t.data_ptr() for t in bound}) == len(bound)

    def stack(self, name: str, parts: Sequence[str]) -> str:
        """Define `name` as the rows of `parts` one after the other. Returns `name`.

        When it is read as a plain tensor (`keep`), the parts become views of it: the model's memory does not grow."""
        self._stacks.setdefault(name, tuple(parts))
        return self.derive(name, parts, lambda *tensors: torch.cat(tensors))

    def parts(self, name: str | None) -> tuple[str, ...]:
        """The names that `name` was stacked from; () when it is not a stack."""
        return self._stacks.get(name or "", ())

    def value(self, name: str) -> Value:
        """The value of `name`, computed now if it is derived (and not kept); `CaptureError` when it was released."""
        if name in self._unpackers:
            return self._unpackers[name]()
        if name in self._originals or name in self._kept:
            return self._originals[name] if name in self._originals else self._kept[name]
        self._require(name)
        if name in self._released:
            raise ParameterError(
                f"parameter {name!r} was released after packing (release_weights): its values are gone"
            )
        derivation = self._derivations[name]
        return derivation.compute(*(self.value(source) for source in derivation.sources))

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
        if name in self._originals:
            return self._originals[name]
        if name not in self._kept:
            whole = self._kept[name] = self.tensor(name).contiguous()
            row = 0
            for part in self._stacks.get(name, ()):
                tensor = self.tensor(part)
                rows = whole[row : row + tensor.shape[0]]
                row += tensor.shape[0]
                # Same values at the same shape and strides: eager and other graphs go on as before, over one copy.
                if part in self._originals and tensor.is_contiguous() and not tensor.is_inference():
                    tensor.data = rows
        return self._kept[name]

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
            self._unpackers.setdefault(name, lambda: unpack(buffers))
        return self._packed[key]

    def is_packed(self, name: str) -> bool:
        """True when `value(name)` reads packed buffers."""
        return name in self._unpackers

    def derivation(self, name: str) -> tuple[Callable[..., Value], tuple[str, ...]]:
        """The computation that `name` was derived with, and the names that it is applied to."""
        derivation = self._derivations[name]
        return derivation.compute, derivation.sources

    def name_of(self, tensor: torch.Tensor) -> str | None:
        """What `tensor` was bound as; None when it was not."""
        return self._names.get(tensor)

    def original(self, name: str) -> torch.Tensor | None:
        """The tensor bound to `name`, or None when it is derived, unknown or released."""
        return self._originals.get(name)

    def bound(self, name: str) -> torch.Tensor | None:
        """The model's tensor that is called `name`, released or not; None when it is derived, unknown or gone."""
        reference = self._identities.get(name)
        return None if reference is None else reference()

    def released_names(self) -> list[str]:
        """Names of tensors that have no values any more."""
        return list(self._released)

    def originals(self) -> list[str]:
        """Names of all bound tensors."""
        return list(self._originals)

    def rebound(self, tensors: Mapping[str, torch.Tensor]) -> "ParameterStore":
        """A store with the same definitions over other `tensors` (the same model structure with other weights)."""
        other = ParameterStore(_derivations=dict(self._derivations), _stacks=dict(self._stacks), choices=self.choices)
        other._originals = {name: t for name, t in self._originals.items() if name.startswith("constant.")}
        for name, tensor in tensors.items():
            other.bind(name, tensor)
        return other

    def packed_bytes(self, name: str | None = None) -> int:
        """Bytes of all packed buffers, or of those of quantised `name`."""
        chosen = (buffers for (symbol, _), buffers in self._packed.items() if name in (None, symbol))
        return sum(t.numel() * t.element_size() for buffers in chosen for t in buffers)

    def sources(self, name: str) -> set[str]:
        """The original names that `name` is computed from (itself, when it is an original)."""
        if name not in self._derivations:
            return {name}
        return set().union(*(self.sources(source) for source in self._derivations[name].sources))

    def release(self, keep: Iterable[str]) -> list[str]:
        """Forget every original that `keep` (symbols still read as tensors) does not need; returns their names."""
        needed = set(keep)
        for name in list(needed):
            if name not in self._originals:
                needed |= self.sources(name)
        gone = [name for name in self._originals if name not in needed]
        for name in gone:
            self._released[name] = self._originals.pop(name).shape
        return gone

    def __contains__(self, name: str) -> bool:
        return name in self._originals or name in self._derivations or name in self._unpackers

    def _identify(self, name: str, tensor: torch.Tensor) -> str:
        """The name that stands for `tensor`, and for no other, from now on."""
        if tensor in self._names:
            return self._names[tensor]
        base, copy = name, 1
        while self._identities.setdefault(name, weakref.ref(tensor))() is not tensor:
            copy += 1
            name = f"{base}#{copy}"
        self._names[tensor] = name
        return name

    def _require(self, name: str) -> None:
        if name not in self and name not in self._released:
            raise CaptureError(f"no parameter is called {name!r}")
