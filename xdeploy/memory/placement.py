"""Where everything lies: which outputs are written over which inputs, and the offsets, chosen together.

Merging an output with an input that dies there frees memory at that step but ties the two for their whole lives. The
merges are first taken wherever possible. `floor` is a bound over all choices of merges; an arena above it is tried to
be lowered by other choices, the bands of a layer choosing together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from xdeploy.kernel import Kernel
from xdeploy.lir.graph import LoweredGraph, Node
from xdeploy.lir.ops import has_residual
from xdeploy.lir.rows import origin
from xdeploy.memory.arena import plan_memory
from xdeploy.memory.buffers import Buffer, Layout, lower_bound
from xdeploy.memory.storage import Place, Storage

EXHAUSTIVE = 256  # combinations of choices up to which all are tried
TRIALS = 12  # combinations tried beyond that

Order = tuple[int, ...]  # inputs of a node in the order in which they are tried; () for no merge


@dataclass(frozen=True, slots=True)
class Placement:
    """Offsets of all tensors and workspaces, what had to be placed, and the bound over all choices of merges."""

    layout: Layout
    places: Mapping[str, Place]
    buffers: tuple[Buffer, ...]
    floor: int


class Placer:
    """Chooses the merges for one graph and one choice of rows."""

    def __init__(
        self,
        graph: LoweredGraph,
        storage: Storage,
        rows: Mapping[str, Kernel],
        spaces: Mapping[str, int],
    ) -> None:
        self.storage, self.align = storage, storage.align
        steps = {n.name: i for i, n in enumerate(graph.nodes)}
        self.spaces = [Buffer(f"@{name}", size, steps[name], steps[name]) for name, size in spaces.items() if size]
        self.candidates: list[tuple[int, Node, Order]] = []
        for i, n in enumerate(graph.nodes):
            if n.name in rows and (order := _inputs(graph, n, rows[n.name])):
                self.candidates.append((i, n, order))

    def run(self) -> Placement:
        """The lowest arena found."""
        best, found = self._place({}, None)
        assert best is not None
        assert found is not None
        floor = self.floor()
        for choice in self._choices():
            if found.arena <= floor:
                break
            storage, layout = self._place(choice, found.arena)
            if storage is not None and layout is not None and layout.arena < found.arena:
                best, found = storage, layout
        buffers = (*best.buffers(), *self.spaces)
        if found.arena > floor:
            found = plan_memory(buffers, self.align)
        return Placement(found, best.places(found), buffers, floor)

    def estimate(self) -> int:
        """Bytes of the arena with merges wherever possible and greedy offsets; `run` never needs more."""
        layout = self._place({}, None)[1]
        assert layout is not None
        return layout.arena

    def _place(self, choice: Mapping[str, Order], below: int | None) -> tuple[Storage, Layout] | tuple[None, None]:
        """A layout for a choice of merges, unless its bound shows that it is not below `below` bytes."""
        storage = self.storage.copy()
        for step, node, order in self.candidates:
            for index in choice.get(origin(node.name), order):
                if storage.mergeable(step, node, index):
                    storage.merge(node, index)
                    break
        buffers = [*storage.buffers(), *self.spaces]
        if below is not None and lower_bound(_rounded(buffers, self.align)) >= below:
            return None, None
        return storage, plan_memory(buffers, self.align, 0)

    def _choices(self) -> Iterator[dict[str, Order]]:
        """Other choices than the first: all where they are few, else single and paired departures from it."""
        orders = {origin(n.name): order for _, n, order in self.candidates}
        options = {
            name: [p for k in range(len(o), -1, -1) for p in itertools.permutations(o, k)] for name, o in orders.items()
        }
        count = 1
        for choices in options.values():
            count *= len(choices)
        if count <= EXHAUSTIVE:
            for picked in itertools.product(*options.values()):
                yield dict(zip(options, picked, strict=True))
            return
        single = [(name, p) for name, choices in options.items() for p in choices[1:]]
        pairs = itertools.combinations(single, 2)
        yield from itertools.islice((dict(p) for p in itertools.chain(((s,) for s in single), pairs)), TRIALS)

    def floor(self) -> int:
        """Bytes that some step needs however outputs are merged with inputs."""
        return max(self.needs())

    def needs(self) -> list[int]:
        """Bytes that each step needs however outputs are merged with inputs.

        Distinct values that are alive together lie apart; only a node's output may replace one of its own inputs. What
        may come to lie in the caller's output buffer is left out.
        """
        storage = self.storage
        outside = {storage.group[storage.graph.output]}
        saved = dict[int, int]()
        for step, node, order in reversed(self.candidates):
            if storage.group[node.output] in outside:
                outside |= {storage.group[node.inputs[i]] for i in order}
            else:
                saved[step] = -(-storage.size(node.output) // self.align) * self.align
        tensors = [b for b in storage.buffers() if storage.group[b.group or b.name] not in outside]
        live = [-saved.get(step, 0) for step in range(len(storage.graph.nodes) + 1)]
        for b in _rounded([*tensors, *self.spaces], self.align):
            for step in range(b.first, b.last + 1):
                live[step] += b.size
        return live


def _inputs(graph: LoweredGraph, node: Node, row: Kernel) -> Order:
    """Which inputs a row lets the output overwrite, the first one first."""
    first = (0,) if row.in_place(graph, node) else ()
    return (*first, 1) if has_residual(node) and row.residual_in_place else first


def _rounded(buffers: Sequence[Buffer], align: int) -> list[Buffer]:
    return [Buffer(b.name, -(-b.size // align) * align, b.first, b.last) for b in buffers]


def place(graph: LoweredGraph, storage: Storage, rows: Mapping[str, Kernel], spaces: Mapping[str, int]) -> Placement:
    """Choose merges and offsets.

    Args:
        graph: the graph.
        storage: its views, not merged in place yet.
        rows: node name -> chosen kernel row, of every node that is no alias.
        spaces: node name -> bytes of workspace.
    """
    return Placer(graph, storage, rows, spaces).run()
