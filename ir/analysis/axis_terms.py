"""Dimensions as products of axes that are not known yet, and what makes two of them one.

An `Atom` stands for one axis until it is found to be another (`bound` to it) or a product of finer ones (a feature axis
that a later view splits into heads). Sizes tell how two products of one size align, entry by entry in row-major order;
they never tell that two axes are the same.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import sympy

Kind = Literal["unknown", "batch", "sequence", "key", "head", "head_size", "feature", "space"]
"""What an axis is. `sequence`: positions that queries come from; `key`: positions that only keys and values have (a
cache); `head`: of queries, keys and values alike; `head_size`: features within a head; `space`: rows and columns of an
image, samples of a sound."""

_STRONGER: dict[Kind, set[Kind]] = {
    "unknown": {"batch", "sequence", "key", "head", "head_size", "feature", "space"},
    "feature": {"head", "head_size"},  # every head is a part of features
    "key": {"sequence"},  # without a cache the keys are the sequence
    "space": {"sequence", "key"},  # patches, once something attends to them
}


@dataclass(eq=False, slots=True)
class Atom:
    """An axis of `size` entries. `sources`: axes that it was joined, cut or padded from."""

    size: sympy.Expr
    kind: Kind = "unknown"
    sources: frozenset["Atom"] = frozenset()
    bound: tuple["Atom", ...] | None = None
    contested: bool = False


Dim = tuple[Atom, ...]
"""The axes of one dimension, outermost first; () is a dimension of one entry that stands for nothing."""
Dims = tuple[Dim, ...]


@dataclass(frozen=True)
class Contradiction:
    """Two things that a graph says of one axis and that cannot both be. `place`: the operation that said the second."""

    place: str
    what: str


@dataclass
class Terms:
    """All that is known so far. `place`: says where, for contradictions."""

    place: Callable[[], str]
    contradictions: list[Contradiction] = field(default_factory=list)

    def resolved(self, dim: Dim) -> Dim:
        """`dim` in atoms that are bound to nothing."""
        if all(atom.bound is None for atom in dim):
            return dim
        return tuple(a for atom in dim for a in ((atom,) if atom.bound is None else self.resolved(atom.bound)))

    def size(self, dim: Dim) -> sympy.Expr:
        return sympy.Mul(*(atom.size for atom in self.resolved(dim)))

    def derived(self, size: sympy.Expr, *sources: Dim) -> Dim:
        """A new axis that follows from others."""
        return (Atom(size, sources=frozenset(a for dim in sources for a in self.resolved(dim) if a.size != 1)),)

    def sources(self, atom: Atom) -> set[Atom]:
        """All that it was made of, however indirectly, but itself."""
        found: set[Atom] = set()
        waiting = [atom]
        while waiting:
            for source in self.resolved(tuple(waiting.pop().sources)):
                if source not in found:
                    found.add(source)
                    waiting.append(source)
        return found - {atom}

    def split(self, atom: Atom, outer: sympy.Expr, inner: sympy.Expr) -> Dim:
        """`atom` as a product of two."""
        atom.bound = Atom(outer, atom.kind, atom.sources), Atom(inner, atom.kind, atom.sources)
        return atom.bound

    def unify(self, one: Dim, other: Dim) -> Dim:
        """One dimension, which two operands share; of different sizes the one that the other is broadcast to."""
        one, other = self.resolved(one), self.resolved(other)
        if one == other:
            return one
        ones = self.size(one) == 1, self.size(other) == 1
        if ones == (True, True) and len(one) == len(other) == 1:
            self._merge(one[0], other[0])
        if any(ones):
            return other if not one or ones == (True, False) else one
        pairs = self._aligned(one, other)
        if pairs is None:
            self._contradict(f"axes of {self.text(one)} and of {self.text(other)} entries do not align")
            return one
        for a, b in pairs:
            self._merge(a, b)
        return self.resolved(one)

    def _aligned(self, one: Dim, other: Dim) -> list[tuple[Atom, Atom]] | None:
        """Atoms of one that are atoms of other, after splits; None where their sizes have no common refinement."""
        left, right = ([a for a in reversed(dim) if a.size != 1] for dim in (one, other))
        pairs = []
        while left and right:
            a, b = left.pop(), right.pop()
            if a.size != b.size:
                if (rest := quotient(a.size, b.size)) is not None:
                    a, more = self.split(a, b.size, rest)
                    left.append(more)
                elif (rest := quotient(b.size, a.size)) is not None:
                    b, more = self.split(b, a.size, rest)
                    right.append(more)
                else:
                    return None
            pairs.append((a, b))
        return None if left or right else pairs

    def _merge(self, one: Atom, other: Atom) -> None:
        (one,), (other,) = self.resolved((one,)), self.resolved((other,))
        if one is other:
            return
        kind = stronger(one.kind, other.kind)
        if kind is None:
            return self._contradict(f"a {one.kind} axis of {one.size} and a {other.kind} axis of {other.size} are one")
        one.kind, one.contested = kind, one.contested or other.contested
        one.sources = one.sources | other.sources
        other.bound = (one,)

    def anchor(self, dim: Dim, kind: Kind) -> None:
        """`dim` is of that kind. Of a product all factors are: rows and columns that are a sequence together, pairs of
        features of a head; but not where that would say more of a batch or of heads than is known."""
        atoms = self.resolved(dim)
        atoms = tuple(a for a in atoms if a.size != 1) or atoms
        if len(atoms) != 1 and any(atom.kind not in _PARTS.get(kind, ()) for atom in atoms):
            return
        for atom in atoms:
            found = stronger(atom.kind, kind)
            if found is None:
                self._contradict(f"an axis of {atom.size} is {atom.kind} elsewhere and {kind} here")
                atom.kind, atom.contested = "unknown", True
            elif not atom.contested:
                atom.kind = found

    def _contradict(self, what: str) -> None:
        self.contradictions.append(Contradiction(self.place(), what))

    def text(self, dim: Dim) -> str:
        return "*".join(str(atom.size) for atom in dim) or "1"

    def reshaped(self, dims: Iterable[Dim], shape: Sequence[sympy.Expr]) -> Dims:
        """The axes of a tensor in row-major order, dealt out to dimensions of other sizes.

        An axis of one entry goes to the next dimension of one entry; without one it stays with what stands before it
        where features follow, else it joins what follows. What does not come out even is unknown, and follows from
        all that is left."""
        atoms = [a for dim in dims for a in self.resolved(dim)][::-1]
        out: list[Dim] = []
        for index, size in enumerate(shape):
            following = shape[index + 1 :]
            taken = self._taken(atoms, size, _run_of_ones(shape[index:]))
            if taken is None:
                return (*out, *(self.derived(n, *((a,) for a in atoms)) if n != 1 else () for n in shape[index:]))
            while atoms and atoms[-1].size == 1 and (not following or (len(following) == 1 and following[0] != 1)):
                taken = (*taken, atoms.pop())
            out.append(taken)
        return tuple(out)

    def _taken(self, atoms: list[Atom], size: sympy.Expr, ones: int) -> Dim | None:
        """What a dimension of `size` takes from the end of `atoms`; it is followed by `ones` - 1 others of one entry.
        None where nothing fits."""
        if size == 1:
            units = _run_of_ones([atom.size for atom in reversed(atoms)])
            if units < ones:  # which of them it is cannot be told
                del atoms[len(atoms) - units :]
                return (Atom(sympy.S.One),)
            return (atoms.pop(),)
        taken: list[Atom] = []
        while size != 1:
            if not atoms:
                return None
            atom = atoms.pop()
            rest = quotient(size, atom.size)
            if rest is None and (more := quotient(atom.size, size)) is not None:
                atom, inner = self.split(atom, size, more)
                atoms.append(inner)
                rest = sympy.S.One
            if rest is None:
                atoms += [atom, *reversed(taken)]
                return None
            taken.append(atom)
            size = rest
        return tuple(taken)


_PARTS: dict[Kind, set[Kind]] = {
    "sequence": {"unknown", "space", "key", "sequence"},
    "key": {"unknown", "space"},
    "head_size": {"unknown", "feature", "head_size"},
}
"""What the factors of such an axis may be."""


def stronger(one: Kind, other: Kind) -> Kind | None:
    """What an axis is that is both; None where nothing is."""
    if one == other or other in _STRONGER.get(one, ()):
        return other
    return one if one in _STRONGER.get(other, ()) else None


def quotient(whole: sympy.Expr, part: sympy.Expr) -> sympy.Expr | None:
    """`whole / part` where that is a whole number for certain."""
    if whole == part:
        return sympy.S.One
    if whole.is_Integer and part.is_Integer:
        return whole // part if part and whole % part == 0 else None
    result = sympy.cancel(whole / part)
    return result if sympy.fraction(result)[1] == 1 else None


def _run_of_ones(sizes: Sequence[sympy.Expr]) -> int:
    return next((n for n, size in enumerate(sizes) if size != 1), len(sizes))
