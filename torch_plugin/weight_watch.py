"""Which weights changed since their values were copied, however they were written.

What an executable reads in place shows every write by itself; only its address is compared. A weight whose values were
copied (packed, stacked, transposed) is compared with what it was: its address and torch's count of writes, which
`.data`, numpy and foreign code go around, and therefore its contents as well. At every call that is a sample of each
weight, its ends and two places between, four words at each, which no scaling, merging or step of an optimiser leaves
as they were; and a share of all contents, in turns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch

from ..ir.errors import ParameterError
from ..ir.weights.store import ParameterStore
from .release import is_unreadable

_ADDRESS = torch.Tensor.data_ptr
_WORD = 8
_PARTS, _PLACES, _APART = 4, 4, 1 << 7
"""Sampled: in each of 4 parts of a weight, 4 words that lie 128 words apart. That is one page mostly, whose address
costs more to find than its words to read. No half of its rows, and of 2048 columns no quarter, is left out."""
_LEAST = 2 * _PARTS * _PLACES
"""Words up to which a weight is compared as a whole at every call."""
_CHUNK = 1 << 13
"""Words that one digest stands for."""
_PIECE = 1
"""Chunks that are compared at once: 64 KB."""
_AT_ONCE = 16
"""Pieces, at least: to begin takes as long as a few of them."""


@dataclass
class _Print:
    """What a weight was when its values were copied; without contents when it was released and has none.

    `places`: numbers of 8-byte words of the address space, `masks`: their bits that are the weight's, `words`: what
    these were. `whole`: the words that lie in the weight completely. `digests`: of each chunk of these."""

    address: int
    version: int
    places: np.ndarray
    masks: np.ndarray
    words: np.ndarray
    whole: torch.Tensor | None
    digests: torch.Tensor | None

    @classmethod
    def of(cls, tensor: torch.Tensor, contents: bool) -> "_Print":
        address, version = tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
        size = _span(tensor) if contents else 0
        if size == 0:
            nothing = np.empty(0, np.int64)
            return cls(address, version, nothing, nothing, nothing, None, None)
        places, masks = _places(address, size)
        first, end = -(-address // _WORD), (address + size) // _WORD
        whole = torch.from_numpy(_memory(first, end - first)) if end > first else None
        words = _memory(places[0], places[-1] - places[0] + 1)[places - places[0]] & masks
        return cls(address, version, places, masks, words, whole, None if whole is None else _digests(whole))

    def differs_from(self, tensor: torch.Tensor) -> bool:
        """Compare `tensor` in full."""
        if tensor.data_ptr() != self.address:
            return True
        now = _Print.of(tensor, contents=True)
        same = self.digests is None or (now.digests is not None and torch.equal(now.digests, self.digests))
        return not same or not np.array_equal(now.words, self.words)


class WeightWatch:
    """Watches the tensors of `store` whose values were copied."""

    def __init__(self, store: ParameterStore) -> None:
        self.store = store
        self._prints: dict[str, _Print] = {}

    def add(self, names: Iterable[str]) -> None:
        """The values of `names` have been copied as they are now, except of those that are watched already."""
        for name in names:
            tensor = self.store.bound(name)
            if name not in self._prints and tensor is not None:
                self._prints[name] = _Print.of(tensor, contents=not self.store.is_released(name))

    def renew(self, names: Iterable[str]) -> None:
        """Compare those of `names` that are watched in full, and have the store forget what was computed from those
        that changed. Raises `ParameterError` when a released one was written to."""
        changed = {name for name in names if name in self._prints and self._is_changed(name)}
        for name in changed:
            del self._prints[name]
        if changed:
            self.store.forget(changed)

    def rebound(self, tensors: Mapping[str, torch.Tensor]) -> "WeightWatch":
        """A watch of a store over other `tensors`, which shares what is computed from none of them."""
        self.renew(list(self._prints))  # lest it shares what is out of date
        other = WeightWatch(self.store.rebound(tensors))
        known = self._prints.items()
        other._prints = {n: p for n, p in known if other.store.bound(n) is self.store.bound(n)}
        return other

    def _is_changed(self, name: str) -> bool:
        before, tensor = self._prints[name], self.store.bound(name)
        if tensor is None:
            return True
        now = _Print.of(tensor, contents=False)
        if not self.store.is_released(name):
            changed = (now.address, now.version) != (before.address, before.version)
            return changed or before.differs_from(tensor)
        if before.whole is None and now.address != before.address and not is_unreadable(tensor):
            if self.store.is_given(name):
                raise ParameterError(
                    f"parameter {name!r} came quantised and cannot be given other values: load it anew"
                )
            return True
        if before.whole is None and now.address == before.address and now.version != before.version:
            raise ParameterError(
                f"parameter {name!r} was written to after its values had been released (release_weights): give it new "
                "ones (`.data = values`, load_state_dict(..., assign=True)) or compile without release_weights"
            )
        self._prints[name] = now  # released since, or converted to another dtype
        return False

    def glance(self, names: Sequence[str]) -> "Glance":
        """What to compare at every call of a graph that is given the tensors `names`."""
        tensors = [tensor for name in names if (tensor := self.store.bound(name)) is not None]
        return Glance(tensors, {i: self._prints[name] for i, name in enumerate(names) if name in self._prints})


class Glance:
    """A look at tensors that takes no longer than a decode step allows: addresses of all, and of those that were copied
    the count of writes, a sample, and a share of the contents in turns. The tensors themselves are not kept: whether
    the model still has them shows by that."""

    def __init__(self, tensors: Sequence[torch.Tensor], copied: Mapping[int, _Print]) -> None:
        self._addresses = list(map(_ADDRESS, tensors))
        self._counting = [i for i in copied if not tensors[i].is_inference()]
        self._versions = [copied[i].version for i in self._counting]
        self._words, self._masks, places = (
            np.concatenate([np.empty(0, np.int64), *(getattr(known, of) for known in copied.values())])
            for of in ("words", "masks", "places")
        )
        self._found = np.empty_like(self._words)
        if places.size:
            first = places.min()
            self._places = places - first
            self._memory = _memory(first, places.max() - first + 1)
        pieces = [piece for known in copied.values() for piece in _pieces(known)]
        self._turns: Iterator[tuple[torch.Tensor, torch.Tensor]] = cycle(pieces)
        self._pieces = len(pieces)
        self._due = 0

    def agrees(self, tensors: Sequence[torch.Tensor], pieces: int) -> bool:
        """True when nothing was seen to be changed in `tensors`, which are those of before; `pieces` of 64 KB are
        compared in full, others than last time, or owed until they are 1 MB."""
        return (
            list(map(_ADDRESS, tensors)) == self._addresses
            and [tensors[i]._version for i in self._counting] == self._versions
            and self._samples_agree()
            and self._turn_agrees(pieces)
        )

    def _samples_agree(self) -> bool:
        found = self._found
        if not found.size:
            return True
        self._memory.take(self._places, out=found, mode="clip")
        np.bitwise_xor(found, self._words, out=found)
        np.bitwise_and(found, self._masks, out=found)
        return not found.any()

    def _turn_agrees(self, pieces: int) -> bool:
        self._due += pieces
        if self._due < _AT_ONCE:
            return True
        turns = (next(self._turns) for _ in range(min(self._due, self._pieces)))
        self._due = 0
        return all(torch.equal(_digests(words), digests) for words, digests in turns)


def _span(tensor: torch.Tensor) -> int:
    """Bytes from the first element of `tensor` to the end of its last."""
    if tensor.numel() == 0:
        return 0
    steps = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (1 + steps) * tensor.element_size()


def _places(address: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The words that are sampled of `size` bytes at `address`, and which of their bits lie in them."""
    first, end = address // _WORD, -(-(address + size) // _WORD)
    if end - first <= _LEAST:
        places = np.arange(first, end, dtype=np.int64)
    else:
        part = (end - first) / _PARTS
        # Where in its part: not at a multiple of anything, lest one column of a matrix is all that is looked at.
        inside = np.random.default_rng(size).random(_PARTS)
        inside[0], inside[-1] = 0, 1 - (_APART * (_PLACES - 1) + 1) / part  # the ends
        starts = first + ((np.arange(_PARTS) + inside) * part).astype(np.int64)
        inner = (starts[:, None] + _APART * np.arange(_PLACES)).ravel()
        inner = np.clip(inner, first, end - 1)
        places = np.unique(np.concatenate([[first, end - 1], inner]))
    masks = np.full(len(places), -1, np.int64)
    before, inside = address % _WORD, (address + size) % _WORD
    masks[0] &= -1 << 8 * before
    if inside:
        masks[-1] &= (1 << 8 * inside) - 1
    return places, masks


def _memory(first: int, count: int) -> np.ndarray:
    """Words of the address space from number `first` on: to be read only where they are known to be somebody's."""

    class Words:
        __array_interface__ = {
            "data": (int(first) * _WORD, False),
            "shape": (int(count),),
            "typestr": "<i8",
            "version": 3,
        }

    return np.asarray(Words())


def _factors() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(-(2**63), 2**63 - 1, _CHUNK))


_FACTORS = _factors()


def _digests(words: torch.Tensor) -> torch.Tensor:
    """One number for each chunk of `words`: their sum, each times a factor of its own."""
    chunks = len(words) // _CHUNK
    body, rest = words[: chunks * _CHUNK].view(chunks, _CHUNK), words[chunks * _CHUNK :]
    found = [torch.mv(body, _FACTORS)] if chunks else []
    return torch.cat([*found, torch.mv(rest[None], _FACTORS[: len(rest)])]) if len(rest) else found[0]


def _pieces(known: _Print) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if known.whole is None or known.digests is None or len(known.whole) <= _LEAST:
        return
    for first in range(0, len(known.digests), _PIECE):
        yield (
            known.whole[first * _CHUNK : (first + _PIECE) * _CHUNK],
            known.digests[first : first + _PIECE],
        )
