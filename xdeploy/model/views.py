"""How a tensor is seen through reshapes and permutations, without moving its data.

Every chain of reshapes and permutations whose axes line up is one reshape, one permutation and one reshape:
`View(atoms, perm, shape)`. Chains that undo each other become the identity by themselves. Shapes are per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The source reshaped to `atoms`, those axes permuted by `perm`, then reshaped to `shape`.

    Canonical: no atom of size 1, no two atoms that stay neighbours; so the identity has at most one atom.
    """

    atoms: Shape
    perm: tuple[int, ...]
    shape: Shape

    @staticmethod
    def of(shape: Sequence[int]) -> View:
        """A tensor of `shape` seen as it is."""
        shape = tuple(int(d) for d in shape)
        return _canonical(shape, tuple(range(len(shape))), shape)

    @property
    def is_flat(self) -> bool:
        """Whether the elements stand in the source's order."""
        return len(self.atoms) <= 1

    @property
    def ordered(self) -> Shape:
        """Sizes of the atoms in the order in which they are seen."""
        return tuple(self.atoms[p] for p in self.perm)

    def reshaped(self, shape: Sequence[int]) -> View:
        """Seen in another shape of the same size."""
        shape = tuple(int(d) for d in shape)
        if size_of(shape) != size_of(self.shape):
            raise ValueError(f"{self.shape} has not the size of {shape}")
        return View(self.atoms, self.perm, shape)

    def permuted(self, axes: Sequence[int]) -> View | None:
        """Axis i is the former axis `axes[i]`; None where an axis is not made of whole atoms."""
        split = self._split()
        if split is None:
            return None
        atoms, pieces = split
        perm = tuple(p for axis in axes for p in pieces[axis])
        return _canonical(atoms, perm, tuple(self.shape[a] for a in axes))

    def inverse(self, shape: Sequence[int]) -> View:
        """From what is seen back to the source, which has `shape`."""
        back = tuple(int(i) for i in np.argsort(self.perm))
        return _canonical(self.ordered, back, tuple(shape))

    def source_order(self) -> tuple[int, ...] | None:
        """The axes in the order in which the source holds them, unit axes last; None as for `permuted`."""
        split = self._split()
        if split is None:
            return None
        _, pieces = split
        return tuple(sorted(range(len(self.shape)), key=lambda a: (not pieces[a], pieces[a][:1], a)))

    def index(self) -> NDArray[np.int64]:
        """Flat position in the source of every element seen, in C order of `shape`."""
        size = size_of(self.shape)
        return np.arange(size).reshape(self.atoms or (1,)).transpose(self.perm or (0,)).ravel()

    def _split(self) -> tuple[Shape, list[tuple[int, ...]]] | None:
        """Atoms fine enough for the axes, and the atoms of each axis."""
        fine = _refine(self.ordered, self.shape)
        if fine is None:
            return None
        by_atom, by_axis = fine
        parts = dict(zip(self.perm, by_atom, strict=True))  # source atom -> sizes it splits into
        starts = np.cumsum([0, *(len(parts[a]) for a in range(len(self.atoms)))])
        rows = zip(self.perm, by_atom, strict=True)
        numbers = iter(int(starts[p]) + i for p, sizes in rows for i in range(len(sizes)))
        pieces = [tuple(next(numbers) for _ in sizes) for sizes in by_axis]
        return tuple(s for a in range(len(self.atoms)) for s in parts[a]), pieces


def size_of(shape: Sequence[int]) -> int:
    """Number of elements."""
    return int(np.prod(shape, dtype=np.int64))


def _refine(left: Shape, right: Shape) -> tuple[list[list[int]], list[list[int]]] | None:
    """Both shapes (of one size) split into the same sizes; None if their borders cross."""
    fine_left: list[list[int]] = [[] for _ in left]
    fine_right: list[list[int]] = [[] for _ in right]
    i = j = 0
    a, b = (list(x) for x in (left, right))
    while i < len(a) and j < len(b):
        if a[i] == 1 or b[j] == 1:
            i, j = i + (a[i] == 1), j + (b[j] == 1)
            continue
        small, large = sorted((a[i], b[j]))
        if large % small:
            return None
        fine_left[i].append(small)
        fine_right[j].append(small)
        a[i], b[j] = a[i] // small, b[j] // small
    return fine_left, fine_right


def _canonical(atoms: Shape, perm: tuple[int, ...], shape: Shape) -> View:
    """Unit atoms left out, neighbours that stay neighbours joined."""
    runs: list[list[int]] = []
    for p in perm:
        if atoms[p] == 1:
            continue
        joined = bool(runs) and all(atoms[q] == 1 for q in range(runs[-1][-1] + 1, p)) and p > runs[-1][-1]
        if joined:
            runs[-1].append(p)
        else:
            runs.append([p])
    order = sorted(range(len(runs)), key=lambda r: runs[r][0])
    rank = {r: i for i, r in enumerate(order)}
    sizes = tuple(size_of([atoms[p] for p in runs[r]]) for r in order)
    return View(sizes, tuple(rank[r] for r in range(len(runs))), shape)
